"""Rows of the oracle table for training: averages, steps in pieces and on devices, resizing inside networks."""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.signal

from dgm_jax.networks import fir_downsample, fir_upsample
from dgm_jax.training import init_state, make_step, power_decay, reconstruct
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
from dgm_jax.training.post_hoc import exponent
from experiments._oracle_rows import Row, paper, relative, worst

KARRAS, ZHANG = "2312.02696", "1904.11486"
WIDTHS, STEPS = (0.05, 0.1), 400


def training_rows(names: Sequence[str]) -> Iterator[Row]:
    """Against sums and derivatives by hand. No row depends on a process."""
    yield from average_rows()
    yield from step_rows()
    taps, x = np.array([1.0, 3.0, 3.0, 1.0]), np.random.default_rng(0).normal(size=(1, 6, 8, 2))
    oracle = "scipy.signal.upfirdn"
    down = along_both(lambda v: scipy.signal.upfirdn(taps / 8, v)[2:-1:2], x)
    yield Row(
        "`fir_downsample`", paper(ZHANG), "none", oracle, worst(relative(fir_downsample(jnp.asarray(x)), down), 1e-12)
    )
    up = along_both(lambda v: scipy.signal.upfirdn(taps / 4, v, 2)[1:-1], x)
    yield Row("`fir_upsample`", paper(ZHANG), "none", oracle, worst(relative(fir_upsample(jnp.asarray(x)), up), 1e-12))


def along_both(function: Any, x: np.ndarray) -> np.ndarray:
    """The function of each column, then of each row."""
    return np.apply_along_axis(function, 2, np.apply_along_axis(function, 1, x))


def average_rows() -> Iterator[Row]:
    """The k-th of n parameters has the weight (k/n)^(gamma + 1) - ((k - 1)/n)^(gamma + 1), the profile's integral."""
    asked = (*WIDTHS, 0.07)
    step = jax.jit(
        make_step(lambda p, batch, key: -(p * batch).sum(), optax.sgd(1.0), ema_decay=tuple(map(power_decay, asked)))
    )
    state = init_state(jnp.zeros(3), optax.sgd(1.0), jax.random.key(0), averages=len(asked))
    moves = np.random.default_rng(1).normal(size=(STEPS, 3))
    stored: dict[int, Any] = {}
    for n, move in enumerate(moves, start=1):
        state, _ = step(state, jnp.asarray(move))
        if n % 50 == 0:
            stored[n] = state.ema
    walk = np.cumsum(moves, axis=0)

    def exact(width: float, n: int) -> np.ndarray:
        return np.diff(np.linspace(0, 1, n + 1) ** (exponent(width) + 1)) @ walk[:n]

    errors = [relative(stored[n][k], exact(width, n)) for n in stored for k, width in enumerate(asked)]
    oracle = "the walk's weighted sum, by integrals of the profile"
    yield Row("`power_decay`", paper(KARRAS, "eq. 3 and 4"), "none", oracle, worst(errors, 1e-9))
    trees = [stored[n][k] for n in stored for k in range(2)]
    steps, widths = [n for n in stored for _ in WIDTHS], WIDTHS * len(stored)
    made = [reconstruct(trees, steps, widths, step=200, width=width) for width in WIDTHS]
    error = worst([relative(a, exact(width, 200)) for a, width in zip(made, WIDTHS, strict=True)], 1e-7)
    yield Row("`reconstruct`", paper(KARRAS, "app. C"), "none", "one of the stored averages, from all", error)
    between = np.linalg.norm(exact(0.05, STEPS) - exact(0.1, STEPS))
    missed = np.linalg.norm(reconstruct(trees, steps, widths, step=STEPS, width=0.07) - exact(0.07, STEPS)) / between
    oracle = "a third width's sum, over the distance of the two; 5 % is allowed"
    yield Row("`reconstruct`", paper(KARRAS, "app. C"), "none", oracle, (float(missed), 0.05))


def step_rows() -> Iterator[Row]:
    """One step of gradient descent on |p - x|^2, whose gradient is 2 (p - mean x), by every way of taking it."""
    x = np.random.default_rng(2).normal(size=(8 * jax.device_count(), 3))
    exact = 0.5 - 0.1 * 2 * (0.5 - x.mean(0))
    start = init_state(jnp.full(3, 0.5), optax.sgd(0.1), jax.random.key(0))

    def loss_fn(params: Any, batch: Any, keys: Any) -> Any:
        return ((params[None] - batch) ** 2).sum(1).mean()

    options: dict[str, Any] = {"ema_decay": 0.9}
    for pieces, how in ((1, "the gradient by hand"), (4, "the same, in four pieces")):
        by_pmap, _ = pmap_step(loss_fn, optax.sgd(0.1), pieces=pieces, **options)(replicate(start), shard(x))
        yield Row("`pmap_step`", "", "none", how, worst(relative(unreplicate(by_pmap).params, exact), 1e-12))
        mesh = data_mesh()
        by_mesh, _ = mesh_step(loss_fn, optax.sgd(0.1), mesh=mesh, pieces=pieces, **options)(
            mesh_place(start, mesh), mesh_shard(x, mesh)
        )
        yield Row("`mesh_step`", "", "none", how, worst(relative(mesh_fetch(by_mesh).params, exact), 1e-12))
