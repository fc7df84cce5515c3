"""The training step of `train_images` from its configuration: optimiser, averages, back end."""

from functools import partial
from typing import TYPE_CHECKING, Any

import optax

from dgm_jax.training import ema_warmup, power_decay
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
from experiments._image_models import ImageModel

if TYPE_CHECKING:
    from experiments.train_images import Config


def optimizer_of(config: "Config") -> optax.GradientTransformation:
    """Adam with a linear warm-up and clipping, as the papers train."""
    rate = optax.schedules.warmup_constant_schedule(0.0, config.learning_rate, max(config.warmup, 1))
    steps = optax.chain(optax.clip_by_global_norm(config.clip), optax.adam(rate))
    return optax.apply_if_finite(steps, config.skip_nonfinite) if config.skip_nonfinite else steps


def averages(config: "Config") -> Any:
    """One moving average, and those of `widths` beside it."""
    decay = ema_warmup(config.ema_decay)
    return (decay, *map(power_decay, config.widths)) if config.widths else decay


def params_of(ema: Any, config: "Config") -> Any:
    """The average that samplers use, of the state's."""
    return ema[0] if config.widths else ema


def back_end(config: "Config", model: ImageModel) -> tuple[Any, Any, Any]:
    """(step of a placed state and a local batch, place, fetch) of the chosen back end."""
    loss_fn, optimizer = model.loss(dropped=config.dropped, flip=config.flip), optimizer_of(config)
    options: dict[str, Any] = {"ema_decay": averages(config), "pieces": config.pieces}
    if config.back_end == "pmap":
        by_pmap = pmap_step(loss_fn, optimizer, **options)
        return lambda state, batch: by_pmap(state, shard(batch)), replicate, unreplicate
    mesh = data_mesh(parameter_shards=config.parameter_shards)
    by_mesh = mesh_step(loss_fn, optimizer, mesh=mesh, **options)
    return lambda state, batch: by_mesh(state, mesh_shard(batch, mesh)), partial(mesh_place, mesh=mesh), mesh_fetch
