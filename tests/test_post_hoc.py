"""Power-function averages against their integrals, and averages made of others against those tracked directly."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.integrate
import scipy.optimize
import test_sharded as one

from dgm_jax.training import (
    Checkpoints,
    init_state,
    load_params,
    make_step,
    power_decay,
    reconstruct,
    reconstruction_error,
    reconstruction_weights,
    with_example_keys,
)
from dgm_jax.training.parallel import (
    data_mesh,
    mesh_fetch,
    mesh_place,
    mesh_shard,
    mesh_step,
    pmap_step,
    replicate,
    shard,
    unreplicate,
)
from dgm_jax.training.post_hoc import WIDEST, _inner_product, exponent

WIDTHS = (0.05, 0.1)


def profile(t, gamma):
    return lambda tau: (gamma + 1) * tau**gamma / t ** (gamma + 1)


@pytest.mark.parametrize("width", [0.01, 0.05, 0.1, 0.2, WIDEST])
def test_exponent_gives_the_width(width):
    """The std of the profile, by quadrature, and the root by scipy."""
    gamma = exponent(width)
    p = profile(1.0, gamma)
    mean, square = (scipy.integrate.quad(lambda tau, k=k: tau**k * p(tau), 0, 1, epsabs=1e-13)[0] for k in (1, 2))
    assert (square - mean**2) ** 0.5 == pytest.approx(width, rel=1e-6)
    root = scipy.optimize.brentq(lambda g: (g + 1) - width**2 * (g + 2) ** 2 * (g + 3), -1e-6, 1e4, xtol=1e-12)
    assert gamma == pytest.approx(root, abs=1e-6)


def weights_of(decay, steps):
    """The weight of the parameters after each update in the average after the last."""
    decays = np.asarray(jax.vmap(decay)(jnp.arange(steps)), np.float64)
    return (1 - decays) * np.append(np.cumprod(decays[:0:-1])[::-1], 1.0)


@pytest.mark.parametrize("width", [0.05, 0.1, WIDEST])
def test_decay_has_the_profile(width):
    """The updates' weights: a sum of 1, nothing on the start, and the profile over each tenth of the run."""
    steps = 2000
    weights = weights_of(power_decay(width), steps)
    assert float(power_decay(width)(jnp.zeros((), jnp.int32))) == 0.0
    assert weights.sum() == pytest.approx(1, abs=1e-5)
    tenths = weights.reshape(10, -1).sum(1)
    edges = np.linspace(0, 1, 11) ** (exponent(width) + 1)
    np.testing.assert_allclose(tenths, np.diff(edges), atol=2e-4)


def test_inner_products_are_integrals():
    for s, a, t, b in [(3.0, 0.5, 3.0, 7.0), (2.0, 4.0, 5.0, 1.0), (5.0, 17.0, 2.0, 0.0), (1.5, 2.0, 1.0, 3.0)]:
        first, second = profile(s, a), profile(t, b)
        integral, _ = scipy.integrate.quad(lambda tau: first(tau) * second(tau), 0, min(s, t), epsabs=1e-13)  # noqa: B023
        found = _inner_product(*(np.array([value]) for value in (s, a, t, b)))
        assert float(found[0]) == pytest.approx(integral, rel=1e-9)


def test_what_is_stored_comes_back():
    """A profile that is among the stored ones has all of the weight."""
    steps, widths = [100, 100, 200, 200, 300, 300], [0.05, 0.1] * 3
    weights = reconstruction_weights(steps, widths, step=200, width=0.1)
    np.testing.assert_allclose(weights, [0, 0, 0, 1, 0, 0], atol=1e-6)


def test_weights_are_least_squares():
    """Against scipy's minimum of the integrated square on a fine grid, with the sum kept."""
    steps, widths = [60, 60, 100, 100], [0.05, 0.1, 0.05, 0.1]
    taus = (np.arange(20_000) + 0.5) / 200
    each = np.stack([np.where(taus < t, profile(t, exponent(w))(taus), 0) for t, w in zip(steps, widths, strict=True)])
    target = profile(100, exponent(0.07))(taus)
    found = reconstruction_weights(steps, widths, step=100, width=0.07)
    best = scipy.optimize.minimize(
        lambda w: np.mean((w @ each - target) ** 2) * 1e4,
        np.full(4, 0.25),
        method="SLSQP",
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
        options={"ftol": 1e-14, "maxiter": 1000},
    )
    np.testing.assert_allclose(found, best.x, atol=2e-3)
    assert found.sum() == pytest.approx(1, abs=1e-9)


