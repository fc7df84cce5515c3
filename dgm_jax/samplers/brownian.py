"""Brownian motion with one key per example: one batched path whose rows do not depend on the batch they are in.

diffrax draws a whole array from one key. Here each example's row is drawn from its own key, so that a device that
holds a slice of the keys draws exactly that slice's paths, while the solve stays one batched computation.
"""

from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from dgm_jax.typing import Keys


class FreshIncrements(diffrax.AbstractBrownianPath):
    """An independent increment for every step, from each example's key and the bits of the step's start.

    As `diffrax.UnsafeBrownianPath` per example, with half its hashing, and reverse-mode gradients are not refused: only
    those of `BacksolveAdjoint`, which asks for other steps, would be wrong.
    """

    keys: Keys
    event: jax.ShapeDtypeStruct = eqx.field(static=True)
    levy_area: type = eqx.field(static=True)

    @property
    def t0(self):  # type: ignore[override]
        """It has no start."""
        return -jnp.inf

    @property
    def t1(self):  # type: ignore[override]
        """It has no end."""
        return jnp.inf

    def evaluate(self, t0: Any, t1: Any = None, left: bool = True, use_levy: bool = False) -> PyTree:
        """Each example's increment from t0 to t1, stacked along the batch."""

        def increment(key: Keys) -> PyTree:
            if self.levy_area is diffrax.BrownianIncrement and not use_levy:
                for word in jnp.ravel(jax.lax.bitcast_convert_type(t0, jnp.uint32)):
                    key = jax.random.fold_in(key, word)
                noise = jax.random.normal(key, self.event.shape, self.event.dtype)
                return noise * jnp.sqrt(t1 - t0).astype(noise.dtype)
            path = diffrax.UnsafeBrownianPath(self.event, key=key, levy_area=self.levy_area)
            return path.evaluate(t0, t1, left, use_levy)

        return eqx.filter_vmap(increment)(self.keys)


class ExamplePaths(diffrax.AbstractBrownianPath):
    """One consistent path per example, evaluated together; every array in `paths` has a leading batch axis."""

    paths: diffrax.AbstractBrownianPath
    levy_area: type = eqx.field(static=True)

    @property
    def t0(self):  # type: ignore[override]
        """Start of the interval on which the paths are defined."""
        return jnp.ravel(self.paths.t0)[0]

    @property
    def t1(self):  # type: ignore[override]
        """End of the interval on which the paths are defined."""
        return jnp.ravel(self.paths.t1)[0]

    def evaluate(self, t0, t1=None, left: bool = True, use_levy: bool = False) -> PyTree:
        """Each example's increment from t0 to t1, stacked along the batch."""
        return eqx.filter_vmap(lambda path: path.evaluate(t0, t1, left, use_levy))(self.paths)


class _Tree(diffrax.VirtualBrownianTree):
    """diffrax's tree without its checks of t0 < t1 and of its range: they are host callbacks, which break export."""

    def _evaluate(self, r):
        # Rounding alone can lead out of the range: a solve steps within its clock, which is the tree's interval.
        return self._evaluate_leaf(self.key, jnp.clip(r, 0.0, 1.0), self.shape)


def independent_increments(keys: Keys, event: jax.ShapeDtypeStruct, solver: diffrax.AbstractSolver) -> FreshIncrements:
    """Fresh increments at every step, the fast choice: right where the steps are fixed in advance."""
    return FreshIncrements(keys=keys, event=event, levy_area=_levy_area(solver))


def brownian_tree(
    keys: Keys,
    event: jax.ShapeDtypeStruct,
    solver: diffrax.AbstractSolver,
    *,
    t0: Float[Array, ""],
    t1: Float[Array, ""],
) -> ExamplePaths:
    """One consistent path per example on [t0, t1]: for adaptive steps and strong orders.

    Increments shorter than 2^-14 of the interval are interpolated.
    """
    area = _levy_area(solver)

    def tree(key: Keys) -> _Tree:
        unit = _Tree(0.0, 1.0, tol=2.0**-14, shape=event, key=key, levy_area=area)  # type: ignore[call-arg]
        return eqx.tree_at(lambda path: (path.t0, path.t1), unit, (t0, t1))

    return ExamplePaths(paths=eqx.filter_vmap(tree)(keys), levy_area=area)


def _levy_area(solver: diffrax.AbstractSolver) -> type:
    """The least Lévy area that satisfies the solver: plain increments unless it names more."""
    wanted = getattr(solver, "minimal_levy_area", diffrax.AbstractBrownianIncrement)
    kinds = (diffrax.BrownianIncrement, diffrax.SpaceTimeLevyArea, diffrax.SpaceTimeTimeLevyArea)
    return next(kind for kind in kinds if issubclass(kind, wanted))
