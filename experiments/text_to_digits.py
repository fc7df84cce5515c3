"""Pictures from captions: a U-Net that looks at a text encoder's tokens, and pairs of words that it has never seen.

    python -m experiments.text_to_digits            # 20 minutes on 2 CPU cores
    python -m experiments.text_to_digits --smoke    # the same code on tiny sizes, in seconds

In kind section 4.3.1 of Rombach et al. 2022 (arXiv:2112.10752): cross-attention to a transformer that is trained with
the denoiser, a share of captions replaced by the null caption (all padding), and classifier-free guidance. Captions are
made from the class of an 8 x 8 digit and the corner of a 20 x 20 picture that it is in, in five wordings. Ten of the 40
pairs of digit and corner are never seen in training. Measured, for pairs seen and not seen, and several strengths of
guidance: whether most ink is in the corner that was asked for, and whether a classifier reads the digit there.
It writes text_to_digits.png, text_to_digits.csv and text_to_digits.md to runs/text_to_digits/. Running it again
resumes.

Expected: the corner is right always; the digit in 0.37, 0.62 and 0.75 of the pictures at w = 1, 2 and 4 for pairs
seen, in 0.24, 0.55 and 0.73 for pairs not seen (standard errors 0.03); 0.95 of real digits are read right.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dgm_jax.data import batches, load, source
from dgm_jax.losses import diffusion_loss
from dgm_jax.networks import TextEncoder, UNet
from dgm_jax.numerics import split
from dgm_jax.parameterizations import as_denoiser, error_ratio
from dgm_jax.parameterizations.guidance import classifier_free_batched, drop_conditions
from dgm_jax.processes import log_normal, log_snr_grid, variance_preserving
from dgm_jax.samplers import dpm_solver_pp_2m
from dgm_jax.training import ema_warmup, init_state
from dgm_jax.training.parallel import pmap_sampler, pmap_step
from experiments._budget import warmup_cosine
from experiments._caption_figures import MEASURES, SEEN, UNSEEN, caption_figure, write
from experiments._captions import (
    LONGEST,
    SHAPE,
    TEMPLATES,
    VOCABULARY,
    caption,
    caption_table,
    corners_seen,
    fit_reader,
    pairs,
    placed,
    read,
    tokens_of,
)
from experiments._run import Run, begin, parse
from experiments._training import train_on_devices

PROCESS = variance_preserving()
PICTURES = ("text_to_digits.png",)


@dataclass(frozen=True)
class Config:
    """Train on captions, draw from captions, read what is drawn."""

    channels: int = 16  # of the U-Net; its levels, of 10 and 5 pixels, have `multipliers` times as many
    multipliers: tuple[int, ...] = (2, 3)
    features: int = 48  # of a token
    heads: int = 4
    text_blocks: int = 1
    batch: int = 64
    steps: int = 3000
    learning_rate: float = 2e-3
    ema_decay: float = 0.998
    dropped: float = 0.15  # share of captions that training does not see
    scales: tuple[float, ...] = (1.0, 2.0, 4.0)
    each: int = 200  # pictures of pairs seen, and of pairs not seen
    sampling_steps: int = 12
    seed: int = 0
    run_dir: str = "runs/text_to_digits"
    fresh: bool = False  # move a run that is there aside
    smoke: bool = False  # the same code on tiny sizes


SMOKE = Config(
    channels=8,
    multipliers=(1, 1),
    features=8,
    heads=2,
    batch=16,
    steps=20,
    scales=(1.0, 3.0),
    each=30,
    sampling_steps=2,
    run_dir="runs/text_to_digits-smoke",
    smoke=True,
)


# network and loss -----------------------------------------------------------------------------------------------


def networks(config: Config) -> tuple[UNet, TextEncoder]:
    """Squares of 2 x 2 pixels enter as one; both levels look at the caption."""
    net = UNet(
        config.channels,
        config.multipliers,
        blocks=1,
        groups=8,
        patch=2,
        context_attention=(10, 5),
        context_heads=config.heads,
    )
    return net, TextEncoder(VOCABULARY, config.features, LONGEST, config.text_blocks, config.heads)


def initial(config: Config) -> dict[str, Any]:
    """Parameters of both networks."""
    net, text = networks(config)
    key = jax.random.key(config.seed)
    tokens = jnp.ones((1, LONGEST), jnp.int32)
    (context, mask), words = jax.jit(text.init_with_output)(jax.random.fold_in(key, 1), tokens)
    unet = jax.jit(net.init)(key, jnp.zeros((1, *SHAPE)), jnp.zeros(1), context=context, context_mask=mask)
    return {"unet": unet, "text": words}


def denoiser(config: Config, params: Any) -> Callable[..., jax.Array]:
    """E[x_0 | x_t, caption] as a function of (x_t, t, tokens); a caption of padding alone is none."""
    net, text = networks(config)

    def denoise_given(x_t: jax.Array, t: jax.Array, tokens: jax.Array) -> jax.Array:
        context, mask = text.apply(params["text"], tokens)  # type: ignore[misc]
        network = partial(net.apply, params["unet"], context=context, context_mask=mask)
        return as_denoiser(network, PROCESS, prediction="v")(x_t, t)  # type: ignore[arg-type]

    return denoise_given


def caption_loss(config: Config) -> Callable[..., jax.Array]:
    """Squared error of v; each digit goes to one of its corners, and gets one of the captions, anew at every visit."""
    weight, times = partial(error_ratio, PROCESS, prediction="v"), log_normal(PROCESS, 0.0, 1.6)
    allowed, table = jnp.asarray(corners_seen()), jnp.asarray(caption_table())

    def loss_fn(params: Any, batch: dict[str, jax.Array], keys: jax.Array) -> jax.Array:
        key_corner, key_words, key_place, key_drop, key_loss = split(keys, 5)
        labels = batch["label"].reshape(-1)
        corners = allowed[labels, jax.vmap(lambda k: jax.random.randint(k, (), 0, 3))(key_corner)]
        wording = jax.vmap(lambda k: jax.random.randint(k, (), 0, len(TEMPLATES)))(key_words)
        null = jnp.zeros(LONGEST, jnp.int32)
        tokens = drop_conditions(table[labels, corners, wording], null, key_drop, rate=config.dropped)
        x_0 = placed(batch["image"], corners, key_place)
        denoise_given = denoiser(config, params)
        denoise = lambda x_t, t: denoise_given(x_t, t, tokens)  # noqa: E731
        return diffusion_loss(denoise, PROCESS, x_0, key_loss, weight=weight, times=times).mean()

    return loss_fn


def train(config: Config, run: Run) -> Any:
    """Averaged parameters, data-parallel over all local devices, from the newest checkpoint where there is one."""
    schedule = warmup_cosine(config.steps, peak=config.learning_rate)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_adam(b2=0.99), schedule)
    step = pmap_step(caption_loss(config), optimizer, ema_decay=ema_warmup(config.ema_decay))
    state = init_state(initial(config), optimizer, jax.random.key(config.seed + 1))
    rows = batches(source("digits", "train"), config.batch, seed=config.seed)
    return train_on_devices(run, step, state, rows, steps=config.steps).ema


# drawing and scores ---------------------------------------------------------------------------------------------


def asked(config: Config, which: str) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Digits, corners and captions of `each` pictures: all pairs in turn, in all wordings in turn."""
    chosen = pairs(seen=which == SEEN)
    rows = [(*chosen[i % len(chosen)], (i // len(chosen)) % len(TEMPLATES)) for i in range(config.each)]
    digits, corners, _ = np.array(rows).T
    return digits, corners, [caption(d, c, wording) for d, c, wording in rows]


def drawer(config: Config, params: Any) -> Callable[[np.ndarray, float], np.ndarray]:
    """(tokens, scale) -> pictures, from the same noise for all scales."""
    ts = log_snr_grid(PROCESS, config.sampling_steps, t_min=1e-3, t_max=1.0)

    def program(params: Any, keys: jax.Array, tokens: jax.Array, scales: jax.Array) -> jax.Array:
        null = jnp.zeros(LONGEST, tokens.dtype)
        guided = classifier_free_batched(denoiser(config, params), tokens, null, scales)
        return dpm_solver_pp_2m(jax.jit(guided), PROCESS, keys, (len(keys), *SHAPE), ts=ts).x

    mapped = pmap_sampler(program)

    def draw(tokens: np.ndarray, scale: float) -> np.ndarray:
        keys = jax.random.split(jax.random.key(config.seed + 2), len(tokens))
        return np.asarray(mapped(params, keys, tokens, np.full(len(tokens), scale, np.float32)))

    return draw


def measures(reader: Any, images: np.ndarray, digits: np.ndarray, corners: np.ndarray) -> dict[str, list[float]]:
    """Shares that are right, and the mean share of ink elsewhere, each with its standard error."""
    corner, digit, elsewhere = read(reader, images)
    at, what = corner == corners, digit == digits
    values = dict(zip(MEASURES, (at, what, at & what, elsewhere), strict=True))
    return {name: [float(v.mean()), float(v.std() / np.sqrt(len(v)))] for name, v in values.items()}


def compute(config: Config, run: Run) -> dict[str, Any]:
    """Every record, and some pictures of each strength with their captions."""
    draw, reader = drawer(config, train(config, run)), fit_reader(load(source("digits", "train")))
    made = {(record["pairs"], record["scale"]) for record in run.records() if "pairs" in record}
    pictures: dict[Any, Any] = {}
    held_out = load(source("digits", "test"))
    labels, rng = held_out["label"].reshape(-1), np.random.default_rng(config.seed)
    corners = rng.integers(0, 4, len(labels))
    real = placed(
        jnp.asarray(held_out["image"]), jnp.asarray(corners), jax.random.split(jax.random.key(3), len(labels))
    )
    if ("real", -1.0) not in made:
        run.log(pairs="real", scale=-1.0, **measures(reader, np.asarray(real), labels, corners))
    for which in (SEEN, UNSEEN):
        digits, corners, captions = asked(config, which)
        tokens = np.stack([tokens_of(text) for text in captions])
        for scale in config.scales:
            path = run.directory / f"drawn-{which.replace(' ', '-')}-{scale:g}.npy"
            if (which, scale) not in made:
                images = draw(tokens, scale)
                np.save(path, images[:30].astype(np.float16))
                run.log(pairs=which, scale=scale, **measures(reader, images, digits, corners))
                print(f"{run.records()[-1]}", flush=True)
            pictures[which, scale] = np.load(path).astype(np.float32), captions
    return pictures


def main(config: Config) -> None:
    """Train, draw, read, plot."""
    run = begin(config)
    if run.said_done(*PICTURES):
        return
    pictures = compute(config, run)
    found = write(run)
    caption_figure(pictures, run.directory / PICTURES[0])
    run.finish({f"{which} {scale:g}": values for (which, scale), values in found.items()})
    print(f"Look at {run.directory}/text_to_digits.png")


if __name__ == "__main__":
    main(parse(Config(), SMOKE))
