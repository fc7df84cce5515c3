"""What diffrax costs: the library's samplers over the same steps written by hand as one `lax.scan`.

The hand-written loops are what one would write without a library: coefficients of every step worked out beforehand,
then x <- a x + b D(x, t) (+ c noise), the noise from a key per example folded with the step's number. The ODE's two
outputs are checked to agree; the SDE's, which draw other noise, to have the same mean square within five standard
errors.

    python -m experiments.benchmarks.against_scan [--write]

Time: about 4 minutes on 2 cores. Expected: 0.95 to 1.05; bound 1.05. Measured: see docs/benchmarks.md.
"""

from dataclasses import replace

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import Array, Float

from dgm_jax.processes import uniform
from dgm_jax.samplers import solve_ode, solve_sde
from experiments.benchmarks._cases import PROCESS, Case, Config, mlp, tiny_unet, unet
from experiments.benchmarks._table import Row, ratio_row, report
from experiments.benchmarks._timing import rounds


def euler_coefficients(ts: Float[np.ndarray, " points"], *, stochasticity: float) -> tuple[Array, Array, Array]:
    """(a, b, c) of each Euler step x <- a x + b D + c noise, for VP with beta(t) = 0.1 + 19.9 t.

    dx = [-beta x/2 - (1 + eta^2)/2 beta score] dt + eta sqrt(beta) dW with score = (alpha D - x)/sigma^2.
    """
    t, h = ts[:-1].astype(np.float64), -np.diff(ts.astype(np.float64))
    beta = 0.1 + 19.9 * t
    alpha = np.exp(-(0.1 * t + 19.9 * t**2 / 2) / 2)
    gain = (1 + stochasticity**2) / 2 * beta / (1 - alpha**2)
    a = 1 + h * (beta / 2 - gain)
    b = h * gain * alpha
    c = stochasticity * np.sqrt(beta * h)
    return jnp.float32(a), jnp.float32(b), jnp.float32(c)


def rows(case: Case, *, steps: int, repeats: int) -> list[Row]:
    """The two ratios of one network."""
    ts = np.asarray(uniform(steps, t_min=1e-3))
    key_x, key = jax.random.split(jax.random.key(3))
    keys = jax.random.split(key, case.shape[0])
    x = jax.random.normal(key_x, case.shape)
    times = jnp.asarray(ts[:-1])
    ode, sde = euler_coefficients(ts, stochasticity=0.0), euler_coefficients(ts, stochasticity=1.0)

    @jax.jit
    def scan_ode(params, x):
        denoise = case.denoiser(params)

        def step(x, now):
            t, a, b = now
            return a * x + b * denoise(x, jnp.full(len(x), t)), None

        return jax.lax.scan(step, x, (times, ode[0], ode[1]))[0]

    @jax.jit
    def scan_sde(params, x, keys):
        denoise = case.denoiser(params)

        def step(x, now):
            i, t, a, b, c = now
            noise = jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, i), x.shape[1:]))(keys)
            return a * x + b * denoise(x, jnp.full(len(x), t)) + c * noise, None

        return jax.lax.scan(step, x, (jnp.arange(steps), times, *sde))[0]

    @jax.jit
    def diffrax_ode(params, x):
        return solve_ode(case.denoiser(params), PROCESS, x, ts=ts, solver=diffrax.Euler()).x

    @jax.jit
    def diffrax_sde(params, x, keys):
        return solve_sde(case.denoiser(params), PROCESS, x, keys, ts=ts).x

    candidates = {
        "scan ode": lambda: scan_ode(case.params, x),
        "diffrax ode": lambda: diffrax_ode(case.params, x),
        "scan sde": lambda: scan_sde(case.params, x, keys),
        "diffrax sde": lambda: diffrax_sde(case.params, x, keys),
    }
    check_same_samples(*(np.asarray(candidate()) for candidate in candidates.values()))
    s = rounds(candidates, repeats=repeats)
    label = f"{case.name}, {steps} steps:"
    return [
        ratio_row(f"{label} ODE, diffrax / scan", s["diffrax ode"], s["scan ode"], at_most=1.05),
        ratio_row(f"{label} SDE, diffrax / scan", s["diffrax sde"], s["scan sde"], at_most=1.05),
    ]


def check_same_samples(scan_ode: np.ndarray, ode: np.ndarray, scan_sde: np.ndarray, sde: np.ndarray) -> None:
    """Raise `ValueError` unless the loops solve the same equations as the library."""
    difference = np.linalg.norm(ode - scan_ode) / np.linalg.norm(scan_ode)
    if not difference < 1e-3:
        raise ValueError(f"Expected equal ODE samples, as both take the same steps; got relative {difference=}.")
    squares = [(samples.reshape(len(samples), -1) ** 2).mean(1) for samples in (scan_sde, sde)]
    error = np.sqrt(sum(square.var() / len(square) for square in squares))
    gap = abs(squares[0].mean() - squares[1].mean())
    if len(sde) >= 8 and not gap < 5 * error:
        raise ValueError(f"Expected SDE samples of one law, as both solve the reverse SDE; got {gap=}, {error=}.")


def main(config: Config) -> None:
    """Time both networks and print the table."""
    net = tiny_unet() if config.smoke else None
    if config.smoke:
        config = replace(config, steps=20, mlp_batch=16, mlp_repeats=2, unet_batch=1, unet_repeats=1, write=False)
    table = rows(mlp(config.mlp_batch), steps=config.steps, repeats=config.mlp_repeats)
    table += rows(unet(config.unet_batch, net=net), steps=config.steps, repeats=config.unet_repeats)
    report("against_scan", "python -m experiments.benchmarks.against_scan", table, write=config.write)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
