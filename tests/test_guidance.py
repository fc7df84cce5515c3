"""Guidance against exact conditionals: of a mixture, each component is a class, and p(c | x_t) is in closed form."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import GAUSSIAN, MIXTURE, PROCESSES, Mixture, last_time
from scipy.integrate import solve_ivp

from dgm_jax.metrics import energy_test
from dgm_jax.networks import MLP
from dgm_jax.parameterizations import (
    autoguided,
    classifier_free,
    classifier_free_batched,
    classifier_guided,
    drop_conditions,
    limited_interval,
    score_of,
)
from dgm_jax.processes import log_snr_grid
from dgm_jax.samplers import sample_ode

ALL = pytest.mark.parametrize("name", PROCESSES)
CLASSES = [
    Mixture(np.ones(1), MIXTURE.means[k : k + 1], MIXTURE.covariances[k : k + 1]) for k in range(len(MIXTURE.weights))
]


def log_class(process, k):
    """log p_t(k | x_t), by Bayes from the densities."""

    def log_prob(x_t, t):
        joint = jnp.log(MIXTURE.weights[k].astype(x_t.dtype)) + CLASSES[k].log_prob(process, x_t, t)
        return joint - MIXTURE.log_prob(process, x_t, t)

    return log_prob


def denoise_given(process):
    """(x_t, t, label) -> E[x_0 | x_t, label], where label 3 is none."""
    denoisers = [*(each.denoise(process) for each in CLASSES), MIXTURE.denoise(process)]

    def given(x_t, t, labels):
        every = jnp.stack([denoise(x_t, t) for denoise in denoisers])
        return every[labels, jnp.arange(len(x_t))]

    return given


def states(name, n=12):
    process, rng = PROCESSES[name], np.random.default_rng(3)
    dtype = jnp.result_type(float)
    t = jnp.linspace(0.1, 0.95 * last_time(name), n)
    x_0 = jnp.asarray(MIXTURE.sample(rng, n, dtype))
    return process, process.perturb(x_0, t, jnp.asarray(rng.standard_normal((n, 2)), dtype)), t


@ALL
def test_classifier_guidance_at_scale_one_is_the_conditional_denoiser(name):
    with jax.enable_x64(True):
        process, x_t, t = states(name)
        for k in range(3):
            guided = classifier_guided(MIXTURE.denoise(process), process, log_class(process, k), 1.0)
            np.testing.assert_allclose(guided(x_t, t), CLASSES[k].denoise(process)(x_t, t), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("scale", [0.0, 0.7, 1.0, 3.0])
@ALL
def test_both_guidances_have_the_score_of_the_tilted_density(name, scale):
    """grad log [p_t(x)^(1-w) p_t(x | c)^w], by autodiff of the exact densities."""
    with jax.enable_x64(True):
        process, x_t, t = states(name)

        def tilted(x):
            return ((1 - scale) * MIXTURE.log_prob(process, x, t) + scale * CLASSES[0].log_prob(process, x, t)).sum()

        expected = jax.grad(tilted)(x_t)
        free = classifier_free(CLASSES[0].denoise(process), MIXTURE.denoise(process), scale)
        classified = classifier_guided(MIXTURE.denoise(process), process, log_class(process, 0), scale)
        for guided in (free, classified):
            np.testing.assert_allclose(score_of(guided, process)(x_t, t), expected, rtol=1e-7, atol=1e-7)


def test_scale_one_and_zero_are_the_models_to_the_bit():
    process, x_t, t = states("vp")
    conditional, unconditional = CLASSES[1].denoise(process), MIXTURE.denoise(process)
    np.testing.assert_array_equal(classifier_free(conditional, unconditional, 1.0)(x_t, t), conditional(x_t, t))
    np.testing.assert_array_equal(classifier_free(conditional, unconditional, 0.0)(x_t, t), unconditional(x_t, t))
    np.testing.assert_array_equal(autoguided(conditional, unconditional, 1.0)(x_t, t), conditional(x_t, t))


@pytest.mark.parametrize("scale", [2.5, np.linspace(0.0, 3.0, 12)], ids=["one", "each"])
@pytest.mark.parametrize("null", ["one", "each"])
def test_one_batched_call_is_two_calls(null, scale):
    process, x_t, t = states("ve")
    labels = jnp.arange(12) % 3
    calls = []

    def given(x, t, labels):
        calls.append(len(x))
        return denoise_given(process)(x, t, labels)

    none = jnp.full(12, 3) if null == "each" else 3
    scale = jnp.asarray(scale, jnp.float32)
    batched = classifier_free_batched(given, labels, none, scale)(x_t, t)
    assert calls == [24]
    two = classifier_free(lambda x, t: given(x, t, labels), MIXTURE.denoise(process), scale)(x_t, t)
    np.testing.assert_allclose(batched, two, rtol=1e-5, atol=1e-5)


def test_a_guided_solve_draws_what_the_tilted_scores_drift_says():
    """Of two Gaussians the tilted score is affine in x, so that the flow's mean and covariance obey linear ODEs, which
    SciPy solves. The density at t = 0 that one might expect, p(x)^(1-w) p(x | c)^w, is another, and is told apart."""
    scale, process = 2.0, PROCESSES["vp"]
    broad = Mixture(np.ones(1), np.array([[0.2, 0.1]]), np.array([[[1.3, 0.2], [0.2, 0.9]]]))

    levels = jax.jit(lambda t: (process.alpha(t), process.variance(t), process.log_alpha_rate(t), process.diffusion(t)))

    def precision_and_shift(t):
        """The tilted score as shift - precision x."""
        total, shift = np.zeros((2, 2)), np.zeros(2)
        alpha, variance, *_ = map(float, levels(t))
        for weight, each in ((1 - scale, broad), (scale, GAUSSIAN)):
            inverse = np.linalg.inv(alpha**2 * each.covariances[0] + variance * np.eye(2))
            total, shift = total + weight * inverse, shift + weight * inverse @ (alpha * each.means[0])
        return total, shift

    def rates(t, state):
        mean, covariance = state[:2], state[2:].reshape(2, 2)
        precision, shift = precision_and_shift(t)
        _, _, f, g = map(float, levels(t))
        g2 = g**2
        jacobian = f * np.eye(2) + g2 / 2 * precision
        moved = jacobian @ covariance + covariance @ jacobian.T
        return np.concatenate([jacobian @ mean - g2 / 2 * shift, moved.ravel()])

    with jax.enable_x64(True):
        end, n = 0.02, 20_000
        prior = float(process.variance(jnp.asarray(1.0)))
        start = np.concatenate([np.zeros(2), (prior * np.eye(2)).ravel()])
        found = solve_ivp(rates, (1.0, end), start, rtol=1e-7, atol=1e-9).y[:, -1]
        mean, covariance = found[:2], found[2:].reshape(2, 2)
        guided = classifier_free(GAUSSIAN.denoise(process), broad.denoise(process), scale)
        ts = log_snr_grid(process, 60, t_min=end, t_max=1.0)
        x = np.asarray(jax.jit(lambda key: sample_ode(guided, process, key, (n, 2), ts=ts).x)(jax.random.key(0)))
    error = np.sqrt(np.diag(covariance) / n)
    np.testing.assert_array_less(np.abs(x.mean(0) - mean), 4 * error + 1e-3)
    spread = np.sqrt((covariance**2 + np.outer(np.diag(covariance), np.diag(covariance))) / n)
    np.testing.assert_array_less(np.abs(np.cov(x.T) - covariance), 4 * spread + 1e-3)
    tilted = np.linalg.inv(precision_and_shift(end)[0])
    assert (np.abs(np.diag(np.cov(x.T)) - np.diag(tilted)) > 8 * np.diag(spread)).all()


@pytest.mark.parametrize("rule", ["classifier", "classifier-free"])
def test_scale_one_draws_the_class(rule):
    process, n = PROCESSES["vp"], 1000
    if rule == "classifier":
        guided = classifier_guided(MIXTURE.denoise(process), process, log_class(process, 2), 1.0)
    else:
        labels, given = jnp.full(n, 2), denoise_given(process)
        guided = classifier_free_batched(given, labels, 3, 1.0)
    ts = log_snr_grid(process, 24, t_min=2e-4, t_max=1.0)
    drawn = jax.jit(lambda key: sample_ode(guided, process, key, (n, 2), ts=ts).x)(jax.random.key(1))
    rng = np.random.default_rng(0)
    truth = jnp.asarray(CLASSES[2].sample(rng, n))
    assert energy_test(drawn, truth, jax.random.key(2), permutations=199).p_value > 1e-2
    other = jnp.asarray(CLASSES[2].sample(rng, n) + np.float32([0.1, 0.0]))
    assert energy_test(drawn, other, jax.random.key(2), permutations=199).p_value <= 1e-2


def test_the_interval_has_its_ends_and_spares_the_other_network():
    process = PROCESSES["karras"]
    called = []

    def constant(value):
        def denoise(x_t, t):
            jax.debug.callback(lambda: called.append(value))
            return jnp.full_like(x_t, value)

        return denoise

    steered = jax.jit(limited_interval(constant(1.0), constant(2.0), process, low=0.5, high=2.0))
    levels = jnp.asarray([0.3, 0.49, 0.51, 1.0, 1.99, 2.01, 10.0])
    found = steered(jnp.zeros((7, 3)), process.time_at(levels))
    np.testing.assert_array_equal(found[:, 0], [2, 2, 1, 1, 1, 2, 2])
    jax.effects_barrier()
    assert sorted(called) == [1.0, 2.0]
    called.clear()
    for level, expected in ((0.2, 2.0), (1.0, 1.0)):
        assert (steered(jnp.zeros((7, 3)), process.time_at(jnp.full(7, level))) == expected).all()
    jax.effects_barrier()
    assert called == [2.0, 1.0]


def test_pure_noise_is_outside_every_finite_interval():
    steered = limited_interval(
        lambda x, t: jnp.ones_like(x), lambda x, t: jnp.zeros_like(x), PROCESSES["rectified"], low=0.0, high=1e6
    )
    np.testing.assert_array_equal(steered(jnp.zeros((2, 1)), jnp.asarray([1.0, 0.5]))[:, 0], [0, 1])


def test_conditions_are_dropped_as_often_as_asked_each_by_its_own_key():
    n = 4000
    condition = {"label": jnp.arange(n) % 10, "text": jnp.ones((n, 3))}
    null = {"label": 10, "text": jnp.zeros(3)}
    keys = jax.random.split(jax.random.key(0), n)
    found = drop_conditions(condition, null, keys, rate=0.2)
    dropped = np.asarray(found["label"] == 10)
    assert abs(dropped.mean() - 0.2) < 4 * np.sqrt(0.16 / n)
    np.testing.assert_array_equal(found["text"], np.where(dropped[:, None], 0.0, 1.0) * np.ones((1, 3)))
    np.testing.assert_array_equal(found["label"][~dropped], (np.arange(n) % 10)[~dropped])
    part = drop_conditions(jax.tree.map(lambda leaf: leaf[7:9], condition), null, keys[7:9], rate=0.2)
    chex.assert_trees_all_equal(part, jax.tree.map(lambda leaf: leaf[7:9], found))
    assert (drop_conditions(condition, null, keys, rate=1.0)["label"] == 10).all()
    chex.assert_trees_all_equal(drop_conditions(condition, null, keys, rate=0.0), condition)


@pytest.mark.parametrize(("labels", "null"), [([1, 12], 10), ([1, 2], 11)], ids=["label", "null"])
@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_classes_out_of_range_are_seen_inside_a_solve(transform, labels, null):
    """The network's own check, which looks at what is known: a solve's state is traced, its labels need not be."""
    network, process = MLP((4,), num_classes=10), PROCESSES["vp"]
    params, asked = (
        network.init(jax.random.key(0), jnp.zeros((2, 1)), jnp.zeros(2), jnp.zeros(2, int)),
        np.array(labels),
    )

    def draw(key):
        guided = classifier_free_batched(partial(network.apply, params), asked, null, 2.0)
        return sample_ode(guided, process, key, (2, 1), ts=jnp.asarray([1.0, 0.5])).x

    with pytest.raises(ValueError, match=r"Expected labels in \[0, 10\]"):
        transform(draw)(jax.random.key(0))


def one(x_t, t):
    return x_t


BAD = {
    "a negative scale": (lambda p: classifier_free(one, one, -1.0), "scale >= 0"),
    "a scale that is not a number": (lambda p: autoguided(one, one, float("nan")), "scale >= 0"),
    "an infinite scale": (lambda p: classifier_guided(one, p, one, float("inf")), "scale >= 0"),
    "scales of another batch": (
        lambda p: classifier_free(one, one, jnp.ones(3))(jnp.ones((2, 1)), jnp.ones(2)),
        "one per example",
    ),
    "a matrix of scales": (lambda p: classifier_free(one, one, jnp.ones((2, 2))), "one per example"),
    "a log_prob of one number": (
        lambda p: classifier_guided(one, p, lambda x, t: x.sum(), 1.0)(jnp.ones((2, 1)), jnp.full(2, 0.5)),
        "log_prob of shape",
    ),
    "a classifier at pure noise": (
        lambda p: classifier_guided(one, PROCESSES["cosine"], one, 1.0)(jnp.ones((2, 1)), jnp.ones(2)),
        "alpha",
    ),
    "an interval without inside": (lambda p: limited_interval(one, one, p, low=2.0, high=1.0), "low < high"),
    "an interval of one point": (lambda p: limited_interval(one, one, p, low=1.0, high=1.0), "low < high"),
    "a rate above 1": (lambda p: drop_conditions(jnp.arange(3), 9, jax.random.key(0), rate=1.5), "rate in"),
    "a null of another shape": (lambda p: classifier_free_batched(one, jnp.ones((3, 2)), jnp.ones(5), 1.0), "null of"),
    "a null of another tree": (lambda p: classifier_free_batched(one, {"a": jnp.ones(3)}, 1.0, 1.0), "tree like"),
    "conditions of another batch": (
        lambda p: classifier_free_batched(lambda x, t, c: x, jnp.arange(1), 9, 1.0)(jnp.ones((3, 2)), jnp.ones(3)),
        "Expected 3 conditions",
    ),
    "a network that drops rows": (
        lambda p: classifier_free_batched(lambda x, t, c: x[:3], jnp.arange(3), 9, 1.0)(jnp.ones((3, 2)), jnp.ones(3)),
        "shape of its input",
    ),
    "a null that wraps": (
        lambda p: drop_conditions(np.arange(3, dtype=np.uint8), 300, jax.random.key(0), rate=1.0),
        "null that uint8 holds.*got 300",
    ),
    "a null that is cut": (lambda p: classifier_free_batched(one, jnp.arange(3), 0.5, 1.0), "null that int32 holds"),
    "a null of NaN under jit": (
        lambda p: jax.jit(lambda c: drop_conditions(c, np.nan, jax.random.key(0), rate=1.0))(jnp.arange(3)),
        "null that int32 holds",
    ),
    "a classifier's network of one row": (
        lambda p: classifier_guided(lambda x, t: x[:1], p, lambda x, t: x.sum(1), 1.0)(
            jnp.ones((2, 3)), jnp.full(2, 0.5)
        ),
        "shape of its input",
    ),
    "an interval's network of one column": (
        lambda p: limited_interval(lambda x, t: x[:, :1], one, p, low=0.1, high=9.0)(
            jnp.ones((2, 3)), jnp.full(2, 0.5)
        ),
        "shape of its input",
    ),
    "no condition": (lambda p: classifier_free_batched(one, {}, {}, 1.0), "each example has its own"),
    "a network of another shape": (
        lambda p: classifier_free(lambda x, t: x[:, :1], one, 2.0)(jnp.ones((2, 3)), jnp.ones(2)),
        "shape of its input",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused(case, untyped):
    call, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        call(PROCESSES["vp"])
