"""NaN and inf in training: found, named, and stopped at, or skipped where the optimiser does."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PyTree

from dgm_jax.training.state import TrainState


def skips_updates(state: TrainState) -> bool:
    """Whether the optimiser is in `optax.apply_if_finite`, which leaves out updates that are not finite."""

    def is_skipping(node: PyTree) -> bool:
        return isinstance(node, optax.ApplyIfFiniteState)

    return any(map(is_skipping, jax.tree.leaves(state.opt_state, is_leaf=is_skipping)))


def check_finite(state: TrainState, loss: float, made: int, latest: int | None) -> None:
    """Raise `FloatingPointError` where the loss or a parameter after step `made` is not finite.

    The message says the key of this step, from which its noise can be drawn again, and the first leaf that is not
    finite. NaN may have arisen earlier: since the step that was looked at before.

    Args:
        latest: the step of the checkpoint that is kept, if there is one.
    """
    bad = [
        jax.tree_util.keystr(path)
        for path, leaf in jax.tree_util.tree_leaves_with_path(state.params)
        if not jnp.isfinite(leaf).all()
    ]
    bad_loss = not (np.isfinite(loss) or skips_updates(state))
    if not bad and not bad_loss:
        return
    found = f"loss={loss}" + (f" and {len(bad)} leaves with NaN or inf, the first params{bad[0]}," if bad else "")
    key = jax.random.key_data(jax.random.fold_in(state.key, made - 1)).tolist()
    kept = "no checkpoint was saved" if latest is None else f"the checkpoint of step {latest} is kept"
    raise FloatingPointError(
        f"Expected a finite loss and parameters, as training cannot recover from NaN or inf (optax.apply_if_finite "
        f"skips such updates); got {found} after step {made}, whose key is {key} ({kept})."
    )
