"""Kernels that sample from p(x_0 | y) by what they do to the state: replacement, RePaint, and DPS's own step.

The known part of x_s is drawn from the forward process, alpha_s y + sigma_s noise, and put in the place of what the
kernel made of it (Song et al. 2021, arXiv:2011.13456, appendix I.2). The rest then sees y through x_s alone, and the
network never sees x_s and y at once: the joint of both parts is not that of the model. RePaint goes back to t and
down again, `resamples` times a step, so that the two parts agree better (Lugmayr et al. 2022, arXiv:2201.09865,
algorithm 1). It is still biased: what is drawn is a compromise of all levels, not p(x_0 | y).
"""

from collections.abc import Callable
from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dgm_jax.numerics import (
    check_like,
    expand_to,
    is_count,
    known_number,
    normal_like,
    rounded,
    split,
    sum_events,
)
from dgm_jax.parameterizations.operators import as_mask, check_measured, observation_like, observed_like, residual
from dgm_jax.parameterizations.posterior import posterior_of
from dgm_jax.samplers.ancestral import Ancestral
from dgm_jax.samplers.coordinates import CoordinateName
from dgm_jax.samplers.reverse import Kernel, Reverse
from dgm_jax.typing import Data, Keys

Transform = tuple[Callable[[Data], Data], Callable[[Data], Data]]
# the bits of a NaN, which no time and no step's number has: these draws share no key with the path or a corrector
OWN_DRAWS = np.uint32(0x7FC00001)


class _Around(Kernel):
    """A kernel of one step, with something done to the state about it."""

    def __check_init__(self):
        """Refuse a kernel that remembers what it did to states that were not kept."""
        kernel = self.kernel  # type: ignore[attr-defined]
        if not isinstance(kernel, Kernel) or isinstance(kernel, Replacement) or getattr(kernel, "steps_needed", 1) > 1:
            raise ValueError(
                "Expected a kernel of one step, such as Ancestral(), as what others keep from the last step is not "
                f"that of the changed state; got {kernel!r}."
            )

    @property
    def coordinates(self) -> CoordinateName:  # type: ignore[override]
        """The kernel's."""
        return self.kernel.coordinates  # type: ignore[attr-defined]


class Replacement(_Around):
    """The known part of the state replaced by y at each step's level; for `solve_sde` and `sample_sde`.

    Its last state holds alpha y + sigma noise in the known part. On a grid that ends at t = 0 the last step is the
    denoiser's own estimate: pass `inpaint(denoise, mask, y)` there to keep y.

    Args:
        mask: true where x is known; [*event], or [batch, *event] with one per example.
        y: as x, or one event for the whole batch; not looked at outside the mask.
        kernel: the step that is made before: `Ancestral()`, with any eta, or `ReverseDiffusion()`.
        transform: an orthogonal function of x and its inverse, where mask and y are of transformed x: with
            `colorization_transform` its first channel is the grey one (appendix I.3). None is x itself.
        resamples: times each step is made, a call of the network each; above 1 is RePaint, with a jump of one step.
    """

    mask: Array = eqx.field(converter=as_mask)
    y: Array = eqx.field(converter=jnp.asarray)
    kernel: Kernel = Ancestral()
    transform: Transform | None = eqx.field(static=True, default=None)
    resamples: int = eqx.field(static=True, default=1)

    def __check_init__(self):
        """Refuse what is not a number of steps, a pair of functions, or a y that is known."""
        if not is_count(self.resamples):
            raise ValueError(f"Expected whole resamples >= 1, as each step is made as often; got {self.resamples}.")
        pair = self.transform
        if pair is not None and not (isinstance(pair, tuple) and len(pair) == 2 and all(map(callable, pair))):
            raise ValueError(
                "Expected transform to be a pair of functions, to the coordinates of the mask and back, as x is "
                f"carried both ways; got {pair}."
            )
        check_measured(self.y, self.mask)

    @property
    def from_pure_noise(self) -> bool:  # type: ignore[override]
        """The kernel's."""
        return self.kernel.from_pure_noise

    @property
    def evaluations_per_step(self) -> int:  # type: ignore[override]
        """The kernel's, as often as the step is made."""
        return self.resamples * self.kernel.evaluations_per_step

    def init(self, terms, t0, t1, y0, args):
        """The number of steps made."""
        return jnp.zeros((), jnp.int32)

    def move(self, reverse, s_0, s_1, state, noise, memory):
        """Step and replace; go back by the forward process, and again."""
        keys = own_keys(reverse, memory)
        scale_0, scale_1 = reverse.scale(s_0), reverse.scale(s_1)
        back = posterior_of(reverse.process, reverse.time(s_0), reverse.time(s_1)).beta
        (alpha_t, _), (alpha_s, sigma_s) = reverse.levels(s_0), reverse.levels(s_1)
        of_state, of_noise = rounded((scale_0 * alpha_t / alpha_s / scale_1, scale_0 * jnp.sqrt(back)))

        def once(state: Data, noise: Data, key: Keys) -> Data:
            moved, _ = self.kernel.move(reverse, s_0, s_1, state, noise, None)
            return self._replaced(moved / scale_1, alpha_s, sigma_s, normal_like(key, state)) * scale_1

        def each(state: Data, i: Array) -> tuple[Data, None]:
            # one loop, so that the compiled program holds one copy of the network
            key_known, key_back, key_step = split(fold(keys, i), 3)
            renoised = of_state * state + of_noise * normal_like(key_back, state)
            begin = jnp.where(i == 0, state, renoised)
            return once(begin, jnp.where(i == 0, noise, normal_like(key_step, state)), key_known), None

        if self.resamples == 1:
            return once(state, noise, keys), memory + 1
        state, _ = jax.lax.scan(each, state, jnp.arange(self.resamples, dtype=jnp.int32))
        return state, memory + 1

    def _replaced(self, x: Data, alpha: Array, sigma: Array, noise: Data) -> Data:
        """x with alpha y + sigma noise in the known part."""
        forward, back = (lambda x: x, lambda x: x) if self.transform is None else self.transform
        inside = forward(x)
        y = observation_like(self.y, inside)
        known = observed_like(self.mask, inside)
        return back(jnp.where(known, alpha * jnp.where(known, y, 0.0) + sigma * noise, inside))


