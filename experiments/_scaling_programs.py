"""What training steps compute, move and sum, read from their programs: XLA's own counts, no clock.

Operations and bytes are those of `compiled.cost_analysis()` for one device at two sizes of the batch, through which a
line goes: the constant is the optimiser's part. The gradients' bytes are read from the text of the step compiled for
eight devices. A network's forward operations are counted on the lowered program, before compilation.
"""

import math
import re
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from dgm_jax.losses import diffusion_loss
from dgm_jax.parameterizations import as_denoiser, error_ratio
from dgm_jax.processes import variance_preserving
from dgm_jax.training import TrainState, init_state, make_step, with_example_keys
from dgm_jax.training.parallel import data_mesh, mesh_step
from experiments._scaling_laws import Counts

PROCESS = variance_preserving()
OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(2e-4))
BITS = re.compile(r"(?:[a-z]+)(\d+)")  # of a type's name: f32, bf16, s8
Event = tuple[int, ...]


def noise_loss(net: nn.Module) -> Any:
    """DDPM's: the squared error of the noise."""
    weight = partial(error_ratio, PROCESS, prediction="noise")

    def loss_fn(params: Any, x_0: jax.Array, keys: jax.Array) -> jax.Array:
        apply: Any = net.apply
        denoise = as_denoiser(partial(apply, params), PROCESS, prediction="noise")
        return diffusion_loss(denoise, PROCESS, x_0, keys, weight=weight).mean()

    return loss_fn


def initial(net: nn.Module, event: Event, seed: int = 0) -> TrainState:
    """The state at step 0."""
    params = net.init(jax.random.key(seed), jnp.zeros((1, *event)), jnp.zeros(1))
    return init_state(params, OPTIMIZER, jax.random.key(seed + 1))


def shape_of(batch: int, event: Event) -> jax.ShapeDtypeStruct:
    """A batch without its values."""
    return jax.ShapeDtypeStruct((batch, *event), jnp.float32)


def parameters(net: nn.Module, event: Event) -> int:
    """How many numbers the network holds."""
    state = jax.eval_shape(partial(initial, net, event))
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(state.params))


def step_counts(net: nn.Module, event: Event, *, batches: tuple[int, int] = (2, 4)) -> Counts:
    """Of a training step on one chip; no array is made."""
    state = jax.eval_shape(partial(initial, net, event))
    step: Any = jax.jit(make_step(with_example_keys(noise_loss(net)), OPTIMIZER, ema_decay=0.9999), donate_argnums=0)
    few, many = (cost(step.lower(state, shape_of(batch, event)).compile()) for batch in batches)

    def line(name: str) -> tuple[float, float]:
        slope = (many[name] - few[name]) / (batches[1] - batches[0])
        return few[name] - batches[0] * slope, slope

    return Counts(line("flops"), line("bytes accessed"), *summed(net, event))


def summed(net: nn.Module, event: Event) -> tuple[float, int]:
    """Bytes and arrays of all all-reduces of a data-parallel step on all devices, of which there must be several."""
    mesh = data_mesh()
    if mesh.size < 2:
        raise ValueError(f"Expected two devices or more, as one sums nothing; got {mesh.size}.")
    state = jax.eval_shape(partial(initial, net, event))
    step: Any = mesh_step(noise_loss(net), OPTIMIZER, ema_decay=0.9999, mesh=mesh)
    return all_reduced(step.lower(state, shape_of(mesh.size, event)).compile().as_text())


def all_reduced(program: str) -> tuple[float, int]:
    """Bytes and number of the results of all all-reduces in a compiled program's text."""
    found, arrays = 0.0, 0
    for results in re.findall(r"= (.*?) all-reduce(?:-start)?\(", program):
        for kind, dims in re.findall(r"(\w+)\[([\d,]*)\]", results):
            bits = BITS.fullmatch(kind)
            arrays += 1
            found += (int(bits[1]) if bits else 8) / 8 * math.prod(int(n) for n in dims.split(",") if n)
    return found, arrays


def cost(program: Any) -> dict[str, float]:
    """XLA's counts of a lowered or compiled program."""
    found = program.cost_analysis()
    return found[0] if isinstance(found, list) else found
