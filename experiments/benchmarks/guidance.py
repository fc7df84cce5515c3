"""What steering costs: guided against unguided sampling, inverse problems, and encoding against sampling.

- Classifier-free guidance of B examples by one batched call, over unguided sampling of 2B with the same network.
- Pseudoinverse guidance, by a backward pass of the network and by a forward product, over unguided sampling.
- Encoding, the probability-flow ODE from data to noise, over sampling by it in as many steps.

    python -m experiments.benchmarks.guidance [--write]

Time: about 5 minutes on 2 cores. Bounds: 1.05, 2.5, and 1 up to the clock. Measured: see docs/benchmarks.md.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import tyro

from dgm_jax.networks import MLP, UNet, unet_28x28
from dgm_jax.parameterizations import as_denoiser, classifier_free_batched, operators, pigdm, pigdm_forward
from dgm_jax.processes import uniform
from dgm_jax.samplers import sample_ode, solve_ode
from dgm_jax.typing import Denoiser
from experiments.benchmarks._cases import PROCESS, Config
from experiments.benchmarks._table import Row, ratio_row, report
from experiments.benchmarks._timing import rounds

CLASSES = 10


def rows(name: str, net: Any, event: tuple[int, ...], *, batch: int, steps: int, repeats: int) -> list[Row]:
    """The four ratios of one network."""
    params = net.init(jax.random.key(0), jnp.zeros((1, *event)), jnp.zeros(1), jnp.zeros(1, int))
    ts = uniform(steps, t_min=1e-3)

    def given(params: Any, x_t: jax.Array, t: jax.Array, labels: jax.Array) -> jax.Array:
        return as_denoiser(lambda x_t, t: net.apply(params, x_t, t, labels), PROCESS, prediction="v")(x_t, t)

    def plain(params: Any, labels: jax.Array) -> Denoiser:
        return lambda x_t, t: given(params, x_t, t, labels)

    def guided(params: Any, labels: jax.Array) -> Denoiser:
        return classifier_free_batched(partial(given, params), labels, CLASSES, 2.0)

    def observed(params: Any, labels: jax.Array, rule: Callable[..., Denoiser] = pigdm) -> Denoiser:
        mask = jnp.arange(event[0]).reshape(-1, *(1 for _ in event[1:])) % 2 * jnp.ones(event)
        return rule(
            plain(params, labels),
            PROCESS,
            operators.mask(mask),
            jnp.zeros((len(labels), *event)),
            noise_std=0.1,
            data_std=0.5,
        )

    def drawn(denoiser: Callable[..., Denoiser], n: int) -> Callable[[], jax.Array]:
        labels, keys = jnp.arange(n) % CLASSES, jax.random.split(jax.random.key(1), n)

        @jax.jit
        def draw(params: Any, keys: jax.Array, labels: jax.Array) -> jax.Array:
            return sample_ode(
                denoiser(params, labels), PROCESS, keys, (n, *event), ts=ts, solver=diffrax.Euler(), coordinates="data"
            ).x

        return lambda: draw(params, keys, labels)

    @jax.jit
    def encode(params: Any, x: jax.Array, labels: jax.Array) -> jax.Array:
        denoise = plain(params, labels)
        return solve_ode(denoise, PROCESS, x, ts=ts[::-1], solver=diffrax.Euler(), coordinates="data").x

    x, labels = jax.random.normal(jax.random.key(2), (batch, *event)) / 2, jnp.arange(batch) % CLASSES
    s = rounds(
        {
            "guided": drawn(guided, batch),
            "twice": drawn(plain, 2 * batch),
            "pigdm": drawn(observed, batch),
            "forward": drawn(partial(observed, rule=pigdm_forward), batch),
            "unguided": drawn(plain, batch),
            "encoded": lambda: encode(params, x, labels),
        },
        repeats=repeats,
    )
    return [
        ratio_row(f"{name}: guided / unguided of twice the batch", s["guided"], s["twice"], at_most=1.05),
        ratio_row(f"{name}: pseudoinverse guidance / unguided", s["pigdm"], s["unguided"], at_most=2.5),
        ratio_row(f"{name}: the same by a forward product / unguided", s["forward"], s["unguided"], at_most=2.5),
        ratio_row(f"{name}: encoding / sampling", s["encoded"], s["unguided"], at_most=1.05),
    ]


def main(config: Config) -> None:
    """Time both networks and print the table."""
    found = []
    if config.smoke:
        config = replace(config, steps=3, mlp_batch=8, mlp_repeats=1, unet_batch=2, unet_repeats=1)
    steps = config.steps // 2 if not config.smoke else config.steps
    net = UNet(4, (1,), 1, groups=2, patch=4, num_classes=CLASSES) if config.smoke else unet_28x28(num_classes=CLASSES)
    mlp = MLP(num_classes=CLASSES)
    size = f"MLP 3 x 128, batch {config.mlp_batch}"
    found += rows(size, mlp, (2,), batch=config.mlp_batch, steps=steps, repeats=config.mlp_repeats)
    size = f"U-Net 28 x 28, batch {config.unet_batch}"
    found += rows(size, net, (28, 28, 1), batch=config.unet_batch, steps=steps, repeats=config.unet_repeats)
    command = "python -m experiments.benchmarks.guidance"
    report("guidance", command, found, write=config.write and not config.smoke)


if __name__ == "__main__":
    main(tyro.cli(Config))
