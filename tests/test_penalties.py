"""Penalties against finite differences of the critic, in closed form, and in a critic that is trained."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats

from dgm_jax.losses import (
    gradient_penalty,
    one_sided_penalty,
    r1_penalty,
    r2_penalty,
    wasserstein,
    zero_centred_penalty,
)
from dgm_jax.networks import DCGANCritic, DenseCritic, InstanceNorm, layer_norm

EVENTS = [(3,), (3, 2), (2, 2, 3)]
KEY = jax.random.key(0)


def critic_of(event, scale=1.0):
    """Smooth, with a gradient that is not constant, in every coordinate of the event."""
    rng = np.random.default_rng(1)
    size = int(np.prod(event))
    w, v = rng.standard_normal((size, 5)), rng.standard_normal(5)

    def critic(x):
        hidden = jnp.tanh(x.reshape(len(x), -1) @ jnp.asarray(w, x.dtype))
        return scale * (hidden @ jnp.asarray(v, x.dtype) + 0.3 * jnp.sum(x.reshape(len(x), -1) ** 2, axis=1))

    return critic


def pair(event, batch=4, dtype=np.float64):
    rng = np.random.default_rng(2)
    return (jnp.asarray(rng.standard_normal((batch, *event)) + shift, dtype) for shift in (0.5, -0.5))


def norms(critic, x):
    """|grad V| of each example, one coordinate after the other by central differences."""
    x, step = np.asarray(x), 1e-6
    squares = np.zeros(len(x))
    for index in np.ndindex(*x.shape[1:]):
        move = np.zeros_like(x)
        move[(slice(None), *index)] = step
        squares += np.asarray((critic(jnp.asarray(x + move)) - critic(jnp.asarray(x - move))) / (2 * step)) ** 2
    return np.sqrt(squares)


def points_between(real, fake, key):
    """Where the penalty looks: a critic that writes down its input."""
    seen = []

    def critic(x):
        jax.debug.callback(lambda x: seen.append(np.asarray(x)), x)
        return x.reshape(len(x), -1).sum(1)

    gradient_penalty(critic, real, fake, key)
    jax.effects_barrier()
    return seen[0]


@pytest.mark.parametrize("event", EVENTS)
def test_finite_differences_of_the_critic(event):
    """Over one, two and three event axes; central differences at 1e-6 are right to about 1e-9."""
    with jax.enable_x64(True):
        real, fake = pair(event)
        critic = critic_of(event)
        of_real, of_fake = norms(critic, real), norms(critic, fake)
        np.testing.assert_allclose(r1_penalty(critic, real), of_real**2, rtol=1e-7)
        np.testing.assert_allclose(r2_penalty(critic, fake), of_fake**2, rtol=1e-7)
        np.testing.assert_allclose(zero_centred_penalty(critic, real, fake), of_real**2 + of_fake**2, rtol=1e-7)
        between = norms(critic, points_between(real, fake, KEY))
        for target in (0.0, 1.0, float(np.median(between))):
            found = gradient_penalty(critic, real, fake, KEY, target=target)
            np.testing.assert_allclose(found, (between - target) ** 2, rtol=1e-6, atol=1e-8)
            found = one_sided_penalty(critic, real, fake, KEY, target=target)
            np.testing.assert_allclose(found, np.maximum(0, between - target) ** 2, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("event", EVENTS)
def test_points_lie_on_the_segments_evenly(event):
    """One share for all coordinates of an example, the same where the keys are, uniform over [0, 1]."""
    with jax.enable_x64(True):
        n = 500
        real, fake = pair(event, n)
        x = points_between(real, fake, KEY)
        shares = np.asarray((x - np.asarray(fake)) / np.asarray(real - fake)).reshape(n, -1)
        np.testing.assert_allclose(shares, np.broadcast_to(shares[:, :1], shares.shape), rtol=1e-6, atol=1e-9)
        assert scipy.stats.kstest(shares[:, 0], "uniform").pvalue > 1e-4
        keys = jax.random.split(jax.random.key(3), n)
        np.testing.assert_array_equal(
            points_between(real, fake, keys)[7:9], points_between(real[7:9], fake[7:9], keys[7:9])
        )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_examples_keys_and_dtype(dtype):
    """A row depends on its own pair and key; float32 in, float32 out; one trace."""
    with jax.enable_x64(True):
        real, fake = pair((3, 2), 6, dtype)
        keys, critic, order = jax.random.split(KEY, 6), critic_of((3, 2)), np.array([3, 0, 5, 1, 4, 2])
        for penalty in (gradient_penalty, one_sided_penalty):
            rows = penalty(critic, real, fake, keys)
            assert rows.shape == (6,)
            assert rows.dtype == dtype
            again = penalty(critic, real[order], fake[order], keys[order])
            np.testing.assert_allclose(again, rows[order], rtol=1e-5)
            assert not np.allclose(penalty(critic, real, fake, keys[::-1]), rows, rtol=1e-3)
        assert zero_centred_penalty(critic, real, fake).dtype == dtype


def test_a_linear_critic_in_closed_form():
    """V = w.x has |w| everywhere; the penalty's own gradient in w is 2 (|w| - 1) w/|w|."""
    with jax.enable_x64(True):
        real, fake = pair((3,))
        w = jnp.asarray([2.0, -1.0, 2.0])
        mean = jax.grad(lambda w: gradient_penalty(lambda x: x @ w, real, fake, KEY).mean())
        np.testing.assert_allclose(gradient_penalty(lambda x: x @ w, real, fake, KEY), 4, rtol=1e-12)
        np.testing.assert_allclose(mean(w), 2 * (3 - 1) * w / 3, rtol=1e-12)
        np.testing.assert_allclose(one_sided_penalty(lambda x: x @ w / 4, real, fake, KEY), 0)
        np.testing.assert_allclose(r1_penalty(lambda x: x @ w, real), 9, rtol=1e-12)


