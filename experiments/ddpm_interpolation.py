"""DDPM figures 8 and 9 on colour digits: interpolation of two held-out digits in x_t, and coarse to fine over t.

    python -m experiments.ddpm_interpolation            # 4 minutes on 2 CPU cores, after experiments.colour_digits
    python -m experiments.ddpm_interpolation --smoke    # the same code on tiny sizes, in seconds

Ho, Jain & Abbeel 2020 (arXiv:2006.11239), section 4.4: both digits are encoded by the forward process, x_t ~ q(x_t |
x_0), their codes are mixed linearly, and the mixture is decoded by ancestral sampling, with the same noise for all
shares. Figure 8 has six pairs at one time, a quarter of the steps; figure 9 has one pair at many times: pixels are
mixed at t = 0, and at t = 1 nothing of either is left. That is nearly so at half of the steps already, where the
paper's images of 256 x 256 still have much: at equal noise, more pixels tell more. The network is asked without a
class. Numbers are how well single digits come back, and how far a mixture of halves looks like a digit. It writes
figure8.png, figure9.png, interpolation.csv and interpolation.md to runs/ddpm_interpolation/.

Expected, on 100 digits, one seed; "+-" is a standard error over digits:

    t                      0              0.125           0.25            0.5             1
    reconstruction, RMS    0              0.113 +- 0.002  0.189 +- 0.004  0.347 +- 0.006  0.401 +- 0.008
    class kept             0.96 +- 0.02   0.93 +- 0.03    0.75 +- 0.04    0.13 +- 0.03    0.11 +- 0.03
"""

import csv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from dgm_jax.latents.interpolation import linear
from dgm_jax.numerics import normal_like, split
from dgm_jax.processes import uniform
from dgm_jax.samplers import solve_sde
from dgm_jax.samplers.ancestral import Ancestral
from dgm_jax.training.parallel import pmap_sampler
from experiments._colour_digits import NULL, SHAPE, by_class, colour_digits
from experiments._colour_features import ColourFeatures, load_colour_features
from experiments._comparison import markdown, plus_minus
from experiments._run import Run, begin, parse
from experiments.colour_digits import PROCESS, STAND_IN, T_MIN, load_conditional
from experiments.score_sde_figure4 import colour_spread

TITLES = {
    "error": "reconstruction, RMS",
    "class kept": "class kept",
    "colour": "error of colour, RMS",
    "sure": "half of each: classifier's certainty",
    "spread": "half of each: spread of colour",
}


@dataclass(frozen=True)
class Config:
    """Encode, mix and decode pairs of digits."""

    times: tuple[float, ...] = (0.0, 0.0625, 0.125, 0.25, 0.5, 1.0)  # of the paper's 1,000 steps, over 1,000
    mixed: float = 0.25  # the time of figure 8, one of these; in the paper 0.5, where of 16 pixels nothing is left
    shares: int = 9  # of the second digit, evenly between 0 and 1; odd
    inputs: int = 100  # held-out digits, as many of each class, which are the first of as many pairs
    shown: int = 6  # pairs in figure 8
    steps: int = 200  # of ancestral sampling from t = 1; fewer from earlier times
    trained: str = "runs/colour_digits"  # the run of experiments.colour_digits
    features: int = 2000  # training steps of the classifier, which is kept beside that network
    seed: int = 0
    run_dir: str = "runs/ddpm_interpolation"
    fresh: bool = False  # move a run that is there aside
    smoke: bool = False  # the same code on tiny sizes


SMOKE = Config(
    times=(0.0, 0.5, 1.0),
    mixed=0.5,
    shares=3,
    inputs=20,
    shown=2,
    steps=6,
    trained=STAND_IN,
    features=0,
    run_dir="runs/ddpm_interpolation-smoke",
    smoke=True,
)


def grid(config: Config, t: float) -> np.ndarray:
    """The times from `t` down to the least, in steps of one size."""
    steps = max(round(config.steps * t), 1)
    return np.asarray(uniform(steps, t_min=T_MIN, t_max=t))


def decoder(config: Config, t: float) -> Callable[[np.ndarray, np.ndarray, np.ndarray, int], np.ndarray]:
    """(first, second, shares, seed) -> digits [pairs, shares, 16, 16, 3]: mixtures of codes at time t, decoded."""
    denoise_given = load_conditional(config.trained)

    def program(shares: jax.Array, keys: jax.Array, first: jax.Array, second: jax.Array) -> jax.Array:
        key_first, key_second, key_decode = split(keys, 3)
        at = jnp.full(len(first), t)
        codes = [PROCESS.perturb(x, at, normal_like(key, x)) for x, key in ((first, key_first), (second, key_second))]
        ts = jnp.asarray(grid(config, t))

        def decode(mixed: jax.Array) -> jax.Array:
            denoise = jax.jit(lambda x_t, s: denoise_given(x_t, s, jnp.full(len(x_t), NULL)))
            return solve_sde(denoise, PROCESS, mixed, key_decode, ts=ts, solver=Ancestral()).x  # one key for all shares

        return jnp.moveaxis(jax.lax.map(decode, linear(codes[0], codes[1], shares)), 0, 1)

    mapped = pmap_sampler(program)

    def decode(first: np.ndarray, second: np.ndarray, shares: np.ndarray, seed: int) -> np.ndarray:
        if t == 0:  # nothing to decode
            return np.moveaxis(np.asarray(linear(jnp.asarray(first), jnp.asarray(second), shares)), 0, 1)
        keys = jax.random.split(jax.random.key(seed), len(first))
        return np.asarray(mapped(jnp.asarray(shares), keys, first, second))

    return decode


