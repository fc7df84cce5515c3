"""Which GANs converge: the Dirac-GAN of Mescheder et al. 2018 (arXiv:1801.04406), its figures and its eigenvalues.

    python -m experiments.dirac_gan            # 15 seconds on 2 CPU cores

The data are one point, 0, the generator is one point, theta, and the discriminator's logit is psi x. The only
equilibrium is theta = psi = 0. Each method is a loss of the library with plain SGD of rate h, moved by the library's
simultaneous, alternating (1 or 5 updates of psi per update of theta) and extragradient steps from (1, 1). The
eigenvalues of the update at the equilibrium, by `jax.jacfwd` of the step itself, are printed beside the theory:

    f'(0)    how strongly psi turns theta, 1/2 for the two GANs and 1 for WGAN
    d, g     how strongly psi and theta are drawn to 0: R1 and R2 d = gamma, instance noise d = sigma^2/2 (the paper's
             -2 f''(0) sigma^2), consensus d = g = gamma f'(0)^2, else 0

    mu = -(d + g)/2 +- sqrt((d - g)^2/4 - f'(0)^2)      simultaneous 1 + h mu, extragradient 1 + h mu + (h mu)^2
    alternating, k updates of psi: the roots of lambda^2 - T lambda + D with s = (1 - (1 - h d)^k)/(h d), or k at d = 0,
             T = (1 - h d)^k + (1 - h g) - s h^2 f'(0)^2,  D = (1 - h d)^k (1 - h g)

Without damping both alternating eigenvalues lie on the unit circle for sqrt(k) h f'(0) <= 2 (the paper's lemma 2.4),
and the simultaneous ones outside. WGAN-GP has no eigenvalues at the equilibrium, since its penalty has a kink at
psi = 0: each half-plane is affine, about a centre of its own at theta = +-lambda g_0, and what is printed is the
half-plane's matrix. As the update of psi is h lambda g_0 however near the equilibrium, it cannot converge.

The run writes runs/dirac_gan/dirac_gan.png, and prints the eigenvalues, their difference from the theory, which must be
that of float64's rounding, and the distance from the equilibrium after 500 steps. Nothing is random but the points at
which WGAN-GP looks, where the gradient is the same. Settings are those of the authors' notebook: h = 0.2, clipping at
1, lambda = 0.7 and g_0 = 1 for WGAN-GP, noise of 0.7, gamma = 0.3 and the critical 1 for R1, 1 for consensus. Expected:

    largest difference from the theory     8e-16, and 8e-9 where two eigenvalues meet (which resolve to 6e-8)
    distance after 500 alternating steps   GAN 1.3, non-saturating 0.28, WGAN 1.4, clipped 1.0, WGAN-GP 1.3,
                                           consensus 9e-12, instance noise 7e-6, R1 and R2 3e-7, R1 critical 3e-16

Here high logits mean data, in the paper the generator's: psi has the other sign. Instance noise is an exact
expectation, by Gauss-Hermite quadrature.
"""

import cmath
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Complex, Float

from dgm_jax.losses.adversarial import AdversarialLoss, minimax, non_saturating, wasserstein
from dgm_jax.losses.penalties import gradient_penalty, r1_penalty, r2_penalty
from dgm_jax.training import (
    Players,
    clip_weights,
    init_adversarial_state,
    make_adversarial_step,
    make_extragradient_step,
    make_simultaneous_step,
)
from dgm_jax.training.step import Step
from dgm_jax.typing import Data, Keys, PerExample
from experiments._run import open_run, parse

Pair = Complex[np.ndarray, " 2"]
LIMIT = 2.0  # of the picture
KINKED = "WGAN-GP"
CRITIC_STEPS = 5


@dataclass(frozen=True)
class Config:
    """Ten methods, four kinds of step, one point against one slope."""

    steps: int = 500
    rate: float = 0.2
    clip: float = 1.0
    penalty: float = 0.7  # WGAN-GP's lambda, of lambda/2 (|psi| - target)^2
    target: float = 1.0
    noise: float = 0.7  # standard deviation of the instance noise
    gamma: float = 0.3  # of R1 and R2, times 1/2
    critical: float = 1.0  # 2 f'(0), where R1's eigenvalues meet
    consensus: float = 1.0
    run_dir: str = "runs/dirac_gan"
    fresh: bool = False  # move a run that is there aside
    smoke: bool = False  # the same code on tiny sizes


SMOKE = Config(steps=50, run_dir="runs/dirac_gan-smoke", smoke=True)


