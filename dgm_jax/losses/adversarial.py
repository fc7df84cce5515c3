"""Losses of a discriminator and a generator, as pure functions of logits.

A discriminator returns one number V(x) per example, without a sigmoid: its logit, with D = sigmoid(V) where a loss
speaks of probabilities. Each loss is a pair of functions (real_logits [batch], fake_logits [batch]) -> [batch], both
to be minimised, which pair example i of the data with example i of the generator. Means over the batch are the
papers' objectives; what the papers maximise has the opposite sign here. With p the density of the data, q that of
the generator and E[d] the discriminator's mean loss, the best discriminator V and the divergence that it leaves are

    loss                        V                  divergence
    minimax, non_saturating     log p/q            -E[d] = 2 JSD(p, q) - log 4
    wasserstein                 1-Lipschitz        -E[d] = earth mover's distance
    hinge                       sign(p - q)        1 - E[d]/2 = total variation distance
    least_squares               p/(p + q)          2 - 8 E[d] = Pearson's chi^2 of 2 q to p + q
    kl                          1 + log p/q        -E[d] = KL(p, q)
    reverse_kl                  log p/q            -E[d] = KL(q, p)
    relativistic                log p/q + c        log 2 - E[d] = JSD of the pairs (x, g) and (g, x)

in nats, where there are logarithms. Only the generator's loss of `relativistic` reads the real logits; elsewhere XLA
drops what computes them. A probability in place of a logit is a float like any other and cannot be told apart;
labels can, and are refused.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dgm_jax.typing import PerExample

Player = Callable[[PerExample, PerExample], PerExample]


class AdversarialLoss(NamedTuple):
    """What each player minimises, given (real_logits, fake_logits)."""

    discriminator: Player
    generator: Player


def _of_logits(discriminator: Player, generator: Player) -> AdversarialLoss:
    """Both functions, with their arguments checked."""

    def checked(player: Player) -> Player:
        def loss(real_logits: PerExample, fake_logits: PerExample) -> PerExample:
            _check_logits(real_logits, fake_logits)
            return player(real_logits, fake_logits)

        return loss

    return AdversarialLoss(checked(discriminator), checked(generator))


def _check_logits(real: PerExample, fake: PerExample) -> None:
    for name, logits in {"real_logits": real, "fake_logits": fake}.items():
        if not isinstance(logits, jax.Array | np.ndarray):
            raise ValueError(f"Expected {name} to be an array [batch], as each example has one; got {type(logits)}.")
        if not jnp.issubdtype(logits.dtype, jnp.floating):
            raise ValueError(
                f"Expected {name} to be floating-point, as a discriminator's output is, and labels or decisions are "
                f"not; got dtype {logits.dtype}."
            )
    if real.ndim != 1 or real.shape != fake.shape or real.dtype != fake.dtype:
        raise ValueError(
            f"Expected real_logits and fake_logits of one shape [batch] and one dtype, as examples are paired; got "
            f"{real.shape} {real.dtype} and {fake.shape} {fake.dtype}."
        )


def _exp(x: PerExample) -> PerExample:
    """exp(x), continued by its tangent where it passes the root of the largest float: one logit must not be inf."""
    edge = jnp.asarray(np.log(float(jnp.finfo(x.dtype).max)) / 2, x.dtype)
    return jnp.exp(jnp.minimum(x, edge)) * (1 + jnp.maximum(x - edge, 0))


def _cross_entropy(real: PerExample, fake: PerExample) -> PerExample:
    """-log D(x) - log(1 - D(g))."""
    return jax.nn.softplus(-real) + jax.nn.softplus(fake)


minimax = _of_logits(_cross_entropy, lambda real, fake: -jax.nn.softplus(fake))
"""-log D(x) - log(1 - D(g)), against log(1 - D(g)): the survey's eq. 1, exactly as written for both players.