def measured(
    decoded: np.ndarray, half: np.ndarray, images: np.ndarray, labels: np.ndarray, found: ColourFeatures
) -> dict[str, tuple[float, float]]:
    """Means over digits with standard errors."""
    decoded, half = np.clip(decoded, -1, 1), np.clip(half, -1, 1)
    values = {
        "error": np.sqrt(((decoded - images) ** 2).mean((1, 2, 3))),
        "class kept": (found.probabilities(decoded).argmax(1) == labels).astype(float),
        "colour": np.sqrt(((found.colours(decoded) - found.colours(images)) ** 2).mean(1)),
        "sure": found.probabilities(half).max(1),
        "spread": colour_spread(half),
    }
    return {name: (float(v.mean()), float(v.std(ddof=1) / np.sqrt(len(v)))) for name, v in values.items()}


def main(config: Config) -> None:
    """Decode, measure and show."""
    run = begin(config)
    if run.said_done("figure8.png", "figure9.png"):
        return
    digits = by_class(colour_digits("test"))
    first, labels = digits.images[: config.inputs], digits.labels[: config.inputs]
    second = np.roll(digits.images, -13, axis=0)[: config.inputs]  # of another class and colour
    beside = config.run_dir if config.trained == STAND_IN else config.trained
    found = load_colour_features(Path(beside) / "features", steps=config.features)
    shares = np.linspace(0, 1, config.shares + 2, dtype=np.float32)
    half, rows, pictures = len(shares) // 2, {}, {}
    for t in config.times:
        path = run.directory / f"decoded-{t:g}.npz"
        if not path.exists():
            decode = decoder(config, t)
            ends = decode(first, second, shares[[0, half]], config.seed)
            shown = decode(first[: config.shown], second[: config.shown], shares, config.seed)
            np.savez_compressed(path, ends=ends, shown=shown)
        with np.load(path) as stored:
            ends, pictures[t] = stored["ends"], stored["shown"]
        rows[t] = measured(ends[:, 0], ends[:, 1], first, labels, found)
        print(f"t = {t:g}: {', '.join(f'{name} {v:.3f}' for name, (v, _) in rows[t].items())}", flush=True)
    write(run, rows)
    strips = [strip(first[i], pictures[config.mixed][i], second[i]) for i in range(config.shown)]
    show(np.stack(strips), shares, [""] * config.shown, "", run.directory / "figure8.png")
    strips = [strip(first[0], pictures[t][0], second[0]) for t in config.times]
    show(np.stack(strips), shares, [f"{t:g}" for t in config.times], "t", run.directory / "figure9.png")
    run.finish({f"t = {t:g}": row for t, row in rows.items()})
    print(f"Look at {run.directory}/figure8.png and figure9.png")


def strip(first: np.ndarray, decoded: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The first digit, what is decoded of all shares, the second digit."""
    return np.concatenate([first[None], decoded, second[None]])


def write(run: Run, rows: dict[float, dict[str, tuple[float, float]]]) -> None:
    """interpolation.csv and a table of the same for a page."""
    with (run.directory / "interpolation.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["t", "measure", "value", "standard error"])
        for t, row in rows.items():
            writer.writerows([t, name, f"{v:.5g}", f"{e:.2g}"] for name, (v, e) in row.items())
    cells = [[f"{t:g}", *(plus_minus(*row[name], 3) for name in TITLES)] for t, row in rows.items()]
    text = markdown(["t", *TITLES.values()], cells)
    (run.directory / "interpolation.md").write_text(text)
    print(text)


def show(strips: np.ndarray, shares: np.ndarray, names: list[str], label: str, path: Path) -> None:
    """A row for each strip."""
    import matplotlib

    from experiments._figures import STYLE, figure, save, tiled

    columns = strips.shape[1]
    with matplotlib.rc_context(STYLE):
        fig = figure(0.5 + 0.42 * columns, 0.5 + 0.42 * len(strips))
        ax = fig.subplots()
        picture = tiled(strips.reshape(-1, *SHAPE), columns)
        ax.imshow((np.clip(picture, -1, 1) + 1) / 2, interpolation="nearest")
        ticks = ["first", "rec.", *(f"{share:.1f}" for share in shares[1:-1]), "rec.", "second"]
        ax.set_xticks(16 * np.arange(columns) + 7.5, ticks)
        ax.set_yticks(16 * np.arange(len(strips)) + 7.5, names)
        ax.set(xlabel="share of the second digit", ylabel=label)
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)
        save(fig, path, dpi=130)


if __name__ == "__main__":
    main(parse(Config(), SMOKE))