class Method(NamedTuple):
    """Losses of both players, and what the theory has to know of them."""

    losses: Players
    slope: float  # f'(0)
    damping: tuple[float, float] = (0.0, 0.0)  # of psi and of theta
    clip: float | None = None


# the game -------------------------------------------------------------------------------------------------------


def game(
    loss: AdversarialLoss, penalty: Callable[..., PerExample] | None = None, *, noise: float = 0.0, nodes: int = 32
) -> Players:
    """Both players' losses; the penalty is a function of (critic, real, fake, key)."""
    places, weights = np.polynomial.hermite_e.hermegauss(nodes) if noise else (np.zeros(1), np.ones(1))
    places, weights = noise * places[:, None], weights / weights.sum()

    def logits(players: Players, data: Data) -> tuple[PerExample, PerExample]:
        return players.discriminator * (data + places)[:, 0], players.discriminator * (players.generator + places)[:, 0]

    def discriminator(players: Players, data: Data, key: Keys) -> Array:
        value = jnp.sum(weights * loss.discriminator(*logits(players, data)))
        if penalty is None:
            return value
        fake = jnp.full_like(data, 1.0) * players.generator
        return value + penalty(lambda x: players.discriminator * x[:, 0], data, fake, key).mean()

    def generator(players: Players, data: Data, key: Keys) -> Array:
        return jnp.sum(weights * loss.generator(*logits(players, data)))

    return Players(discriminator, generator)


def with_consensus(losses: Players, gamma: float) -> Players:
    """Each loss plus gamma/2 |v|^2, v being both players' gradients (Mescheder et al. 2017, arXiv:1705.10461)."""

    def half_squared_field(players: Players, data: Data, key: Keys) -> Array:
        gradients = [
            jax.grad(lambda own, name=name: getattr(losses, name)(players._replace(**{name: own}), data, key))(own)
            for name, own in zip(Players._fields, players, strict=True)
        ]
        return sum(gradient**2 for gradient in gradients) / 2  # type: ignore[return-value]

    return Players(*(lambda *at, loss=loss: loss(*at) + gamma * half_squared_field(*at) for loss in losses))


def methods(config: Config) -> dict[str, Method]:
    """The rows of the table; R1 and R2 are of the original game."""

    def r1(gamma: float) -> Players:
        return game(minimax, lambda critic, real, fake, key: gamma / 2 * r1_penalty(critic, real))

    def r2(gamma: float) -> Players:
        return game(minimax, lambda critic, real, fake, key: gamma / 2 * r2_penalty(critic, fake))

    def towards_target(critic: Callable, real: Data, fake: Data, key: Keys) -> PerExample:
        return config.penalty / 2 * gradient_penalty(critic, real, fake, key, target=config.target)

    return {
        "GAN": Method(game(minimax), 0.5),
        "non-saturating": Method(game(non_saturating), 0.5),
        "WGAN": Method(game(wasserstein), 1.0),
        "WGAN, clipped": Method(game(wasserstein), 1.0, clip=config.clip),
        KINKED: Method(game(wasserstein, towards_target), 1.0, (config.penalty, 0.0)),
        "consensus": Method(
            with_consensus(game(minimax), config.consensus), 0.5, (config.consensus / 4, config.consensus / 4)
        ),
        "instance noise": Method(game(minimax, noise=config.noise), 0.5, (config.noise**2 / 2, 0.0)),
        "R1": Method(r1(config.gamma), 0.5, (config.gamma, 0.0)),
        "R1, critical": Method(r1(config.critical), 0.5, (config.critical, 0.0)),
        "R2": Method(r2(config.gamma), 0.5, (config.gamma, 0.0)),
    }


# steps and theory -----------------------------------------------------------------------------------------------


def optimizers(method: Method, rate: float) -> Players:
    """Plain SGD for both."""
    clip = [] if method.clip is None else [clip_weights(method.clip)]
    return Players(optax.chain(optax.sgd(rate), *clip), optax.sgd(rate))


def steps_of(method: Method, rate: float) -> dict[str, tuple[Step, int]]:
    """Each kind of step, and how many examples its batch holds."""
    both = optimizers(method, rate)
    alternating = partial(make_adversarial_step, method.losses, both, ema_decay=0.0)
    return {
        "simultaneous": (make_simultaneous_step(method.losses, both, ema_decay=0.0), 1),
        "alternating": (alternating(critic_steps=1), 1),
        f"alternating, k = {CRITIC_STEPS}": (alternating(critic_steps=CRITIC_STEPS), CRITIC_STEPS),
        "extragradient": (make_extragradient_step(method.losses, both, ema_decay=0.0), 1),
    }


