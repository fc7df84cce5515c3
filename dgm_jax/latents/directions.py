"""Directions of attributes in a latent space, and edits along them.

A direction d has the latents' shape, and its length is that of the attribute: strength 1 carries the mean of the
examples with label 0 onto that of label 1, as seen along d.

Latents are of any kind: x_1 of a diffusion model, a VAE's z, a GAN's z, a U-Net's bottleneck.

Reference: Radford et al. 2015, arXiv:1511.06434, section 6.3.2 (differences of means); Shen et al. 2019,
arXiv:1907.10786, section 2.2 (normals of linear classifiers).
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from dgm_jax.metrics.classifier import logistic_weights
from dgm_jax.metrics.samples import flat
from dgm_jax.numerics import check_data, expand_to, known
from dgm_jax.typing import Data, PerExample

Direction = Float[Array, "*latent"]
Attribute = Int[Array, " batch"] | Bool[Array, " batch"] | Int[np.ndarray, " batch"] | Bool[np.ndarray, " batch"]


def mean_direction(latents: Data, labels: Attribute) -> Direction:
    """The mean of the latents with label 1 less that of label 0: best where both classes are round."""
    labels = check_attribute(latents, labels)
    of_1 = labels.astype(latents.dtype)
    means = [jnp.tensordot(share / share.sum(), latents, 1) for share in (of_1, 1 - of_1)]
    return means[0] - means[1]


def logistic_direction(latents: Data, labels: Attribute, *, penalty: float) -> Direction:
    """The normal of a logistic regression's boundary: takes the classes' shared covariance into account.

    Coordinates that hardly vary get most of its length, as the black border of images does in x_1: an edit along it
    then changes little else, and `mean_direction` is the one to take.

    Args:
        penalty: of the squared weights on standardised coordinates, as in `metrics.logistic`.
    """
    labels = check_attribute(latents, labels)
    normal, _ = logistic_weights(flat(latents), labels, penalty=penalty)
    normal = normal.reshape(latents.shape[1:])
    length = known(jnp.sum(normal**2))
    if length is not None and not length > 0:
        raise ValueError(f"Expected latents that vary with the labels, as a direction has a length; got {length}.")
    between = jnp.sum(mean_direction(latents, labels) * normal)
    return normal * (between / jnp.sum(normal**2))


def edit(latents: Data, direction: Direction, strength: float | Float[Array, ""] | PerExample) -> Data:
    """The latents moved by `strength` directions, one strength for all or one each; 0 changes nothing to the bit."""
    check_data(latents, "the latents")
    if direction.shape != latents.shape[1:]:
        raise ValueError(
            f"Expected a direction of shape {latents.shape[1:]}, as the latents are; got {direction.shape}."
        )
    strength = jnp.asarray(strength, latents.dtype)
    if strength.shape not in ((), (latents.shape[0],)):
        raise ValueError(f"Expected one strength, or {(latents.shape[0],)} of them; got shape {strength.shape}.")
    return latents + expand_to(jnp.broadcast_to(strength, latents.shape[0]), latents) * direction[None]


def check_attribute(latents: Data, labels: Attribute) -> Int[Array, " batch"]:
    """The labels as 0 and 1, or `ValueError` where they are not one per example, or one class alone (where known)."""
    check_data(latents, "the latents")
    if labels.shape != (latents.shape[0],) or jnp.issubdtype(labels.dtype, jnp.floating):
        raise ValueError(
            f"Expected labels 0 or 1 of shape {(latents.shape[0],)}, as each example has or has not the attribute; got "
            f"shape {labels.shape}, dtype {labels.dtype}."
        )
    values = known(labels)
    if values is not None and set(np.unique(values).tolist()) != {0, 1}:
        raise ValueError(f"Expected labels 0 and 1, both present, as two classes differ; got {np.unique(values)[:5]}.")
    return jnp.asarray(labels).astype(jnp.int32)