The best logit is log p/q, where minus the discriminator's mean loss is 2 JSD(p, q) - log 4. The generator's loss, which
is negative, has the gradient of that divergence there; it vanishes where D(g) is near 0.
Reference: Goodfellow et al. 2014, arXiv:1406.2661, eq. 1 and theorem 1.
"""

non_saturating = _of_logits(_cross_entropy, lambda real, fake: jax.nn.softplus(-fake))
"""As `minimax`, but the generator minimises -log D(g), whose gradient is largest where D(g) is near 0.

Against the best discriminator that is the gradient of KL(q, p) - 2 JSD(p, q) (Arjovsky & Bottou 2017, arXiv:1701.04862,
theorem 2.5). Reference: Goodfellow et al. 2014, arXiv:1406.2661, section 3.
"""

wasserstein = _of_logits(lambda real, fake: fake - real, lambda real, fake: -fake)
"""V(g) - V(x), against -V(g): for 1-Lipschitz critics the lowest mean is minus the earth mover's distance.

Nothing here makes the critic Lipschitz: `clip_weights`, `gradient_penalty` or `spectral_normalize` does.
Reference: Arjovsky et al. 2017, arXiv:1701.07875, eq. 2 and 3.
"""

hinge = _of_logits(lambda real, fake: jax.nn.relu(1 - real) + jax.nn.relu(1 + fake), lambda real, fake: -fake)
"""max(0, 1 - V(x)) + max(0, 1 + V(g)), against -V(g).

The best V is the sign of p - q, and the mean loss there is twice the mass that p and q share, 2 - 2 TV(p, q).
Reference: Lim & Ye 2017, arXiv:1705.02894; Miyato et al. 2018, arXiv:1802.05957, eq. 16 and 17.
"""

least_squares = _of_logits(lambda real, fake: ((real - 1) ** 2 + fake**2) / 2, lambda real, fake: (fake - 1) ** 2 / 2)
"""((V(x) - 1)^2 + V(g)^2)/2, against (V(g) - 1)^2/2: the labels 1 and 0, of which the generator wants 1.

The best V is p/(p + q), where the discriminator's mean loss is (2 - chi^2)/8: Pearson's chi^2 of 2 q to p + q is the
integral of (p - q)^2/(p + q). The paper's other coding, a = -1, b = 1, c = 0, is V -> 2 V - 1, with c between both.
Reference: Mao et al. 2017, arXiv:1611.04076, eq. 2 and 9.
"""

kl = _of_logits(lambda real, fake: _exp(fake - 1) - real, lambda real, fake: -_exp(fake - 1))
"""f-GAN with KL(p, q): T = V and f*(T) = exp(T - 1), so that the best V is 1 + log p/q.

The discriminator minimises f*(T(g)) - T(x), whose lowest mean is minus the divergence; the generator minimises
-f*(T(g)), as in eq. 4, and not the -T(g) of the paper's section 3.2. Beyond the root of the largest float, exp(44) in
float32, the exponential is continued by its tangent.
Reference: Nowozin et al. 2016, arXiv:1606.00709, eq. 4 and tables 2 and 6.
"""

reverse_kl = _of_logits(lambda real, fake: _exp(-real) + fake - 1, lambda real, fake: 1 - fake)
"""f-GAN with KL(q, p): T = -exp(-V) and f*(T) = -1 - log(-T) = V - 1, so that the best V is log p/q.

The discriminator minimises f*(T(g)) - T(x), the generator -f*(T(g)). T rises with V, so that high logits mean data here
too. The exponential and the reference are those of `kl`.
"""

relativistic = _of_logits(
    lambda real, fake: jax.nn.softplus(fake - real), lambda real, fake: jax.nn.softplus(real - fake)
)
"""-log sigmoid(V(x) - V(g)), against -log sigmoid(V(g) - V(x)): which of the pair is data?

The best V is log p/q up to a constant, where the discriminator's mean loss is log 2 - JSD of (x, g) and (g, x).
Reference: Jolicoeur-Martineau 2019, arXiv:1807.00734, section 4.1.
"""