@pytest.mark.parametrize("penalty", [gradient_penalty, one_sided_penalty])
def test_a_constant_critic_has_a_finite_gradient(penalty):
    real, fake = pair((3,), dtype=np.float32)
    value, gradient = jax.value_and_grad(lambda w: penalty(lambda x: x @ w, real, fake, KEY).mean())(jnp.zeros(3))
    assert value == (1.0 if penalty is gradient_penalty else 0.0)
    np.testing.assert_array_equal(gradient, np.zeros(3))


def test_parameters_get_second_derivatives():
    """The derivative of a penalty in a parameter, against differences of the penalty."""
    with jax.enable_x64(True):
        real, fake = pair((3, 2))
        for penalty in (
            lambda c: gradient_penalty(c, real, fake, KEY),
            lambda c: one_sided_penalty(c, real, fake, KEY),
            lambda c: zero_centred_penalty(c, real, fake),
        ):
            mean = jax.jit(lambda scale, penalty=penalty: penalty(critic_of((3, 2), scale)).mean())
            difference = (mean(1.3 + 1e-5) - mean(1.3 - 1e-5)) / 2e-5
            np.testing.assert_allclose(jax.grad(mean)(1.3), difference, rtol=1e-7)


@pytest.mark.parametrize("norm", [layer_norm, InstanceNorm, None])
def test_the_penalty_of_one_example_does_not_depend_on_another(norm):
    """With norms of one example; statistics of the batch would fail this, as the next test sees."""
    net = DCGANCritic((2, 3), norm)
    x = jax.random.normal(KEY, (3, 8, 8, 1))
    params = jax.tree.map(
        lambda p: 10 * p, jax.jit(net.init)(jax.random.key(1), x)
    )  # 0.02 makes gradients of rounding's size
    run = jax.jit(lambda x: r1_penalty(partial(net.apply, params), x))
    rows, changed = run(x), run(x.at[0].multiply(-3.0))
    assert (np.asarray(rows) > 1e-6).all()
    np.testing.assert_allclose(changed[1:], rows[1:], rtol=1e-5)
    assert abs(changed[0] / rows[0] - 1) > 1e-3


def test_batch_statistics_would_mix_examples():
    def critic(x):
        return jnp.sum(jnp.tanh((x - x.mean(0, keepdims=True)) / x.std(0, keepdims=True)) ** 3, axis=1)

    x = jax.random.normal(KEY, (4, 3))
    rows, changed = r1_penalty(critic, x), r1_penalty(critic, x.at[0].multiply(-3.0))
    assert (np.abs(changed[1:] / rows[1:] - 1) > 1e-3).all()


# ----------------------------------------------------------------------------------------------------------------
# Two Gaussians N(shift, 1) and N(0, 1): the earth mover's distance is the shift. Of all critics in one dimension the
# objective E V(x) - E V(g) - weight E (|V'| - 1)^2 is, with F the distribution functions and r the density of the
# points between, the integral of V' (F_g - F_x) - weight r (V' - 1)^2, so that pointwise
#     V' = 1 + (F_g - F_x)/(2 weight r),    E V(x) - E V(g) = shift + integral of (F_g - F_x)^2/(2 weight r).
# Any other critic misses the highest objective by gap = weight integral of r (V' - best V')^2, which by
# Cauchy-Schwarz bounds the error of its E V(x) - E V(g) by sqrt(gap/weight) sqrt(integral of (F_g - F_x)^2/r).
# A linear critic has slope w = 1 + shift/(2 weight) and the difference w shift.

SHIFT, WEIGHT = 2.0, 10.0


def minimise(loss, params, steps, rate):
    optimizer = optax.adam(optax.cosine_decay_schedule(rate, steps))

    def body(state, key):
        params, opt_state = state
        updates, opt_state = optimizer.update(jax.grad(loss)(params, key), opt_state)
        return (optax.apply_updates(params, updates), opt_state), None

    run = jax.jit(lambda p: jax.lax.scan(body, (p, optimizer.init(p)), jax.random.split(KEY, steps))[0][0])
    with jax.numpy_dtype_promotion("standard"):  # optax counts steps in integers
        return run(params)


