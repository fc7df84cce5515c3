"""A long training run of experiments: over all devices, shown, logged, and resumed from its newest checkpoint."""

from collections.abc import Callable, Iterator
from typing import Any

from dgm_jax.training import Checkpoints, TrainState, train
from dgm_jax.training.parallel import replicate, shard, unreplicate
from experiments._run import Run, progress


def train_on_devices(
    run: Run,
    device_step: Callable[..., Any],
    state: TrainState,
    batches: Iterator[Any],
    *,
    steps: int,
    shown: str = "loss",
) -> TrainState:
    """The state after `steps` steps in all, of which an earlier process may have made some.

    Args:
        device_step: of a replicated state and a sharded batch, as `pmap_step` makes.
        state: at step 0.
        shown: the metric that the progress bar shows.
    """
    with Checkpoints(run.directory / "checkpoints", keep=2) as checkpoints:
        start = checkpoints.latest() or 0
        run.forget_after(start)
        if start:
            print(f"Resumed at step {start} of {steps}.")
        with progress(steps, start=start) as report:

            def on_metrics(step: int, metrics: dict[str, Any]) -> None:
                run.log(step=step, **{name: float(value) for name, value in metrics.items()})
                report(step, float(metrics[shown]))

            return train(
                lambda state, batch: device_step(state, shard(batch)),
                state,
                batches,
                steps=steps,
                checkpoints=checkpoints,
                save_every=max(steps // 4, 1),
                log_every=5,
                on_metrics=on_metrics,
                place=replicate,
                fetch=unreplicate,
            )