def theory(kind: str, rate: float, slope: float, damping: tuple[float, float]) -> Pair:
    """The eigenvalues of the update at the equilibrium, in closed form; see the head of this file."""
    of_psi, of_theta = damping
    root = cmath.sqrt((of_psi - of_theta) ** 2 / 4 - slope**2)
    flow = -(of_psi + of_theta) / 2 + root * np.array([1, -1])
    if kind == "simultaneous":
        return 1 + rate * flow
    if kind == "extragradient":
        return 1 + rate * flow + (rate * flow) ** 2
    kept = 1 - rate * of_psi
    turns = CRITIC_STEPS if kind.endswith(f"{CRITIC_STEPS}") else 1
    trace = kept**turns + 1 - rate * of_theta - (rate * slope) ** 2 * sum(kept**turn for turn in range(turns))
    product = kept**turns * (1 - rate * of_theta)
    return trace / 2 + cmath.sqrt(trace**2 / 4 - product) * np.array([1, -1])


def allowed(eigenvalues: Pair) -> float:
    """What rounding can do: a change delta of the polynomial moves a root by delta/gap, a double one by sqrt(delta)."""
    delta, gap = 16 * np.finfo(np.float64).eps, abs(eigenvalues[0] - eigenvalues[1])
    return float(delta / max(gap, np.sqrt(delta)))


class Played(NamedTuple):
    """(psi, theta) after each step, and the step's own matrix at the equilibrium."""

    path: Float[np.ndarray, "steps 2"]
    matrix: Float[np.ndarray, "2 2"]


def play(method: Method, at: tuple[float, float], *, rate: float, steps: int) -> dict[str, Played]:
    """For each kind of step a run from (1, 1), and the Jacobian of one step at `at`, in float64."""
    with jax.enable_x64(True):
        start = Players(jnp.ones(()), jnp.ones(()))
        state = init_adversarial_state(start, optimizers(method, rate), jax.random.key(0))

        def run(step: Step, batch: int) -> tuple[Array, Array]:
            def moved(point: Float[Array, " 2"]) -> Float[Array, " 2"]:
                after, _ = step(replace(state, params=Players(*point), ema=point[1]), jnp.zeros((batch, 1)))
                return jnp.stack(after.params)

            def recorded(point: Float[Array, " 2"], _: None) -> tuple[Array, Array]:
                after = moved(point)
                return after, after

            return jax.lax.scan(recorded, jnp.ones(2), length=steps)[1], jax.jacfwd(moved)(jnp.array(at))

        kinds = steps_of(method, rate)
        played = jax.jit(lambda: [run(*kind) for kind in kinds.values()])()
        return {kind: Played(*map(np.asarray, found)) for kind, found in zip(kinds, played, strict=True)}


def field(method: Method, rate: float, at: Float[np.ndarray, "points 2"]) -> Float[np.ndarray, "points 2"]:
    """(d psi, d theta) per unit of rate, by the library's simultaneous step; without clipping."""
    with jax.enable_x64(True):
        step, _ = steps_of(method._replace(clip=None), rate)["simultaneous"]
        both = optimizers(method._replace(clip=None), rate)

        def moved(point: Float[Array, " 2"]) -> Float[Array, " 2"]:
            state = init_adversarial_state(Players(*point), both, jax.random.key(0))
            return (jnp.stack(step(state, jnp.zeros((1, 1)))[0].params) - point) / rate

        return np.array(jax.jit(jax.vmap(moved))(jnp.asarray(at)))


# the run --------------------------------------------------------------------------------------------------------


