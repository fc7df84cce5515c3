"""One step of gradient descent on any loss, as a pure function of the state and a batch.

    gradients = d loss(params, batch, fold_in(key, step)) / d params
    params   <- params + optimizer.update(gradients)
    ema      <- decay ema + (1 - decay) params

The step's key depends on nothing but the run's key and the step's number, so a resumed run draws the noise that the
uninterrupted one would have drawn. Clipping, schedules and weight decay belong to the optimizer (`optax.chain`).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

from dgm_jax.numerics import example_keys
from dgm_jax.training.state import TrainState
from dgm_jax.typing import Keys

LossFn = Callable[..., Any]  # (params, batch, key) -> scalar, or (scalar, metrics)
Metrics = dict[str, Array]
Step = Callable[[TrainState, PyTree], tuple[TrainState, Metrics]]
GradientsOf = Callable[..., tuple[PyTree, Metrics]]  # (loss_fn, params, batch, key) -> (gradients, metrics)
OneDecay = float | Callable[[Int[Array, ""]], Float[Array, ""]]
Decay = OneDecay | tuple[OneDecay, ...]


def loss_gradients(loss_fn: LossFn, params: PyTree, batch: PyTree, key: Keys) -> tuple[PyTree, Metrics]:
    """Gradients of the loss with respect to `params`, and its metrics with the loss among them."""

    def scalar(params: PyTree) -> tuple[Float[Array, ""], Metrics]:
        result = loss_fn(params, batch, key)
        loss, metrics = result if isinstance(result, tuple) else (result, {})
        loss = jnp.asarray(loss)
        if loss.ndim != 0:
            raise ValueError(
                f"Expected loss_fn to return a scalar, as the reduction is the caller's: take the mean of "
                f"per-example values; got {loss.shape=}."
            )
        taken = sorted({"loss", "gradient_norm"} & set(metrics))
        if taken:
            raise ValueError(f"Expected metrics of other names than the step's own; got {taken} from loss_fn.")
        return loss, {name: jnp.asarray(value).astype(loss.dtype) for name, value in metrics.items()}

    (loss, metrics), gradients = jax.value_and_grad(scalar, has_aux=True)(params)
    return gradients, {"loss": loss, **metrics}


def make_step(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    *,
    ema_decay: Decay,
    gradients_of: GradientsOf = loss_gradients,
) -> Step:
    """`step(state, batch) -> (state, metrics)`; compile it with `jax.jit(step, donate_argnums=0)`.

    Args:
        loss_fn: (params, batch, key) -> scalar, or (scalar, dict of metrics). `key` is one key; a loss that wants
            one key per example is wrapped in `with_example_keys`.
        ema_decay: in [0, 1), or a function of the number of updates made before this one (see `ema_warmup`); a tuple
            of them for a state with so many averages.
        gradients_of: (loss_fn, params, batch, key) -> (gradients, metrics); several devices average them here.

    Returns:
        The step. Its metrics are `loss`, `gradient_norm` (before clipping) and those of `loss_fn`, as floats.
    """
    check_decay(ema_decay)

    def step(state: TrainState, batch: PyTree) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(state.key, state.step)
        return update(state, *gradients_of(loss_fn, state.params, batch, key), optimizer, ema_decay)

    return step


def update(
    state: TrainState, gradients: PyTree, metrics: Metrics, optimizer: optax.GradientTransformation, ema_decay: Decay
) -> tuple[TrainState, Metrics]:
    """The state after one update with these gradients, and the metrics with their norm among them."""
    params, opt_state = descend(optimizer, gradients, state.opt_state, state.params)
    ema = average(state.ema, params, ema_decay, state.step)
    state = TrainState(step=state.step + 1, params=params, ema=ema, opt_state=opt_state, key=state.key)
    return state, {**metrics, "gradient_norm": optax.tree.norm(gradients)}


def with_example_keys(loss_fn: LossFn) -> LossFn:
    """The loss with one key per example: the single key is split along the leading axis of the batch."""

    def wrapped(params: PyTree, batch: PyTree, key: Keys) -> Any:
        return loss_fn(params, batch, example_keys(key, batch_size(batch)))

    return wrapped


def ema_warmup(decay: float) -> Callable[[Int[Array, ""]], Float[Array, ""]]:
    """step -> min(decay, (1 + step) / (10 + step)): early averages forget the initial parameters quickly."""
    check_decay(decay)
    return lambda step: jnp.minimum(decay, (1 + step.astype(float)) / (10 + step.astype(float)))


def descend(
    optimizer: optax.GradientTransformation, gradients: PyTree, opt_state: PyTree, params: PyTree
) -> tuple[PyTree, PyTree]:
    """The parameters and the optimiser's state after one update."""
    with jax.numpy_dtype_promotion("standard"):  # optax mixes integer counts with floats, which strict mode refuses
        updates, opt_state = optimizer.update(gradients, opt_state, params)
    return optax.apply_updates(params, updates), opt_state


def average(ema: PyTree, params: PyTree, decay: Decay, step: Int[Array, ""]) -> PyTree:
    """The moving average after `step` updates and one more, or several of them."""
    if isinstance(decay, tuple):
        if not isinstance(ema, tuple) or len(ema) != len(decay):
            held = f"{len(ema)} averages" if isinstance(ema, tuple) else "one average"
            raise ValueError(
                f"Expected init_state(..., averages={len(decay)}), as there are so many decays; got {held}."
            )
        return tuple(average(each, params, one, step) for each, one in zip(ema, decay, strict=True))
    of_old = decay(step) if callable(decay) else decay

    def moved(old: Array, new: Array) -> Array:
        weight = jnp.asarray(of_old, old.dtype)
        return weight * old + (1 - weight) * new

    return jax.tree.map(moved, ema, params)


def batch_size(batch: PyTree) -> int:
    """The length of the leading axis, which all leaves share."""
    shapes = [leaf.shape for leaf in jax.tree.leaves(batch)]
    if len({shape[:1] for shape in shapes}) != 1 or () in shapes:
        raise ValueError(f"Expected one leading axis common to all leaves, as it counts the examples; got {shapes}.")
    return shapes[0][0]


def check_decay(decay: Decay) -> None:
    """Raise `ValueError` unless `decay` is a function or lies in [0, 1)."""
    if isinstance(decay, tuple):
        for one in decay:
            check_decay(one)
        if not decay:
            raise ValueError("Expected one decay or more, as samplers use an average; got an empty tuple.")
        return
    if not callable(decay) and not 0 <= decay < 1:
        raise ValueError(f"Expected 0 <= ema_decay < 1, as 1 would keep the initial parameters; got {decay=}.")
