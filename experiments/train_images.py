"""Diffusion models of images, from a laptop to a pod: the papers' configurations by one command.

    python -m experiments.train_images                             # digits of 28 x 28 pixels, on this machine
    python -m experiments.train_images ddpm --data-dir ~/data      # a paper's configuration: see _image_papers.py
    python -m experiments.train_images --smoke                     # the same code on tiny sizes, in a minute

On a Cloud TPU slice or under SLURM the same command, started on every host, finds the others by itself; elsewhere each
process is told: --coordinator <host>:<port> --process-id <i> --num-processes <n>. docs/pods.md has the steps.

Data sets are those of the TFDS catalog by name (mnist, fashion_mnist, cifar10, cifar100, celeb_a,
imagenet_resized/64x64, ...), prepared once by `dgm_jax.data.download`; mnist5k and digits need no network. Computation
is in --dtype; parameters, their averages and the optimiser's state are float32. It writes config.json, metrics.jsonl,
tensorboard/, checkpoints/, samples-<step>.png and, at the end, scores.json to runs/<name>/, and nothing elsewhere
(--fresh renames a run that is there).
Running it again resumes, on any number of devices and hosts and with either back end. SIGTERM saves and ends with
status 75. With --widths, averages of those relative widths are kept and stored, from which any other is made afterwards
(Karras et al. 2024, arXiv:2312.02696): `sample_images --width 0.13`.
"""

import math
import sys
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

import jax

from dgm_jax.data.records import read
from dgm_jax.training import Checkpoints, Preempted, init_state, saved_steps, train
from dgm_jax.training.preemption import watch_for_preemption
from experiments._cluster import HEARTBEAT, first, join, open_together
from experiments._image_data import ImageRecords, image_records, levels_of, local_batches
from experiments._image_evaluation import Evaluation
from experiments._image_models import ImageModel, NetworkName, ProcessName, image_model
from experiments._image_papers import of_paper
from experiments._image_steps import averages, back_end, optimizer_of, params_of
from experiments._reports import Reports
from experiments._run import Run, parse, read_config
from experiments._throughput import Meter, forward_flops, peak_flops


@dataclass(frozen=True)
class Config:
    """Train a diffusion model on images, on all devices of all processes."""

    dataset: str = "mnist5k"  # a TFDS name
    data_dir: str | None = None  # where data sets are prepared; None: $TFDS_DATA_DIR, or the cache directory
    train_split: str = "train"
    test_split: str = "test"
    size: int = 0  # height and width: larger images are shrunk, smaller ones padded; 0: as they are
    classes: int = 0  # learn labels 0 .. classes - 1; 0: unconditional
    dropped: float = 0.1  # share of the labels that are dropped, for classifier-free guidance
    flip: bool = False  # mirror half of the images
    network: NetworkName = "unet_28x28"
    process: ProcessName = "edm"
    dropout: float = 0.0
    batch: int = 64  # examples a step, over all devices of all processes
    steps: int = 1000
    learning_rate: float = 1e-3
    warmup: int = 50  # steps of a linear rise
    clip: float = 1.0  # of the gradients' norm
    ema_decay: float = 0.99
    widths: tuple[float, ...] = ()  # keep averages of these relative widths too, as in (0.05, 0.1)
    skip_nonfinite: int = 0  # leave out updates with NaN or inf, at most so many in a row
    held_out: int = 64  # images in an evaluation, and drawn
    coded: int = 16  # of which bits/dim are measured
    sampling_steps: int = 18  # of Heun, and of Bosh3 for bits/dim
    seed: int = 0
    # how it is computed: changes nothing but the order of summation
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the computation; bfloat16 rounds, of course
    back_end: Literal["pmap", "mesh"] = "pmap"
    parameter_shards: int = 1  # with mesh: split parameters and the optimiser's state over so many devices
    pieces: int = 1  # gradient accumulation: take each batch in so many pieces
    remat: bool = False  # compute activations twice and store fewer
    evaluate_every: int = 500
    save_every: int = 250
    log_every: int = 10
    coordinator: str | None = None  # host:port of process 0
    process_id: int | None = None
    num_processes: int | None = None
    heartbeat: int = HEARTBEAT  # seconds after which a silent process counts as dead
    run_dir: str = "runs/train_images"
    fresh: bool = False  # move a run that is there aside
    changed: bool = False  # go on although the configuration has changed
    smoke: bool = False  # the same code on tiny sizes

    NOT_SCIENCE: ClassVar[tuple[str, ...]] = (
        *("data_dir", "back_end", "parameter_shards", "pieces", "remat", "evaluate_every", "save_every", "log_every"),
        *("coordinator", "process_id", "num_processes", "heartbeat", "changed"),
    )


SMOKE = Config(
    dataset="digits",
    network="smallest",
    classes=10,
    batch=16,
    steps=6,
    widths=(0.05, 0.1),
    held_out=8,
    coded=2,
    sampling_steps=2,
    evaluate_every=3,
    save_every=3,
    log_every=1,
    run_dir="runs/train_images-smoke",
    smoke=True,
)


def model_of(config: Config, shape: tuple[int, int, int]) -> ImageModel:
    """The model of a configuration for images of `shape`."""
    return image_model(
        config.network,
        config.process,
        shape,
        levels=levels_of(config.dataset),
        classes=config.classes,
        dropout=config.dropout,
        dtype=config.dtype,
        remat=config.remat,
    )


