"""Latent spaces of a VAE, a GAN and a diffusion model side by side: what they keep, how smooth, how well arranged.

    python -m experiments.latent_spaces            # 8 minutes on 2 CPU cores, after experiments.family_comparison
    python -m experiments.latent_spaces --smoke    # the same code on tiny sizes, in seconds

The networks are those of `experiments.family_comparison` on 28 x 28 digits: 600,000 parameters and equal training
compute each, three seeds. A digit's latents are the posterior's mean of the VAE (32 numbers), those of the nearest
image of the GAN's generator found by gradient descent (32), and the noise to which the probability-flow ODE carries
the digit (784). All priors are N(0, I), so that paths are spherical everywhere. Directions of slant, thickness and
width are differences of means of latents of the training set's digits; what they do is seen on digits held out. Normals
of logistic regressions do as well for the VAE, and nothing for diffusion: they lie along latents of pixels at the
border, whose std is 0.01. It writes latent_spaces.png, latent_spaces.csv and latent_spaces.md to runs/latent_spaces/.

Expected, means +- standard deviations over three networks (docs/steering.md has all):

                                VAE             GAN             diffusion
    reconstruction, RMS         0.198 +- 0.002  0.295 +- 0.001  0.003 +- 0.000
    path length                 1.31 +- 0.05    3.35 +- 0.22    2.48 +- 0.23
    slant told by a hyperplane  0.916 +- 0.005  0.832 +- 0.016  0.792 +- 0.005
    class kept by edits         0.91 +- 0.02    0.62 +- 0.03    0.87 +- 0.00
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from dgm_jax.data import load, source, to_unit
from dgm_jax.latents import (
    LatentSpace,
    diffusion_space,
    direction_effects,
    edit,
    gan_space,
    interpolate,
    linear_separability,
    mean_direction,
    perceptual_path_length,
    reconstruction_error,
    spherical,
    vae_space,
)
from dgm_jax.training import load_params
from experiments import family_comparison
from experiments._digit_attributes import ATTRIBUTES, above_median, seen_attributes
from experiments._digit_features import load_classifier
from experiments._family_cells import Comparison
from experiments._family_networks import PROCESSES, Networks
from experiments._family_samplers import falling
from experiments._run import Run, begin, parse

FAMILIES = {"VAE": "VAE", "GAN, R1": "GAN", "VP": "diffusion"}
STAND_IN = "stand-in"  # for a run's directory: untrained networks, for --smoke
SIDE = 28


@dataclass(frozen=True)
class Config:
    """Encode digits into three latent spaces, and measure these."""

    seeds: int = 3  # of networks
    known: int = 1500  # digits of the training set, whose latents the hyperplanes see
    held_out: int = 200
    pairs: int = 300  # of prior draws, for path lengths
    classes: int = 10  # that hyperplanes are to tell
    ode_steps: int = 25  # of Heun
    gan_steps: int = 300  # of Adam
    gan_starts: int = 2
    gan_rate: float = 0.05
    prior_weight: float = 0.003  # that holds a GAN's latents where its prior is
    penalty: float = 10.0  # of the logistic regressions
    strength: float = 1.0  # of the edits that are measured: from the mean without an attribute to that with it
    epsilon: float = 0.01  # of path lengths
    trained: str = "runs/family_comparison"  # the run of experiments.family_comparison
    features: int = 900  # training steps of the classifier, which that run keeps
    run_dir: str = "runs/latent_spaces"
    fresh: bool = False  # move a run that is there aside
    smoke: bool = False  # the same code on tiny sizes


SMOKE = Config(
    seeds=1,
    known=40,
    held_out=16,
    pairs=8,
    classes=1,
    ode_steps=1,
    gan_steps=3,
    trained=STAND_IN,
    features=0,
    run_dir="runs/latent_spaces-smoke",
    smoke=True,
)


# spaces ---------------------------------------------------------------------------------------------------------


def loaded(config: Config) -> tuple[Networks, Callable[[str, int], Any]]:
    """The networks, and (name, seed) -> their parameters."""
    if config.trained == STAND_IN:
        nets = Networks(family_comparison.SMOKE.digits, np.full(SIDE**2, -0.7), np.full(SIDE**2, 0.5), jnp.tanh)
        init = {"VAE": nets.init_autoencoder, "VP": nets.init_denoiser}
        init["GAN, R1"] = lambda key: nets.generator.init(key, jnp.zeros((1, nets.sizes.latent)))
        return nets, lambda name, seed: init[name](jax.random.key(seed))
    plan = family_comparison.plan(family_comparison.Config(), "digits")
    comparison = Comparison("digits", plan, Run(Path(config.trained)))
    if not comparison.kept_in("VP", config.seeds - 1).exists():
        raise SystemExit(
            f"Expected the networks of experiments.family_comparison in {config.trained}, as their latents are "
            "compared; got none. First: python -m experiments.family_comparison"
        )
    return comparison.nets, lambda name, seed: load_params(comparison.kept_in(name, seed), part="params")


def space_of(name: str, nets: Networks, params: Any, config: Config) -> LatentSpace:
    """Images [n, 28, 28, 1] to latents and back, compiled."""
    if name == "VAE":
        space = vae_space(partial(nets.encode, params), lambda z: nets.decode(params, z)[0])
    elif name == "VP":
        process = PROCESSES["VP"]
        denoise = nets.denoiser(params, process)
        ts = falling(process, config.ode_steps, nets.t_min(process))
        space = diffusion_space(denoise, process, ts=ts, solver=diffrax.Heun(), coordinates="noise")
    else:

        def generate(z: Array) -> Array:
            return nets.generator.apply(params, z)  # type: ignore[return-value]

        space = gan_space(
            generate,
            jax.random.key(0),
            latent_shape=(nets.sizes.latent,),
            optimizer=optax.adam(config.gan_rate),
            steps=config.gan_steps,
            starts=config.gan_starts,
            prior_weight=config.prior_weight,
        )
    return LatentSpace(
        jax.jit(lambda x: space.encode(x.reshape(len(x), -1))),
        jax.jit(lambda z: space.decode(z).reshape(-1, SIDE, SIDE, 1)),
    )


def latent_dim(name: str, nets: Networks) -> int:
    """Numbers of a latent."""
    return SIDE**2 if name == "VP" else nets.sizes.latent


# measures -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Digits:
    """Digits in [-1, 1] and their classes, and what a classifier says of any: features and most likely class."""

    known: Array
    held_out: Array
    labels: np.ndarray
    known_labels: np.ndarray
    classify: Callable[[Array], tuple[Array, Array]]

    def features(self, x: Array) -> Array:
        """The layer before the answers."""
        return self.classify(x)[0]

    def kept(self, x: Array) -> float:
        """The share of the digits held out whose class is still seen in x, as many as there are."""
        return float((np.asarray(self.classify(jnp.clip(x, -1, 1))[1]).argmax(1) == self.labels[: len(x)]).mean())

    def step(self) -> float:
        """The mean squared distance of the features of two digits: the unit of path lengths."""
        f = np.asarray(self.features(self.held_out))
        return float(2 * f.var(0, ddof=1).sum())


def read_digits(config: Config) -> Digits:
    """Digits in an order that means nothing."""
    known, test = (load(source("mnist5k", name)) for name in ("train", "test"))
    rng = np.random.default_rng(0)
    some, few = rng.permutation(len(known["label"]))[: config.known], rng.permutation(500)[: config.held_out]
    keep = config.run_dir if config.trained == STAND_IN else config.trained
    classify = jax.jit(load_classifier(Path(keep) / "features", steps=config.features))
    labels = [values["label"].reshape(-1)[rows] for values, rows in ((known, some), (test, few))]
    images = [to_unit(values["image"][rows]) for values, rows in ((known, some), (test, few))]
    return Digits(images[0], images[1], labels[1], labels[0], classify)


_separability = jax.jit(linear_separability)  # once for all attributes


def directions_of(latents: Array, known: Array) -> Array:
    """A direction for each attribute: from those below the median to those above it."""
    return jnp.stack([mean_direction(latents, above) for above in above_median(known)])


def measured(config: Config, space: LatentSpace, dim: int, digits: Digits) -> dict[str, float]:
    """Every measure of one space."""
    latents, held_out = space.encode(digits.known), space.encode(digits.held_out)
    again = space.decode(held_out)
    draws = jax.random.normal(jax.random.key(1), (2, config.pairs, dim))
    length = perceptual_path_length(
        space.decode, draws[0], draws[1], digits.features, jax.random.key(2), epsilon=config.epsilon, rule=spherical
    )
    directions = directions_of(latents, digits.known)
    apart = [_separability(latents, above, penalty=config.penalty) for above in above_median(digits.known)]
    of_class = [jnp.asarray(digits.known_labels == label) for label in range(config.classes)]
    classes = [_separability(latents, label, penalty=config.penalty) for label in of_class]
    effects = direction_effects(space.decode, held_out, directions, seen_attributes, strength=config.strength)
    edited = [digits.kept(space.decode(edit(held_out, d, s * config.strength))) for d in directions for s in (-1, 1)]
    return {
        "reconstruction": float(jnp.sqrt(reconstruction_error(space, digits.held_out).mean())),
        "class kept": digits.kept(again),
        "path length": float(length.mean()) / digits.step(),
        **{f"{name} apart": float(of.accuracy) for name, of in zip(ATTRIBUTES, apart, strict=True)},
        "classes apart": float(np.mean([of.conditional_entropy for of in classes])),
        **{f"{name} moved": float(effects.matrix[i, i]) for i, name in enumerate(ATTRIBUTES)},
        **{f"{name} alone": float(effects.share[i]) for i, name in enumerate(ATTRIBUTES)},
        "class kept by edits": float(np.mean(edited)),
    }


def pictured(config: Config, space: LatentSpace, digits: Digits) -> dict[str, np.ndarray]:
    """Reconstructions, ways between digits, edits of one digit."""
    first, second = digits.held_out[:2], digits.held_out[2:4]
    ways = interpolate(space, first, second, jnp.linspace(0, 1, 9), rule=spherical)
    directions = directions_of(space.encode(digits.known), digits.known)
    own = space.encode(digits.held_out[4:5])
    strengths = jnp.linspace(-2.0, 2.0, 7)
    edits = [space.decode(edit(jnp.repeat(own, 7, 0), d, strengths)) for d in directions]
    pairs = jnp.concatenate([digits.held_out[5:13], space.decode(space.encode(digits.held_out[5:13]))])
    shown = {"pairs": pairs, "ways": ways.swapaxes(0, 1).reshape(-1, SIDE, SIDE, 1), "edits": jnp.concatenate(edits)}
    return {name: np.asarray(x, np.float32) for name, x in shown.items()}


# run ------------------------------------------------------------------------------------------------------------


def main(config: Config) -> None:
    """Encode, measure, show."""
    from experiments._space_figures import figure_of, write

    run = begin(config, devices=1)
    if run.said_done("latent_spaces.png"):
        return
    nets, params_of = loaded(config)
    digits, pictures = read_digits(config), {}
    for name, family in FAMILIES.items():
        path = run.directory / f"{family}.npz"
        for seed in range(config.seeds):
            if (family, seed) in {(record["family"], record["seed"]) for record in run.records()}:
                continue
            space = space_of(name, nets, params_of(name, seed), config)
            if seed == 0:
                np.savez_compressed(path, **pictured(config, space, digits))  # type: ignore[arg-type]
            found = measured(config, space, latent_dim(name, nets), digits)
            run.log(family=family, seed=seed, **found)
            print(f"{family}, seed {seed}: {', '.join(f'{k} {v:.3f}' for k, v in found.items())}", flush=True)
        with np.load(path) as stored:
            pictures[family] = dict(stored)
    write(run)
    figure_of(pictures, run.directory / "latent_spaces.png")
    run.finish({"records": run.records()})
    print(f"Look at {run.directory}/latent_spaces.png")


if __name__ == "__main__":
    main(parse(Config(), SMOKE))