def main(config: Config) -> None:
    """Play every game with every step, compare the eigenvalues, and draw."""
    run = open_run(config)
    picture = run.directory / "dirac_gan.png"
    if run.said_done(picture.name):
        return
    run.forget_after(-1)
    table, paths = methods(config), {}
    print("method          step                       eigenvalues  |largest|   theory  difference   distance")
    differences = {}
    for name, method in table.items():
        # beside the kink, where the matrix is that of the half-plane
        at = (config.target / 2 if name == KINKED else 0.0, 0.0)
        for kind, played in play(method, at, rate=config.rate, steps=config.steps).items():
            expected = theory(kind, config.rate, method.slope, method.damping)
            found = matched(np.linalg.eigvals(played.matrix.astype(np.complex128)), expected)
            paths[name, kind] = played.path
            difference, within = float(abs(found - expected).max()), allowed(expected)
            differences[name, kind] = (difference, within)
            distance = float(np.linalg.norm(played.path[-1]))
            record = {"eigenvalues": [[z.real, z.imag] for z in found], "radius": float(abs(found).max())}
            run.log(method=name, step_kind=kind, **record, difference=difference, allowed=within, distance=distance)
            print(
                f"{name:16}{kind:20}{shown(found):>18}{abs(found).max():11.5f}{abs(expected).max():9.5f}"
                f"{difference:12.0e}{distance:11.1e}",
                flush=True,
            )
    simple = [found for found, within in differences.values() if within < 1e-10]
    double = [found for found, within in differences.values() if within >= 1e-10]
    print(f"largest difference from the theory: {max(simple):.1e}, at double eigenvalues {max(double, default=0):.1e}")
    beyond = [at for at, (found, within) in differences.items() if found > within]
    if beyond:
        raise SystemExit(f"Expected eigenvalues within float64's rounding of the theory; got others for {beyond}.")
    plot(config, table, paths, picture)
    distances = {f"{name}, {kind}": float(np.linalg.norm(path[-1])) for (name, kind), path in paths.items()}
    run.finish({"difference": max(simple), "difference_double": max(double, default=0.0), "distance": distances})
    print(f"Look at {picture}")


def matched(found: Pair, expected: Pair) -> Pair:
    """The found pair in the order that is nearest to the expected one."""
    return min((found, found[::-1]), key=lambda pair: abs(pair - expected).max())


def shown(pair: Pair) -> str:
    """As a +- bi, or two reals."""
    if abs(pair[0].imag) > 1e-6:
        return f"{pair[0].real:.4f} \u00b1 {abs(pair[0].imag):.4f}i"
    return f"{pair[0].real:.4f}, {pair[1].real:.4f}"


def plot(config: Config, table: dict[str, Method], paths: dict[tuple[str, str], np.ndarray], path: Path) -> None:
    """Ten panels of (theta, psi): the field, and both players' path from (1, 1)."""
    import matplotlib

    from experiments._figures import BLACK, BLUE, GREEN, ORANGE, STYLE, figure, save

    ticks = np.linspace(-LIMIT, LIMIT, 13)
    lattice = np.stack(np.meshgrid(ticks, ticks), axis=-1).reshape(-1, 2)
    panels: list[tuple[str, tuple[str, ...]]]
    panels = [(name, ("simultaneous", "alternating")) for name in table if name != "R2"]
    panels.append(("GAN", ("extragradient",)))
    colors = {"simultaneous": ORANGE, "alternating": BLUE, "extragradient": GREEN}
    with matplotlib.rc_context(STYLE):
        fig = figure(9.0, 4.8)
        axes = fig.subplots(2, 5, sharex=True, sharey=True)
        for ax, (name, kinds) in zip(axes.flat, panels, strict=True):
            arrows = field(table[name], config.rate, lattice)
            arrows /= np.sqrt(np.linalg.norm(arrows, axis=1, keepdims=True) + 1e-12)  # else only the rim is seen
            ax.quiver(*lattice.T[::-1], *arrows.T[::-1], color="0.75", width=0.006, scale=20, pivot="mid", zorder=0)
            for place, kind in enumerate(kinds):
                line = np.concatenate([np.ones((1, 2)), paths[name, kind]])
                ax.plot(*line.T[::-1], color=colors[kind], lw=0.9)
                radius = abs(theory(kind, config.rate, table[name].slope, table[name].damping)).max()
                text = "" if name == KINKED else f"{radius:.3f}"
                ax.text(place, 1.02, text, color=colors[kind], ha=("left", "right")[place], transform=ax.transAxes)
            ax.plot(1, 1, "o", color=BLACK, ms=3.5)
            ax.plot(0, 0, "+", color=BLACK, ms=7)
            ax.set(xlim=(-LIMIT, LIMIT), ylim=(-LIMIT, LIMIT), aspect="equal", xticks=(-2, 0, 2), yticks=(-2, 0, 2))
            ax.set_title(name, pad=15)
        for ax in axes[-1]:
            ax.set_xlabel(r"$\theta$")
        for ax in axes[:, 0]:
            ax.set_ylabel(r"$\psi$")
        lines = [axes.flat[0].plot([], [], color=color, label=f"{kind} steps")[0] for kind, color in colors.items()]
        title = r"from (1, 1), and the largest $|\lambda|$ at the equilibrium:"
        fig.legend(handles=lines, loc="outside upper center", ncols=3, frameon=False, title=title)
        save(fig, path)


if __name__ == "__main__":
    main(parse(Config(), SMOKE))