def check(config: Config) -> None:
    """Refuse what could only fail later."""
    counts = ("steps", "batch", "evaluate_every", "save_every", "log_every", "pieces", "held_out", "coded")
    counts = (*counts, "sampling_steps", "parameter_shards")
    rules = (
        *((name, getattr(config, name) >= 1, ">= 1, as it counts") for name in counts),
        *((name, getattr(config, name) >= 0, ">= 0") for name in ("size", "classes", "warmup", "skip_nonfinite")),
        ("learning_rate", 0 < config.learning_rate < math.inf, "finite and above 0"),
        ("clip", config.clip > 0, "> 0, inf for none"),
        ("dropped", 0 <= config.dropped <= 1, "in [0, 1], as it is a share"),
        ("dropout", 0 <= config.dropout < 1, "in [0, 1), as it is a share"),
        ("seed", 0 <= config.seed < 2**32 - 1, "in [0, 2^32 - 1), as the shuffle's seed has 32 bits"),
    )
    for name, holds, rule in rules:
        if not holds:
            raise SystemExit(f"Expected {name} {rule}; got {getattr(config, name)}.")
    if config.parameter_shards > 1 and config.back_end == "pmap":
        raise SystemExit("Expected --back-end mesh with --parameter-shards, as pmap holds whole states.")
    parts = jax.device_count() * config.pieces
    if config.batch % parts:
        raise SystemExit(
            f"Expected a batch divisible by {parts}, as {jax.device_count()} devices take {config.pieces} piece(s) "
            f"each; got batch={config.batch}."
        )
    averages(config)
    there = 0 if config.fresh else max(saved_steps(Path(config.run_dir) / "checkpoints"), default=0)
    if there > config.steps:
        raise SystemExit(f"Expected --steps {there} or more, as the run is there already; got {config.steps}.")
    if there and config.changed and read_config(config.run_dir, Config).widths != config.widths:
        raise SystemExit("Expected the run's own --widths, as its averages cannot begin anew; --fresh begins a run.")


class Prepared(NamedTuple):
    """What a run needs before its folder is opened: whatever is wrong with the configuration shows in making it."""

    model: ImageModel
    records: ImageRecords
    held_out: ImageRecords


def prepare(config: Config) -> Prepared:
    """The data and the model."""
    records, held_out = (
        image_records(config.dataset, split, size=config.size, classes=config.classes, data_dir=config.data_dir)
        for split in (config.train_split, config.test_split)
    )
    model = model_of(config, read(records, [0])["image"].shape[1:])
    model.check()
    return Prepared(model, records, held_out)


def run_training(config: Config, run: Run, prepared: Prepared) -> None:
    """Train from the newest checkpoint, evaluating on the way; every process calls it."""
    model, records, held_out = prepared
    stream = local_batches(
        records, config.batch, seed=config.seed, process=jax.process_index(), processes=jax.process_count()
    )
    params = model.init(jax.random.key(config.seed))
    count = 1 + len(config.widths) if config.widths else None
    state = init_state(params, optimizer_of(config), jax.random.key(config.seed + 1), averages=count)
    flops = forward_flops(model.network.clone(remat=False), model.shape, classes=config.classes)
    peak, source = peak_flops()
    if first():
        size = sum(leaf.size for leaf in jax.tree.leaves(params))
        print(f"{size:,} parameters; {jax.device_count()} devices of {jax.process_count()} process(es), together")
        print(f"{peak:.3g} FLOP/s at most ({source}). To watch: tensorboard --logdir {run.directory}", flush=True)
    evaluation = Evaluation(
        model, held_out, images=config.held_out, coded=config.coded, steps=config.sampling_steps, seed=config.seed
    )
    step, place, fetch = back_end(config, model)
    with (
        Checkpoints(run.directory / "checkpoints", keep=2) as checkpoints,
        Checkpoints(run.directory / "averages", keep=10**6) if config.widths else nullcontext() as stored,
        watch_for_preemption() as preempted,
    ):
        begun = checkpoints.latest() or 0
        with Reports(run, Meter(config.batch, flops, peak), steps=config.steps, after=begun) as reports:
            numbers: dict[str, float] = {}
            ends = [*range(config.evaluate_every, config.steps, config.evaluate_every), config.steps]
            # That of the newest checkpoint too, as an earlier process may have ended in its evaluation.
            for end in (end for end in ends if end >= begun):
                if preempted():
                    raise Preempted(max(begun, int(state.step)))
                state = train(
                    step,
                    state,
                    stream,
                    steps=end,
                    checkpoints=checkpoints,
                    save_every=config.save_every,
                    log_every=config.log_every,
                    on_metrics=reports.metrics,
                    place=place,
                    fetch=fetch,
                )
                if stored is not None and end > (stored.latest() or 0):
                    stored.save(end, {"averages": state.ema[1:]})
                    stored.wait()
                ema = params_of(state.ema, config)
                numbers = evaluation.numbers(ema)
                reports.evaluation(end, numbers, evaluation.images(ema))
    if first():
        run.finish({"step": config.steps, **numbers})
        print(f"Look at {run.directory}/samples-{config.steps:07d}.png; draw more: experiments.sample_images")


def main(config: Config) -> None:
    """Train, unless the run is done."""
    join(config.coordinator, config.process_id, config.num_processes, heartbeat=config.heartbeat)
    if config.smoke:
        jax.config.update("jax_disable_most_optimizations", True)
    check(config)
    prepared = prepare(config)
    run = open_together(config)
    if not run.said_done(f"samples-{config.steps:07d}.png"):
        run_training(config, run, prepared)


def command_line(args: list[str]) -> Config:
    """The configuration: of a paper, where the first argument names one, and of the options that follow."""
    if args and not args[0].startswith("-"):
        return parse(of_paper(args[0], Config()), SMOKE, args[1:])
    return parse(Config(), SMOKE, args)


if __name__ == "__main__":
    main(command_line(sys.argv[1:]))