class DPSStep(_Around):
    """A step, then one down the gradient of the residual's length: x_s - size/|y - A(D)| grad |y - A(D(x_t))|^2.

    Dividing by the residual's length keeps it stable where `dps` is stiff, and makes it no density's gradient: the
    result depends on `size` and on the number of steps, and nothing says how wide it is.

    Args:
        operator: a `LinearOperator`, or any differentiable function of the batch.
        y: [batch, *observation], or [*observation], one for the batch.
        size: > 0, algorithm 1's zeta', in units of x. The authors' code takes the gradient of |y - A(D)| without the
            square, so that its scale, 0.3 to 1 for images in [-1, 1] and 1,000 steps, is twice this.

    Reference: Chung et al. 2022, arXiv:2209.14687, algorithm 1 and appendix C.2.
    """

    operator: Callable = eqx.field(static=True)
    y: Array = eqx.field(converter=jnp.asarray)
    size: float | Float[Array, ""] = eqx.field(kw_only=True)
    kernel: Kernel = eqx.field(default=Ancestral(), kw_only=True)

    def __check_init__(self):
        """Refuse a step backwards, and what is not measured."""
        size = known_number(self.size)
        if size is not None and not 0 < size < float("inf"):
            raise ValueError(f"Expected size > 0, one finite number, as the residual shortens by it; got {self.size}.")
        check_measured(self.y, getattr(self.operator, "observed", None))

    @property
    def from_pure_noise(self) -> bool:  # type: ignore[override]
        """The kernel's."""
        return self.kernel.from_pure_noise

    def move(self, reverse, s_0, s_1, state, noise, memory):
        """One call of the network and one transpose; the kernel is given its estimate."""
        scale_0, t = reverse.scale(s_0), rounded(reverse.time(s_0))
        estimate, pull = jax.vjp(
            lambda x: check_like(reverse.denoise(x, jnp.full(x.shape[0], t)), x, "denoiser"), state / scale_0
        )
        error, pull_error = jax.vjp(lambda x_0: residual(self.operator, self.y, x_0), estimate)
        squared = expand_to(sum_events(error**2), error)
        length = jnp.sqrt(jnp.where(squared == 0, 1.0, squared))  # NaN stays NaN, and is seen in the result
        direction = jnp.where(squared == 0, 0.0, error / length)
        gradient = 2 * pull(pull_error(direction)[0])[0]
        moved, memory = self.kernel.move(
            replace(reverse, denoise=lambda x, t: estimate), s_0, s_1, state, noise, memory
        )
        return moved - reverse.scale(s_1) * jnp.asarray(self.size).astype(state.dtype) * gradient, memory


def colorization_transform() -> Float[Array, "3 3"]:
    """An orthogonal matrix M whose first column is the grey direction: (x @ M)[..., 0] = (r + g + b)/sqrt(3).

    Reference: Song et al. 2021, arXiv:2011.13456, appendix I.3.
    """
    grey = np.array([[1, 1, 1], [1, -1, 0], [1, 1, -2]]).T
    return jnp.asarray(grey / np.sqrt((grey**2).sum(0)), jnp.result_type(float))


def own_keys(reverse: Reverse, step: Array) -> Keys:
    """One key per example for the step of this number, apart from all other draws of the solve."""
    return fold(fold(reverse.keys, jnp.asarray(OWN_DRAWS)), step)


def fold(keys: Keys, number: Array) -> Keys:
    """The number folded into each example's key."""
    return jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)
