"""Integers as reals: uniform and variational dequantisation.

An integer x in [0, levels) becomes y = (x + u) 2/levels - 1 in [-1, 1), with noise u in [0, 1)^d of density q(u | x).
A density p of y then bounds the probability of the integers from below (Jensen's inequality),

    log P(x) = log integral of p(y) (2/levels)^d du  >=  E_q[log p(y) + d log(2/levels) - log q(u | x)],

and `bits_per_dim(log p(y) - log q(u | x), d, levels=levels)` is its negative in bits per dimension. log q is the
density of u, not of y: the scaling's volume (2/levels)^d is counted once, by `bits_per_dim`. Uniform noise has
log q = 0.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Integer

from dgm_jax.numerics import check_like, example_keys, known, normal_like, sum_events
from dgm_jax.typing import Data, Keys, PerExample

Integers = Integer[Array, " batch *event"]


def dequantize(x_uint: Integers, key: Keys, *, levels: int) -> Data:
    """Integers in [0, levels) plus uniform noise on [0, 1), scaled to [-1, 1): uniform dequantisation.

    The mean log-density of the result bounds the discrete log-likelihood from below, once `bits_per_dim` has undone
    the scaling. Reference: Theis et al. 2016, arXiv:1511.01844, section 3.1.
    """
    _check_integers(x_uint, levels)
    keys = example_keys(key, x_uint.shape[0])
    dtype = jnp.result_type(float)
    noise = jax.vmap(lambda k: jax.random.uniform(k, x_uint.shape[1:], dtype))(keys)
    return (x_uint.astype(dtype) + noise) * (2 / levels) - 1


def variational_dequantize(
    encode: Callable[[Data], tuple[Data, Data]], x_uint: Integers, key: Keys, *, levels: int
) -> tuple[Data, PerExample]:
    """Integers plus noise from a learned law, scaled to [-1, 1), and that noise's log-density: (x, log_q).

    The noise is logit-normal in each coordinate, u = sigmoid(mean + exp(log_std) eps), eps ~ N(0, 1), and
    reparametrised, so that `log p(x) - log_q` is maximised over encoder and density at once.

    Args:
        encode: (mean, log_std), each of the shape of its argument, which is the bins' centres (2 x + 1)/levels - 1.

    Returns:
        x: [batch, *event] in [-1, 1). log_q: log q(u | x), nats, summed over the event, of u in [0, 1)^d.
        `bits_per_dim(log p(x) - log_q, event_size, levels=levels)` bounds the discrete bits per dimension from above.

    Reference: Ho et al. 2019, arXiv:1902.00275, section 3.1.2, with a diagonal law in place of the paper's flow.
    """
    _check_integers(x_uint, levels)
    dtype = jnp.result_type(float)
    integers = x_uint.astype(dtype)
    centres = (2 * integers + 1) / levels - 1
    mean, log_std = (check_like(part, centres, "encoder") for part in encode(centres))
    eps = normal_like(key, centres)
    logit = mean + jnp.exp(log_std) * eps
    # du/d logit = u (1 - u), and the sum of both logarithms is taken where u itself would have rounded to 0 or 1
    log_slope = jax.nn.log_sigmoid(logit) + jax.nn.log_sigmoid(-logit)
    log_q = jax.scipy.stats.norm.logpdf(eps) - log_std - log_slope
    # x + 1 - levels eps is still below x + 1 once it is rounded
    noise = jnp.minimum(jax.nn.sigmoid(logit), 1 - levels * float(jnp.finfo(dtype).eps))
    x = (integers + noise) * (2 / levels) - 1
    return x, sum_events(log_q)


def _check_integers(x_uint: Integers, levels: int) -> None:
    if not jnp.issubdtype(x_uint.dtype, jnp.integer):
        raise ValueError(f"Expected integers in [0, {levels}), as levels are counted; got dtype {x_uint.dtype}.")
    values = known(x_uint)
    if values is not None and values.size and not 0 <= values.min() <= values.max() < levels:
        raise ValueError(
            f"Expected integers in [0, {levels}), as levels are counted; got {values.min()} to {values.max()}."
        )