@pytest.fixture(scope="module")
def walk():
    """Averages of a random walk, as steps track them, and those of the two stored widths every 100 steps."""
    asked = (*WIDTHS, 0.03, 0.07, 0.15)
    optimizer = optax.sgd(1.0)

    def loss_fn(params, batch, key):
        return -(params * jax.random.normal(key, (3,))).sum()

    step = jax.jit(make_step(loss_fn, optimizer, ema_decay=tuple(map(power_decay, asked))))
    state = init_state(jnp.zeros(3), optimizer, jax.random.key(0), averages=len(asked))
    stored = {}
    for n in range(1, 2001):
        state, _ = step(state, None)
        if n % 100 == 0:
            stored[n] = [np.asarray(average) for average in state.ema[:2]]
    return stored, dict(zip(asked, map(np.asarray, state.ema), strict=True))


@pytest.mark.parametrize(("width", "error"), [(0.07, 0.03), (0.15, 0.03), (0.03, 0.3)])
def test_an_average_is_made_of_others(walk, width, error):
    """Against the average that was tracked, in units of the distance between the two that were stored.

    A narrower one than any stored is less well in their span.
    """
    stored, tracked = walk
    steps = [n for n in stored for _ in WIDTHS]
    made = reconstruct(
        [a for pair in stored.values() for a in pair], steps, WIDTHS * len(stored), step=2000, width=width
    )
    apart = np.linalg.norm(tracked[0.05] - tracked[0.1])
    missed = np.linalg.norm(made - tracked[width])
    assert missed < error * apart
    assert missed < min(np.linalg.norm(tracked[other] - tracked[width]) for other in WIDTHS)


def test_several_averages_on_many_devices(tmp_path):
    """pmap, a mesh and a mesh that splits states have the averages of one device; a checkpoint holds them."""
    # not Adam, whose first updates are signs of gradients that may be nothing but rounding
    decays, optimizer = (0.9, power_decay(0.1)), optax.sgd(0.1, momentum=0.9)
    start = init_state(one.params(), optimizer, jax.random.key(4), averages=2)
    alone, by_pmap = data_mesh(jax.devices()[:1]), replicate(start)
    step = pmap_step(one.loss_fn, optimizer, ema_decay=decays)
    for n in range(3):
        by_pmap, _ = step(by_pmap, shard(one.batch(n)))
    found = {}
    for name, mesh in {"one": alone, "mesh": data_mesh(), "split": data_mesh(parameter_shards=4)}.items():
        state, step = mesh_place(start, mesh), mesh_step(one.loss_fn, optimizer, ema_decay=decays, mesh=mesh)
        for n in range(3):
            state, _ = step(state, mesh_shard(one.batch(n), mesh))
        found[name] = mesh_fetch(state)
    for other in (found["mesh"], found["split"], unreplicate(by_pmap)):
        one.assert_close(other.ema, found["one"].ema, rtol=1e-5, atol=1e-5)
    assert not np.allclose(found["one"].ema[0]["in"], found["one"].ema[1]["in"])
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(3, found["one"])
    for k in range(2):
        one.assert_close(load_params(tmp_path, part=f"ema/{k}"), found["one"].ema[k])


def test_bad_averages():
    state = init_state(one.params(), one.OPTIMIZER, jax.random.key(0))
    with pytest.raises(ValueError, match=r"Expected init_state\(..., averages=2\).*got one average"):
        make_step(with_example_keys(one.loss_fn), one.OPTIMIZER, ema_decay=(0.9, 0.99))(state, one.batch(0))
    with pytest.raises(ValueError, match="Expected one decay or more"):
        make_step(one.loss_fn, one.OPTIMIZER, ema_decay=())
    with pytest.raises(ValueError, match="0 <= ema_decay < 1"):
        make_step(one.loss_fn, one.OPTIMIZER, ema_decay=(0.9, 1.0))
    with pytest.raises(ValueError, match="averages >= 1"):
        init_state(one.params(), one.OPTIMIZER, jax.random.key(0), averages=0)


@pytest.mark.parametrize("width", [0.0, -0.1, 0.3, float("nan")])
def test_bad_widths(width):
    with pytest.raises(ValueError, match="0 < width <="):
        power_decay(width)


def test_the_missed_profile_is_known_beforehand():
    """Nothing for what is stored, little between the widths, much where a narrower one is asked for."""
    steps, widths = [n for n in range(50, 401, 50) for _ in WIDTHS], WIDTHS * 8
    of = {width: reconstruction_error(steps, widths, step=400, width=width) for width in (0.05, 0.07, 0.01)}
    assert of[0.05] < 1e-6 < of[0.07] < 0.1 < 0.3 < of[0.01]


def test_bad_reconstructions():
    with pytest.raises(ValueError, match="a step >= 1 and a width for each"):
        reconstruction_weights([1, 2], [0.1], step=1, width=0.1)
    with pytest.raises(ValueError, match="up to the last that is stored, 20"):
        reconstruction_weights([10, 20], [0.1, 0.1], step=21, width=0.1)
    with pytest.raises(ValueError, match="a step for each stored average"):
        reconstruct([jnp.zeros(2)], [10, 20], [0.1, 0.1], step=20, width=0.1)
