"""Spectral normalisation as a pure function of the parameters.

    critic = partial(net.apply, spectral_normalize(params, iterations=20))

inside the loss: gradients then pass through the division, and the optimiser moves the plain parameters. Each kernel W,
as a matrix [inputs, outputs] (a convolution's as [height * width * inputs, outputs]), is divided by its largest
singular value. A network of such dense layers and of activations with slopes in [-1, 1] is 1-Lipschitz; a convolution's
own norm is another number, up to the root of the kernel's area larger.

Reference: Miyato et al. 2018, arXiv:1802.05957, eq. 8 and algorithm 1.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from dgm_jax.numerics import is_count


def spectral_normalize(params: PyTree, *, iterations: int) -> PyTree:
    """The parameters with every leaf named "kernel" over its largest singular value; all others as they are.

    The paper carries a vector from step to step and takes one iteration each. This function keeps nothing and starts
    from the same fixed vector each time, so it takes more: the estimate is from below, and its relative error falls as
    (sigma_2/sigma_1)^(4 iterations). As in the paper no gradient passes through the singular vectors. A kernel of zeros
    stays.

    Raises:
        ValueError: no leaf is a kernel, or `iterations` is below 1.
    """
    if not is_count(iterations):
        raise ValueError(f"Expected an integer iterations >= 1, as the norm is found by them; got {iterations=}.")
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    if not any(_is_kernel(path) for path in paths):
        found = ", ".join(jax.tree_util.keystr(path) for path in paths[:8])
        raise ValueError(f'Expected leaves named "kernel", as those are normalised; got {found or "no leaves"}.')

    def normalized(path: tuple, leaf: Array) -> Array:
        if not _is_kernel(path):
            return leaf
        norm = spectral_norm(leaf.reshape(-1, leaf.shape[-1]), iterations=iterations)
        return leaf / jnp.where(norm > 0, norm, 1.0)

    return jax.tree_util.tree_map_with_path(normalized, params)


def spectral_norm(matrix: Float[Array, "rows columns"], *, iterations: int) -> Float[Array, ""]:
    """u^T W v, the largest singular value, by power iteration from a fixed start; u and v have no gradient."""
    fixed = jax.lax.stop_gradient(matrix)
    # A random vector is orthogonal to the largest singular vector of no matrix that one would meet.
    start = np.random.default_rng(0).standard_normal(matrix.shape[1])

    def closer(_: object, v: Float[Array, " columns"]) -> Float[Array, " columns"]:
        return _unit(fixed.T @ _unit(fixed @ v))

    v = jax.lax.fori_loop(0, iterations, closer, _unit(jnp.asarray(start, matrix.dtype)))
    return jnp.dot(_unit(fixed @ v), matrix @ v)


def _unit(vector: Float[Array, " size"]) -> Float[Array, " size"]:
    size = jnp.linalg.norm(vector)
    return vector / jnp.where(size > 0, size, 1.0)


def _is_kernel(path: tuple) -> bool:
    return bool(path) and getattr(path[-1], "key", None) == "kernel"
