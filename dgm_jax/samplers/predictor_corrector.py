"""Predictor-corrector samplers: a step to the next time, then moves that leave that time's law as it is.

The order is that of Song et al. 2021 (arXiv:2011.13456, algorithms 1 to 3): the predictor steps from t to s, then the
corrector moves at s. Predictors are one-step solvers:

| predictor | solver |
|---|---|
| Euler-Maruyama on the reverse SDE | `diffrax.Euler()` |
| reverse diffusion (appendix E) | `ReverseDiffusion()` |
| ancestral (appendix F; Ho et al. 2020) | `Ancestral()` |
| probability-flow ODE | `diffrax.Euler()` with stochasticity = 0 |
| none, the corrector alone | `Hold()` |
"""

from dataclasses import replace
from typing import Any, ClassVar

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from dgm_jax.numerics import check_like, rounded
from dgm_jax.parameterizations.posterior import posterior_of
from dgm_jax.samplers.ancestral import Ancestral
from dgm_jax.samplers.coordinates import CoordinateName
from dgm_jax.samplers.correctors import Corrector, Langevin, NormalizedLangevin, noise_of_moves
from dgm_jax.samplers.multistep import AdamsBashforth
from dgm_jax.samplers.reverse import Kernel, Reverse, brownian_noise
from dgm_jax.samplers.stepping import evaluations_of
from dgm_jax.typing import Data, Keys

REMEMBERING = (diffrax.LeapfrogMidpoint, diffrax.ReversibleHeun, AdamsBashforth)


class ReverseDiffusion(Kernel):
    """The reverse SDE discretised as its forward chain is: x_s = (2 - a) x + G^2 score + G noise.

    The forward chain from s to t is x_t = a x_s + G noise, a = alpha_t/alpha_s, G^2 = sigma_t^2 - a^2 sigma_s^2, for
    every process. Weak order 1. Reference: Song et al. 2021, arXiv:2011.13456, eq. 45 and 46.
    """

    coordinates: ClassVar[CoordinateName] = "time"

    def move(self, reverse, s_0, s_1, state, noise, memory):
        """One step of the reversed chain; G^2 score = -G^2/sigma_t times the noise estimate."""
        _, noise_estimate = reverse.estimates(s_0, state)
        (alpha_t, sigma_t), (alpha_s, _) = reverse.levels(s_0), reverse.levels(s_1)
        added = posterior_of(reverse.process, reverse.time(s_0), reverse.time(s_1)).beta
        of_state, of_estimate, of_noise = rounded((2 - alpha_t / alpha_s, -added / sigma_t, jnp.sqrt(added)))
        return of_state * state + of_estimate * noise_estimate + of_noise * noise, None


class Hold(Kernel):
    """x stays as it is: annealed Langevin dynamics, once a corrector follows."""

    coordinates: ClassVar[CoordinateName] = "time"
    evaluations_per_step: ClassVar[int] = 0

    def order(self, terms):
        """It solves nothing."""
        return 0

    def move(self, reverse, s_0, s_1, state, noise, memory):
        """No move."""
        return state, None


class PredictorCorrector(diffrax.AbstractItoSolver):
    """The predictor's step from t to s, then the corrector's moves at s; for `solve_sde`."""

    predictor: diffrax.AbstractSolver
    corrector: Corrector = eqx.field(static=True)

    term_structure: ClassVar = diffrax.AbstractTerm
    interpolation_cls: ClassVar = diffrax.LocalLinearInterpolation

    def __check_init__(self):
        """Refuse a predictor that remembers slopes, which the corrector would falsify."""
        if isinstance(self.corrector, type) or not isinstance(self.corrector, Corrector):
            raise ValueError(f"Expected a corrector, such as Langevin(snr=0.16), as it moves x; got {self.corrector}.")
        one_step = isinstance(self.predictor, diffrax.AbstractSolver) and not isinstance(
            self.predictor, (*REMEMBERING, PredictorCorrector)
        )
        if not one_step or evaluations_of(self.predictor)[0] > 0 or getattr(self.predictor, "steps_needed", 1) > 1:
            raise ValueError(
                "Expected a predictor of one step, such as ReverseDiffusion(), as slopes kept from the last step are "
                f"not those of the corrected state; got {self.predictor!r}."
            )

    @property
    def coordinates(self) -> CoordinateName | None:
        """The predictor's."""
        return getattr(self.predictor, "coordinates", None)

    @property
    def from_pure_noise(self) -> bool:
        """The predictor's."""
        return getattr(self.predictor, "from_pure_noise", False)

    @property
    def minimal_levy_area(self) -> type:
        """The predictor's."""
        return getattr(self.predictor, "minimal_levy_area", diffrax.AbstractBrownianIncrement)

    @property
    def evaluations_per_step(self) -> int:
        """The predictor's and the corrector's."""
        return evaluations_of(self.predictor)[1] + self.corrector.evaluations

    def order(self, terms):
        """The predictor's."""
        return self.predictor.order(terms)

    def init(self, terms, t0, t1, y0, args):
        """(steps made, what the predictor remembers)."""
        return jnp.zeros((), jnp.int32), self.predictor.init(terms, t0, t1, y0, args)

    def step(self, terms, t0: Any, t1: Any, y0, args: Any, solver_state, made_jump):
        """Predict, then correct in data units."""
        made, remembered = solver_state
        # exact types: a subclass may ask for more than one estimate, or call the score as it likes
        shared = type(self.corrector) in (Langevin, NormalizedLangevin)
        if shared and type(self.predictor) in (Ancestral, ReverseDiffusion):
            y1 = self._shared_loop(args, t0, t1, y0, brownian_noise(terms, t0, t1), args.keys_of(made))
            return y1, None, {"y0": y0, "y1": y1}, (made + 1, remembered), diffrax.RESULTS.successful
        state, _, _, remembered, result = self.predictor.step(terms, t0, t1, y0, args, remembered, made_jump)
        scale, (_, sigma) = args.scale(t1), args.levels(t1)
        corrected = self.corrector(args.score(t1), state / scale, sigma, args.keys_of(made))
        y1 = corrected * scale
        return y1, None, {"y0": y0, "y1": y1}, (made + 1, remembered), result

    def _shared_loop(self, reverse: Reverse, s_0, s_1, state: Data, noise: Data, keys: Keys) -> Data:
        """Prediction and corrections in one loop, so that the compiled program holds one copy of the network."""
        predictor: Any = self.predictor
        corrector: Any = self.corrector
        t_0, t_1, scale_0, scale_1 = reverse.time(s_0), reverse.time(s_1), reverse.scale(s_0), reverse.scale(s_1)
        alpha, sigma = reverse.levels(s_1)

        def call(x: Data, now: tuple[Array, Data]) -> tuple[Data, None]:
            predicting, noise = now
            t = rounded(jnp.where(predicting, t_0, t_1))
            estimate = check_like(reverse.denoise(x, jnp.full(x.shape[0], t)), x, "denoiser")
            given = replace(reverse, denoise=lambda x, t: estimate)
            predicted, _ = predictor.move(given, s_0, s_1, x * scale_0, noise, None)
            corrected = corrector.move((alpha * estimate - x) / sigma**2, x, sigma, noise)
            return jnp.where(predicting, predicted / scale_1, corrected), None

        every = jnp.concatenate([noise[None], noise_of_moves(keys, noise, corrector.steps)])
        each = jnp.arange(len(every), dtype=jnp.int32) == 0, every
        return jax.lax.scan(call, state / scale_0, each)[0] * scale_1

    def func(self, terms, t0, y0, args):
        """The drift."""
        return terms.vf(t0, y0, args)
