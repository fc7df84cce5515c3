"""How fast training goes: examples and model FLOP/s, and the share of the chips' peak.

Model FLOPs are those of the mathematics, counted once: 3 forward passes an example, as the backward pass costs two.
Recomputation (--remat) and padding are left out, so that the share falls where time is spent on them (Chowdhery et al.
2022, arXiv:2204.02311, appendix B). They are read from XLA's count of the forward pass.
"""

import time

import flax.linen as nn
import jax
import jax.numpy as jnp

from experiments._peaks import chip_of


def forward_flops(network: nn.Module, event: tuple[int, ...], *, classes: int = 0) -> float:
    """FLOPs of the network on one example, a multiplication and an addition as two; nothing is compiled."""
    labels = (jnp.zeros(1, jnp.int32),) if classes else ()
    arguments = (jnp.zeros((1, *event)), jnp.zeros(1), *labels)
    params = jax.eval_shape(network.init, jax.random.key(0), *arguments)
    counted = jax.jit(network.apply).lower(params, *arguments).cost_analysis()  # type: ignore[arg-type]
    return float(counted["flops"])  # type: ignore[index]


def peak_flops() -> tuple[float, str]:
    """FLOP/s of all devices of the run together and where the figure is from: published, or a measured product."""
    chip = chip_of(jax.devices()[0].device_kind)
    if chip is not None:
        return chip.flops * jax.device_count(), f"published for {chip.name}"
    return _matmul_rate() * jax.process_count(), "a float32 matrix product here"


def _matmul_rate(size: int = 1024, tries: int = 5) -> float:
    """FLOP/s of this process's best of some products, all devices at once."""
    n = jax.local_device_count()
    product = jax.pmap(lambda x: x @ x, devices=jax.local_devices())
    x = jnp.ones((n, size, size), jnp.float32)
    product(x).block_until_ready()
    best = float("inf")
    for _ in range(tries):
        begun = time.perf_counter()
        product(x).block_until_ready()
        best = min(best, time.perf_counter() - begun)
    return 2 * size**3 * n / best


class Meter:
    """Rates since the last reading; the first has none, as it holds the compilation."""

    def __init__(self, batch: int, flops: float, peak: float):
        self._batch, self._flops, self._peak = batch, 3 * flops * batch, peak
        self._last: tuple[int, float] | None = None

    def read(self, step: int) -> dict[str, float]:
        """Examples a second, model FLOP/s and share of the peak over the steps since the last reading."""
        now, last = time.monotonic(), self._last
        self._last = (step, now)
        if last is None or step <= last[0]:
            return {}
        rate = (step - last[0]) / (now - last[1])
        flops = rate * self._flops
        return {"examples_per_second": rate * self._batch, "model_flops": flops, "share_of_peak": flops / self._peak}

    def pause(self) -> None:
        """What comes until the next reading is not training."""
        self._last = None