def objective(critic, real, fake, key):
    """WGAN-GP's, mean over the pairs."""
    distance = wasserstein.discriminator(critic(real), critic(fake))
    return (distance + WEIGHT * gradient_penalty(critic, real, fake, key)).mean()


def test_a_linear_critic_learns_its_exact_slope():
    with jax.enable_x64(True):
        real, fake = (jax.random.normal(key, (500, 1)) for key in jax.random.split(KEY))
        real = real + SHIFT - real.mean() + fake.mean()  # the means of these points are exactly the shift apart
        slope = minimise(lambda w, key: objective(lambda x: w * x[:, 0], real, fake, key), jnp.asarray(0.3), 400, 0.1)
        found = -wasserstein.discriminator(slope * real[:, 0], slope * fake[:, 0]).mean()
    np.testing.assert_allclose(slope, 1 + SHIFT / (2 * WEIGHT), rtol=1e-5)
    np.testing.assert_allclose(found, SHIFT * (1 + SHIFT / (2 * WEIGHT)), rtol=1e-5)


def test_a_trained_critic_gives_the_shift_of_two_gaussians():
    """What it gives is the shift and the penalty's known excess; the allowed error follows from the objective's gap."""
    net = DenseCritic((32, 32), activation=jnp.tanh)
    params = net.init(jax.random.key(1), jnp.zeros((1, 1)))

    def loss(params, key):
        key_real, key_fake, key = jax.random.split(key, 3)
        real, fake = SHIFT + jax.random.normal(key_real, (256, 1)), jax.random.normal(key_fake, (256, 1))
        return objective(partial(net.apply, params), real, fake, key)

    trained = minimise(loss, params, 1000, 1e-2)
    x = np.linspace(-6, SHIFT + 6, 1401)
    step = x[1] - x[0]
    shares = (np.arange(400) + 0.5) / 400
    scales = np.sqrt(shares**2 + (1 - shares) ** 2)
    between = scipy.stats.norm.pdf(x[:, None], shares * SHIFT, scales).mean(1)
    lead = scipy.stats.norm.cdf(x) - scipy.stats.norm.cdf(x, SHIFT)  # F_g - F_x
    excess = np.sum(lead**2 / between) * step / (2 * WEIGHT)
    critic = partial(net.apply, trained)
    slope = np.asarray(jax.vmap(jax.grad(lambda x: critic(x[None, None])[0]))(jnp.asarray(x, jnp.float32)), np.float64)
    found = np.sum(slope * lead) * step
    best = SHIFT + excess / 2  # half of the excess goes to the penalty
    gap = best - (found - WEIGHT * np.sum(between * (np.abs(slope) - 1) ** 2) * step)
    assert 0 <= gap < 0.01 * SHIFT  # trained: the objective is within a hundredth of the best
    assert abs(found - (SHIFT + excess)) < np.sqrt(gap / WEIGHT * 2 * WEIGHT * excess)
    assert abs(found - excess - SHIFT) < 0.05 * SHIFT


def never(x):
    raise AssertionError("compute was spent")


X = jnp.zeros((3, 2))
BAD = {
    "a column of logits": (lambda: r1_penalty(lambda x: x[:, :1], X), r"one real number per example, \(3,\).*\(3, 1\)"),
    "one number for all": (lambda: r2_penalty(lambda x: x.sum(), X), r"per example.*\(\)"),
    "no number": (lambda: gradient_penalty(lambda x: x, X, X, KEY), r"per example.*\(3, 2\)"),
    "decisions": (lambda: r1_penalty(lambda x: x[:, 0] > 0, X), "real number.*bool"),
    "two shapes": (lambda: gradient_penalty(never, X, X[:2], KEY), r"one shape.*\(3, 2\).*\(2, 2\)"),
    "two shapes, both": (lambda: zero_centred_penalty(never, X, X[:, :1]), "one shape"),
    "two dtypes": (lambda: one_sided_penalty(never, X, X.astype(jnp.bfloat16), KEY), "one shape and dtype.*bfloat16"),
    "a negative target": (lambda: gradient_penalty(never, X, X, KEY, target=-1.0), "target >= 0.*-1"),
    "a negative target, one-sided": (lambda: one_sided_penalty(never, X, X, KEY, target=-0.1), "target >= 0"),
    "no target": (lambda: gradient_penalty(never, X, X, KEY, target=float("nan")), "target >= 0.*nan"),
    "pixels": (lambda: r1_penalty(never, X.astype(jnp.uint8)), "floating-point.*uint8"),
    "NaN": (lambda: gradient_penalty(never, X, X.at[0, 0].set(jnp.nan), KEY), "finite fake"),
    "keys": (lambda: gradient_penalty(never, X, X, jax.random.split(KEY, 4)), "one key"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case, untyped):
    call, message = BAD[case]
    with pytest.raises(ValueError, match=f"Expected.*{message}"):
        call()
