"""The cells of family_comparison: networks are trained and kept, then drawn from and scored, one record a sampler.

What a run has is not computed again, be it a network in its checkpoints or a record in metrics.jsonl.
"""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from dgm_jax.training import Checkpoints, TrainState, load_params, saved_steps
from dgm_jax.typing import Keys
from experiments._families import model
from experiments._family_data import DATA, Data
from experiments._family_networks import NETWORKS, Networks, Sizes
from experiments._family_samplers import (
    FEW,
    SAMPLERS,
    Effort,
    annealed_log_density,
    best_std,
    log_density_of,
    sampled_log_density,
    sampler_of,
)
from experiments._family_table import REAL, UNITS
from experiments._run import Run

PARTS = 20  # in which training runs


class Plan(NamedTuple):
    """What is done on one data set. budget: floating-point operations of a training; points: drawn, and held out."""

    networks: tuple[str, ...]
    seeds: int
    sizes: Sizes
    budget: float
    points: int
    effort: Effort
    permutations: int
    feature_steps: int
    seed: int


class Trainer:
    """The training of one network: `trainer(key)` -> (moving average of the parameters, what it cost).

    The number of steps is what fits into `budget` floating-point operations, which XLA counts for the compiled step.
    Seconds are those that processors spent on it, which other programs do not lengthen as they do the time of day.
    """

    def __init__(self, name: str, nets: Networks, data: Data, budget: float):
        self.model = model(name, nets)
        self.flops = self._flops(nets.dim)
        self.steps = max(round(budget / self.flops), PARTS)

        def advance(key: Keys, state: TrainState, end: jax.Array) -> TrainState:
            def one(_: jax.Array, state: TrainState) -> TrainState:
                return self.model.step(state, data.batch(jax.random.fold_in(key, state.step), self.model.batch))[0]

            return jax.lax.fori_loop(state.step, end, one, state)

        self._advance = jax.jit(advance, donate_argnums=1)

    def __call__(self, key: Keys) -> tuple[PyTree, dict[str, float]]:
        """Parameters and cost."""
        key_init, key_data = jax.random.split(key)
        state = self.model.init(key_init, self.steps)
        state = jax.block_until_ready(self._advance(key_data, state, jnp.asarray(0)))  # compiled before the clock runs
        begun = time.process_time()
        for part in range(1, PARTS + 1):
            state = jax.block_until_ready(self._advance(key_data, state, jnp.asarray(part * self.steps // PARTS)))
        cost = {"steps": self.steps, "flops": self.steps * self.flops, "train_seconds": time.process_time() - begun}
        return state.ema, cost

    def _flops(self, dim: int) -> float:
        state = jax.eval_shape(lambda: self.model.init(jax.random.key(0), 1))
        x = jax.ShapeDtypeStruct((self.model.batch, dim), jnp.float32)
        costs: Any = jax.jit(self.model.step).lower(state, x).compile().cost_analysis()
        return float(costs["flops"])


class Comparison:
    """Everything on one data set."""

    def __init__(self, name: str, plan: Plan, run: Run):
        self.plan, self.run = plan, run
        self.data = DATA[name](plan.points)
        self.nets = Networks(plan.sizes, self.data.mean, self.data.std, self.data.output)

    def train(self) -> None:
        """Every network that the run does not have yet, all seeds of one after the other, as they share a program."""
        for network in self.plan.networks:
            missing = [seed for seed in self.seeds if not saved_steps(self.kept_in(network, seed))]
            if not missing:
                continue
            trainer = Trainer(network, self.nets, self.data, self.plan.budget)
            for seed in missing:
                params, cost = trainer(self.key(network, seed, 0))
                self.run.measured(str(self.kept_in(network, seed).name), lambda cost=cost: cost)
                with Checkpoints(self.kept_in(network, seed), keep=1) as checkpoints:
                    checkpoints.save(1, {"params": params})
                shown = {name: f"{value:.3g}" for name, value in cost.items()}
                print(f"{self.data.name}, {network}, seed {seed}: {shown}", flush=True)

    def compute(self) -> None:
        """Every cell that the run does not have yet, and the scores of real data."""
        from experiments._family_scores import scorer

        made = {(r["sampler"], r["seed"]) for r in self.run.records() if r["data"] == self.data.name}
        names_of = [*(SAMPLERS[network] for network in self.plan.networks), [REAL]]
        every = {(name, seed) for names in names_of for name in names for seed in self.seeds}
        print(f"{self.data.name}: {len(made & every)} of {len(every)} cells are there", flush=True)
        if every <= made:
            return
        score = scorer(
            self.data, self.plan.permutations, self.run.directory / "features", steps=self.plan.feature_steps
        )
        for seed in self.seeds:
            if (REAL, seed) not in made:
                scores = score(self.data.real(self.plan.points, seed), seed)
                self.run.log(data=self.data.name, network=REAL, sampler=REAL, seed=seed, scores=scores)
        for network in self.plan.networks:
            missing = [seed for seed in self.seeds if not {(name, seed) for name in SAMPLERS[network]} <= made]
            if missing:
                self.network(network, missing, score, made)

    @property
    def seeds(self) -> range:
        """Of the plan."""
        return range(self.plan.seeds)

    def key(self, network: str, seed: int, purpose: int) -> Keys:
        """Of a purpose in the life of a network: 0 trains, 1 draws, 2 codes."""
        key = jax.random.key(self.plan.seed)
        for number in (seed, NETWORKS.index(network), purpose):
            key = jax.random.fold_in(key, number)
        return key

    def kept_in(self, network: str, seed: int) -> Path:
        """The directory of a trained network."""
        name = f"{self.data.name}-{network}-{seed}".replace(", ", "-").replace(" ", "-")
        return self.run.directory / "checkpoints" / name

    def network(self, network: str, seeds: list[int], score: Callable[..., dict[str, float]], made: set[Any]) -> None:
        """Draw by each of a trained network's samplers, and score."""
        of_network, nats = model(network, self.nets), self.log_density(network)
        samplers = {
            name: jax.jit(sampler_of(network, kind, self.nets, self.plan.effort), static_argnums=2)
            for name, kind in SAMPLERS[network].items()
        }
        for seed in seeds:
            directory = self.kept_in(network, seed)
            params = load_params(directory, part="params")
            common = {
                "data": self.data.name,
                "network": network,
                "seed": seed,
                "parameters": of_network.generating,
                "trained_parameters": of_network.trained,
                **self.run.measured(directory.name, dict),
                **nats(params, self.key(network, seed, 2)),
            }
            for name, sampler in samplers.items():
                if (name, seed) in made:
                    continue
                drawn, drawing = self.draw(sampler, params, self.key(network, seed, 1))
                if seed == 0:
                    np.save(drawn_file(self.run, self.data.name, name), drawn)
                scores = score(drawn, seed)
                self.run.log(**common, sampler=name, **drawing, scores=scores)
                print(f"{self.data.name}, seed {seed}, {name}: {self.line({**common, **drawing}, scores)}", flush=True)

    def draw(self, sampler: Callable[..., Any], params: PyTree, key: Keys) -> tuple[np.ndarray, dict[str, float]]:
        """Points as they are scored; calls of the network and seconds of processors for each, compilation apart."""
        jax.block_until_ready(sampler(params, key, self.plan.points))
        begun = time.process_time()
        x, evaluations = jax.block_until_ready(sampler(params, key, self.plan.points))
        seconds = (time.process_time() - begun) / self.plan.points
        return self.data.finish(x), {"evaluations": int(evaluations), "seconds_per_sample": seconds}

    def log_density(self, network: str) -> Callable[[PyTree, Keys], dict[str, Any]]:
        """(params, key) -> the mean loss of points held out, its standard error over them, and how it was measured."""
        effort, found = self.plan.effort, log_density_of(network, self.nets, self.plan.effort)
        by, of_gan, points = "AIS", annealed_log_density, effort.annealed
        if self.nets.dim <= FEW:
            by, of_gan, points = f"mean of {effort.latents} latents", sampled_log_density, effort.coded
        of_gan = jax.jit(partial(of_gan, self.nets, effort))
        of_others = None if found is None else jax.jit(found[1])

        def measure(params: PyTree, key: Keys) -> dict[str, Any]:
            if of_others is None or found is None:
                key_known, key_std, key = jax.random.split(key, 3)
                std = best_std(of_gan, effort, params, self.data.batch(key_known, points), key_std)
                nats = of_gan(params, self.data.held_out(points), key, jnp.log(std))
                how = f"{by}, std {std}"
            else:
                how, nats = found[0], of_others(params, self.data.held_out(effort.coded), key)
            losses = np.asarray(self.data.loss(nats))
            error = float(losses.std(ddof=1) / np.sqrt(len(losses)))
            return {"loss": float(losses.mean()), "loss_error": error, "loss_by": how}

        return measure

    def line(self, record: dict[str, Any], scores: dict[str, float]) -> str:
        """What is printed of a cell."""
        shown = ", ".join(f"{name} {value:.3g}" for name, value in scores.items())
        cost = f"{record['steps']} steps, {record['flops']:.2g} flops, {record['train_seconds']:.0f} s"
        return f"{cost}; {record['loss']:.3f} {UNITS[self.data.name]}; {shown}"


def drawn_file(run: Run, name: str, sampler: str) -> Path:
    """Where they are kept."""
    return run.directory / f"{name}-{sampler.replace(', ', '-').replace(' ', '-')}.npy"
