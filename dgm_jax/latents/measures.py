"""How good a latent space is, whatever made it: what it keeps, how smooth it is, whether attributes lie apart in it.

| measure | question | better |
|---|---|---|
| `reconstruction_error` | does decoding undo encoding? | lower |
| `perceptual_path_length` | how much does a feature change along a path, per unit of it? | lower |
| `linear_separability` | does a hyperplane tell who has an attribute? | higher accuracy, lower entropy |
| `direction_effects` | does a direction change its own attribute, and no other? | a larger share on the diagonal |
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dgm_jax.latents.directions import Attribute, check_attribute, edit
from dgm_jax.latents.interpolation import Rule
from dgm_jax.latents.spaces import LatentSpace
from dgm_jax.metrics.classifier import logistic_weights
from dgm_jax.metrics.samples import flat
from dgm_jax.numerics import check_data, example_keys, in_order, known, known_number, sum_events
from dgm_jax.typing import Data, Keys, PerExample, Scalar

Features = Callable[[Data], Float[Array, "batch ..."]]


def reconstruction_error(space: LatentSpace, x: Data) -> PerExample:
    """Mean squared difference of x and decode(encode(x)), in squared data units."""
    check_data(x, "x")
    again = space.decode(space.encode(x))
    if again.shape != x.shape:
        raise ValueError(f"Expected a space that decodes to the shape of x, {x.shape}; got {again.shape}.")
    return sum_events((again - x) ** 2) / (x.size // x.shape[0])


def perceptual_path_length(
    decode: Callable[[Data], Data],
    z_0: Data,
    z_1: Data,
    features: Features,
    key: Keys,
    *,
    epsilon: float,
    rule: Rule,
) -> PerExample:
    """|f(G(z(s + epsilon))) - f(G(z(s)))|^2 / epsilon^2 at a random s of each path; its mean is the path length.

    Args:
        z_0, z_1: pairs of latents, such as draws of the prior or encoded data.
        features: in whose units, squared and per unit of s squared, the length is.
        epsilon: 1e-4 in the paper; in float32 larger where features are rounded to more than that.
        rule: `spherical` for latents that are N(0, I), `linear` for others.

    Reference: Karras et al. 2018, arXiv:1812.04948, section 4.1, eq. 2.
    """
    if not in_order(0, epsilon, 1) or known_number(epsilon) == 0:
        raise ValueError(f"Expected epsilon in (0, 1], as a difference is divided by it; got {epsilon}.")
    shares = jax.vmap(lambda key: jax.random.uniform(key, (), z_0.dtype, 0.0, 1.0 - epsilon))(
        example_keys(key, z_0.shape[0])
    )

    def seen(z: Data) -> Float[Array, "batch values"]:
        found = features(decode(z))
        if found.shape[:1] != z.shape[:1]:
            raise ValueError(f"Expected features [{z.shape[0]}, ...], as each path has its own; got {found.shape}.")
        return flat(found)

    near, far = (seen(z) for z in rule(z_0, z_1, jnp.stack([shares, shares + epsilon])))
    return jnp.sum((far - near) ** 2, axis=1) / epsilon**2


class Separability(NamedTuple):
    """Of held-out examples: accuracy of the hyperplane, and H(label | side) in nats, log 2 at most."""

    accuracy: Scalar
    conditional_entropy: Scalar


def linear_separability(latents: Data, labels: Attribute, *, penalty: float) -> Separability:
    """How well a hyperplane, learnt from every other example, tells the rest apart.

    Args:
        latents, labels: in an order that means nothing, as halves are taken by turns.
        penalty: as in `metrics.logistic`.

    Reference: Karras et al. 2018, arXiv:1812.04948, section 4.2; their score is the exponential of the sum of these
    entropies over attributes, with a support vector machine's hyperplane.
    """
    labels = check_attribute(latents, labels)
    for half in (slice(0, None, 2), slice(1, None, 2)):
        check_attribute(latents[half], labels[half])
    weights, intercept = logistic_weights(flat(latents[::2]), labels[::2], penalty=penalty)
    side, truth = flat(latents[1::2]) @ weights + intercept > 0, labels[1::2] == 1
    n = truth.shape[0]
    table = jnp.stack([jnp.stack([((side == s) & (truth == c)).sum() for c in (False, True)]) for s in (False, True)])
    joint = table.astype(weights.dtype) / n
    given = joint / jnp.maximum(joint.sum(1, keepdims=True), jnp.finfo(joint.dtype).tiny)
    return Separability((side == truth).astype(joint.dtype).mean(), -jax.scipy.special.xlogy(joint, given).sum())


class Effects(NamedTuple):
    """matrix: change of attribute j by direction i, in std of j [directions, attributes]. share: on its own attribute,
    of the sum of absolute effects [directions]."""

    matrix: Float[Array, "directions attributes"]
    share: Float[Array, " directions"]


def direction_effects(
    decode: Callable[[Data], Data],
    latents: Data,
    directions: Float[Array, " directions *latent"],
    attributes: Callable[[Data], Float[Array, "batch attributes"]],
    *,
    strength: float,
) -> Effects:
    """What each direction does to each attribute of the decoded examples: direction i is meant for attribute i.

    Args:
        attributes: [batch, *event] -> measured attributes [batch, attributes], as many as directions.
        strength: of the edits, in directions.
    """
    check_data(latents, "the latents")
    before, wanted = attributes(decode(latents)), (latents.shape[0], directions.shape[0])
    if before.shape != wanted:
        raise ValueError(
            f"Expected as many attributes as directions, {wanted}, as each direction is one's own; got {before.shape}."
        )
    spread = before.std(0)
    values = known(spread)
    if values is not None and not (values > 0).all():
        raise ValueError(f"Expected attributes that vary, as changes are in units of their std; got std {values}.")
    after = jax.lax.map(lambda direction: attributes(decode(edit(latents, direction, strength))), directions)
    matrix = (after - before[None]).mean(1) / spread[None]
    total = jnp.abs(matrix).sum(1)
    return Effects(matrix, jnp.abs(jnp.diagonal(matrix)) / jnp.where(total > 0, total, 1.0))
