"""Hamiltonian Monte Carlo: the leapfrog's reversibility, volume and order; the invariance of known densities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate

from dgm_jax.samplers import hmc_step, leapfrog

WEIGHTS, MEANS, STDS = np.array([0.7, 0.3]), np.array([[-1.0, 0.5], [1.5, 0.0]]), np.array([0.6, 0.9])


def log_density(x):
    """A lopsided mixture of two Gaussians in two dimensions, up to a constant."""
    squares = jnp.sum((x[:, None] - jnp.asarray(MEANS, x.dtype)[None]) ** 2, axis=-1)
    std = jnp.asarray(STDS, x.dtype)[None]
    log_weights = jnp.asarray(np.log(WEIGHTS), x.dtype)[None]
    return jax.nn.logsumexp(log_weights - squares / (2 * std**2) - 2 * jnp.log(std), axis=1)


def exact_samples(n, seed=0):
    rng = np.random.default_rng(seed)
    which = rng.choice(2, n, p=WEIGHTS)
    return jnp.asarray(MEANS[which] + STDS[which, None] * rng.standard_normal((n, 2)), jnp.float32)


def gradient(x):
    return jax.grad(lambda x: jnp.sum(log_density(x)))(x)


def energy(x, p):
    return -log_density(x) + jnp.sum(p**2, axis=1) / 2


def states(n=5):
    rng = np.random.default_rng(3)
    return jnp.asarray(rng.standard_normal((n, 2))), jnp.asarray(rng.standard_normal((n, 2)))


def test_leapfrog_runs_back_to_where_it_came_from():
    with jax.enable_x64(True):
        x, p = states()
        size = jnp.linspace(0.05, 0.4, len(x))
        run = jax.jit(lambda x, p: leapfrog(gradient, x, p, step_size=size, steps=13))
        there, momentum = run(x, p)
        back, reversed_momentum = run(there, -momentum)
        assert np.abs(there - x).max() > 0.5
        np.testing.assert_allclose(back, x, atol=1e-11)
        np.testing.assert_allclose(-reversed_momentum, p, atol=1e-11)


def test_leapfrog_keeps_the_volume():
    with jax.enable_x64(True):
        x, p = (part[0] for part in states())

        def run(state):
            return jnp.concatenate(leapfrog(gradient, state[None, :2], state[None, 2:], step_size=0.3, steps=7), 1)[0]

        jacobian = jax.jit(jax.jacfwd(run))(jnp.concatenate([x, p]))
        assert np.abs(jacobian - np.eye(4)).max() > 0.5
        np.testing.assert_allclose(np.linalg.det(jacobian), 1.0, atol=1e-11)


def test_the_path_and_its_energy_are_of_order_two():
    with jax.enable_x64(True):
        x, p = states(3)
        sizes, duration = 0.1 / 2.0 ** np.arange(3), 1.2

        def field(_, state):
            x, p = np.split(state.reshape(3, 4), 2, axis=1)
            return np.concatenate([p, np.asarray(slope(x))], axis=1).ravel()

        slope = jax.jit(lambda x: gradient(jnp.asarray(x)))
        start = np.concatenate([x, p], axis=1).ravel()
        exact = scipy.integrate.solve_ivp(field, (0, duration), start, rtol=1e-11, atol=1e-11).y[:, -1]
        position = exact.reshape(3, 4)[:, :2]
        errors, drifts = [], []
        for h in sizes:
            steps = round(duration / h)
            end, momentum = jax.jit(lambda x, p, h=h, n=steps: leapfrog(gradient, x, p, step_size=h, steps=n))(x, p)
            errors.append(np.abs(end - position).max())
            drifts.append(np.abs(energy(end, momentum) - energy(x, p)).max())
        for values in (errors, drifts):
            order = -np.polyfit(np.arange(3), np.log2(values), 1)[0]
            assert abs(order - 2) < 0.1


def test_one_step_is_the_verlet_formula():
    x, p = (part.astype(jnp.float32) for part in states())
    h = np.float32(0.3)
    middle = np.asarray(x) + h / 2 * np.asarray(p)
    momentum = np.asarray(p) + h * np.asarray(gradient(jnp.asarray(middle)))
    actual = jax.jit(lambda x, p: leapfrog(gradient, x, p, step_size=0.3, steps=1))(x, p)
    np.testing.assert_allclose(actual[0], middle + h / 2 * momentum, atol=1e-6)
    np.testing.assert_allclose(actual[1], momentum, atol=1e-6)


def moments(x):
    """Functions of two coordinates that see location, spread, and the weights of the modes."""
    x = np.asarray(x, np.float64)
    return np.stack([x[:, 0], x[:, 1], x[:, 0] ** 2, x[:, 1] ** 2, x[:, 0] * x[:, 1], x[:, 0] > 0.3], axis=1)


def deviation(x, exact):
    values = moments(x)
    return np.abs(values.mean(0) - exact) / (values.std(0) / np.sqrt(len(values)))


@pytest.fixture(scope="module")
def exact_moments():
    """By the rule of midpoints on a fine grid: independent of any sampler."""
    axis = np.linspace(-8, 9, 1701)
    grid = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2)
    density = sum(
        w / s**2 * np.exp(-np.sum((grid - m) ** 2, axis=1) / (2 * s**2))
        for w, m, s in zip(WEIGHTS, MEANS, STDS, strict=True)
    )
    return density @ moments(grid) / density.sum()


def test_moves_leave_a_mixture_invariant_and_paths_alone_do_not(exact_moments):
    """With a step so large that many proposals are refused: the choice between the ends is what keeps the law."""
    x, n = exact_samples(10_000), 4

    @jax.jit
    def run(x, key):
        def body(x, key):
            move = hmc_step(log_density, x, key, step_size=0.9, steps=3)
            return move.x, move.acceptance.mean()

        return jax.lax.scan(body, x, jax.random.split(key, n))

    @jax.jit
    def unadjusted(x, key):
        def body(x, key):
            return leapfrog(gradient, x, jax.random.normal(key, x.shape), step_size=0.9, steps=3)[0], None

        return jax.lax.scan(body, x, jax.random.split(key, n))[0]

    moved, acceptance = run(x, jax.random.key(1))
    assert np.mean(moved != x) > 0.9
    assert 0.4 < acceptance.mean() < 0.9
    assert deviation(moved, exact_moments).max() < 4
    assert deviation(unadjusted(x, jax.random.key(1)), exact_moments).max() > 8


def test_chains_from_elsewhere_reach_a_gaussian_with_a_step_size_each():
    n, mean, std = 4_000, np.array([1.0, -2.0]), np.array([0.5, 1.5])

    def log_gaussian(x):
        return -jnp.sum(((x - jnp.asarray(mean, x.dtype)[None]) / jnp.asarray(std, x.dtype)[None]) ** 2, axis=1) / 2

    # A path of half a period, h * steps = pi * std, only reflects: none of these comes near it.
    size = jnp.linspace(0.2, 0.35, n)

    @jax.jit
    def run(x, key):
        def body(x, key):
            return hmc_step(log_gaussian, x, key, step_size=size, steps=3).x, None

        return jax.lax.scan(body, x, jax.random.split(key, 120))[0]

    x = np.asarray(run(jnp.zeros((n, 2)) + 3.0, jax.random.key(0)), np.float64)
    assert (np.abs(x.mean(0) - mean) < 4 * std / np.sqrt(n)).all()
    assert (np.abs(x.var(0) / std**2 - 1) < 4 * np.sqrt(2 / n)).all()


def test_acceptance_is_what_is_accepted_and_the_log_density_is_the_states():
    x = exact_samples(4_000, seed=5)
    move = jax.jit(lambda x, key: hmc_step(log_density, x, key, step_size=1.1, steps=2))(x, jax.random.key(2))
    np.testing.assert_allclose(move.log_density, log_density(move.x), atol=1e-5)
    accepted = np.any(np.asarray(move.x) != np.asarray(x), axis=1)
    chance = np.asarray(move.acceptance, np.float64)
    assert 0.2 < accepted.mean() < 0.95
    assert abs(accepted.mean() - chance.mean()) < 4 * np.sqrt(np.sum(chance * (1 - chance))) / len(x)


def test_a_proposal_without_finite_density_is_refused():
    x = jnp.ones((8, 1)) * 0.05

    def positive(x):
        return jnp.where(x[:, 0] > 0, jnp.log(jnp.where(x[:, 0] > 0, x[:, 0], 1.0)), jnp.nan)

    move = jax.jit(lambda x, key: hmc_step(positive, x, key, step_size=10.0, steps=1))(x, jax.random.key(0))
    assert (np.asarray(move.x) > 0).all()
    assert np.isfinite(move.acceptance).all()
    assert (np.asarray(move.acceptance)[np.asarray(move.x == x)[:, 0]] < 1).all()


def test_one_key_per_example_and_rows_are_independent():
    x, keys = exact_samples(6), jax.random.split(jax.random.key(4), 6)
    run = jax.jit(lambda x, keys: hmc_step(log_density, x, keys, step_size=0.5, steps=3).x)
    whole = run(x, keys)
    np.testing.assert_allclose(run(x[2:4], keys[2:4]), whole[2:4], atol=1e-6)
    np.testing.assert_allclose(run(x, jax.random.key(4)), whole, atol=1e-6)  # one key is split so


@pytest.mark.parametrize(
    ("options", "density", "match"),
    [
        ({"step_size": 0.0, "steps": 2}, log_density, "0 < step_size.*0.0"),
        ({"step_size": float("inf"), "steps": 2}, log_density, "step_size < inf"),
        ({"step_size": jnp.ones(2), "steps": 2}, log_density, r"one per example \(3,\).*\(2,\)"),
        ({"step_size": 0.1, "steps": 0}, log_density, "steps >= 1.*0"),
        ({"step_size": 0.1, "steps": 2.5}, log_density, "whole number of steps.*2.5"),
        ({"step_size": 0.1, "steps": 2}, lambda x: -(x**2), r"one log-density per example.*\(3, 2\)"),
    ],
)
def test_bad_input_says_rule_reason_and_value(options, density, match, untyped):
    with pytest.raises(ValueError, match=match):
        hmc_step(density, jnp.zeros((3, 2)), jax.random.key(0), **options)
