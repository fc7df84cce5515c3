"""Posteriors: densities against SciPy and quadrature, moments of draws, Jacobians of every flow."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from exact_latent import CORRELATED

from dgm_jax.losses import (
    diagonal_log_density,
    diagonal_posterior,
    flow_log_density,
    flow_posterior,
    flows,
    full_covariance_log_density,
    full_covariance_posterior,
)

RNG = np.random.default_rng(0)
LATENT, CONTEXT = 2, 3
STEER = {name: 0.6 * RNG.standard_normal((LATENT + CONTEXT, LATENT)) for name in ("shift", "scale", "u", "w")}
BELOW = np.triu(np.ones((LATENT, LATENT)), 1)  # column i sees the rows above it: z_0 .. z_(i - 1)


def affine(z, context):
    """(shift, log_scale) of what is kept and of the context."""
    inputs = jnp.concatenate([z, context], axis=1)
    return (jnp.tanh(inputs @ jnp.asarray(STEER[name], z.dtype)) for name in ("shift", "scale"))


def autoregressive(z, context):
    masked = [
        z @ jnp.asarray(STEER[name][:LATENT] * BELOW, z.dtype) + context @ jnp.asarray(STEER[name][LATENT:], z.dtype)
        for name in ("shift", "scale")
    ]
    return jnp.sin(masked[0]), masked[1] + 1


def bent(context):
    """u and w of any sign, so that the constraint is at work."""
    u, w = (2 * context @ jnp.asarray(STEER[name][LATENT:], context.dtype) for name in ("u", "w"))
    return u, w, context[:, 0]


def reverse(z, context):
    return z[:, ::-1], jnp.zeros(len(z), z.dtype)


KEPT = (True, False)
LAYERS = {
    "planar": flows.planar(bent),
    "coupling": flows.affine_coupling(affine, kept=KEPT),
    "coupling, inverse": flows.affine_coupling_inverse(affine, kept=KEPT),
    "inverse autoregressive": flows.inverse_autoregressive(autoregressive),
}
FLOWS = {
    "planar": [LAYERS["planar"], LAYERS["planar"]],
    "coupling": [LAYERS["coupling"], reverse, LAYERS["coupling"]],
    "inverse autoregressive": [LAYERS["inverse autoregressive"], reverse, LAYERS["inverse autoregressive"]],
}


def encode(x):
    """N(mean, diag std^2) of the first columns."""
    return x[:, :LATENT] / 2, jnp.broadcast_to(jnp.asarray([[-0.3, 0.2]], x.dtype), (len(x), LATENT))


def inputs(n):
    return jnp.asarray(np.random.default_rng(1).standard_normal((n, CONTEXT)))


def test_gaussian_posteriors_are_scipys():
    """The density at the draw, the density at any z, and the law of the draws."""
    with jax.enable_x64(True):
        x = jnp.asarray(CORRELATED.sample(np.random.default_rng(0), 5))
        cases = {
            "full": (full_covariance_posterior, full_covariance_log_density, CORRELATED.encode_full),
            "diagonal": (diagonal_posterior, diagonal_log_density, CORRELATED.encode_diagonal),
        }
        covariances = {
            "full": CORRELATED.covariance,
            "diagonal": np.diag(1 / np.diag(np.linalg.inv(CORRELATED.covariance))),
        }
        for name, (posterior, density, encoder) in cases.items():
            covariance = covariances[name]
            z, log_q = jax.jit(posterior(encoder))(x, jax.random.key(0))
            laws = [scipy.stats.multivariate_normal(mean, covariance) for mean in CORRELATED.mean(x)]
            expected = [law.logpdf(point) for law, point in zip(laws, np.asarray(z), strict=True)]
            np.testing.assert_allclose(log_q, expected, rtol=1e-10)
            away = np.asarray(z) + 1.3
            expected = [law.logpdf(point) for law, point in zip(laws, away, strict=True)]
            np.testing.assert_allclose(jax.jit(density(encoder))(x, jnp.asarray(away)), expected, rtol=1e-10)
            n = 20_000
            z, _ = jax.jit(posterior(encoder))(jnp.tile(x[:1], (n, 1)), jax.random.key(1))
            z = np.asarray(z) - CORRELATED.mean(x[:1])
            deviations = np.sqrt(np.diag(covariance))
            np.testing.assert_array_less(np.abs(z.mean(0)), 4 * deviations / np.sqrt(n))
            # Var(z_i z_j) = C_ii C_jj + C_ij^2
            error = np.sqrt((np.outer(deviations, deviations) ** 2 + covariance**2) / n)
            np.testing.assert_array_less(np.abs(z.T @ z / n - covariance), 4 * error)


@pytest.mark.parametrize("name", LAYERS)
def test_log_det_is_that_of_the_jacobian(name):
    with jax.enable_x64(True):
        context = 2 * inputs(40)
        z = 2 * jnp.asarray(np.random.default_rng(2).standard_normal((40, LATENT)))
        moved, log_det = jax.jit(LAYERS[name])(z, context)
        one = lambda z, c: LAYERS[name](z[None], c[None])[0][0]  # noqa: E731
        jacobian = np.asarray(jax.jit(jax.vmap(jax.jacfwd(one)))(z, context))
    signs, expected = np.linalg.slogdet(jacobian)
    np.testing.assert_allclose(log_det, expected, rtol=1e-10, atol=1e-12)
    assert (signs > 0).all()
    assert not np.allclose(moved, z)


def test_planar_layers_are_the_papers_where_they_are_invertible_already():
    """Equation 10 with the constrained u: w.u > -1 however u is chosen, and the identity of w = 0."""
    with jax.enable_x64(True):
        u, w = (jnp.asarray(3 * RNG.standard_normal((50, LATENT))) for _ in range(2))
        z, b = jnp.asarray(RNG.standard_normal((50, LATENT))), jnp.asarray(RNG.standard_normal(50))
        moved, log_det = flows.planar(lambda _: (u, w, b))(z, None)
        still, flat = flows.planar(lambda _: (u, 0 * w, b))(z, None)
        gradient = jax.jit(jax.grad(lambda w: flows.planar(lambda _: (u, w, b))(z, None)[0].sum()))(0 * w)
    u, w, z, b = (np.asarray(part) for part in (u, w, z, b))
    along = (u * w).sum(1)
    right = u + (np.log1p(np.exp(along)) - 1 - along)[:, None] * w / (w**2).sum(1, keepdims=True)
    assert ((right * w).sum(1) > -1).all()
    bend = np.tanh((w * z).sum(1) + b)
    np.testing.assert_allclose(moved, z + right * bend[:, None], rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(log_det, np.log(np.abs(1 + (1 - bend**2) * (right * w).sum(1))), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(still, z + u * np.tanh(b)[:, None], rtol=1e-12)
    np.testing.assert_array_equal(flat, 0)
    assert np.isfinite(gradient).all()


def test_inverses_undo_their_layers():
    with jax.enable_x64(True):
        z, context = inputs(20)[:, :LATENT], inputs(20)
        moved, log_det = LAYERS["coupling"](z, context)
        back, undone = LAYERS["coupling, inverse"](moved, context)
    np.testing.assert_allclose(back, z, rtol=1e-12)
    np.testing.assert_allclose(undone, -log_det, rtol=1e-12)
    np.testing.assert_array_equal(np.asarray(moved)[:, 0], np.asarray(z)[:, 0])


@pytest.mark.parametrize("name", FLOWS)
def test_a_flows_density_integrates_to_one(name):
    """On the image of a fine grid of base points, whose cells have the areas that their corners say."""
    with jax.enable_x64(True):
        n, half = 401, 7.0
        side = np.linspace(-half, half, n)
        noise = np.stack(np.meshgrid(side, side, indexing="ij"), axis=-1).reshape(-1, LATENT)
        x = inputs(1)
        base = lambda x, key: (jnp.asarray(noise), jax.scipy.stats.norm.logpdf(jnp.asarray(noise)).sum(1))  # noqa: E731
        wide = jnp.broadcast_to(x, (n * n, CONTEXT))
        z, log_q = jax.jit(flow_posterior(base, FLOWS[name]))(wide, jax.random.key(0))
    z, q = np.asarray(z).reshape(n, n, LATENT), np.exp(np.asarray(log_q)).reshape(n, n)
    fine, coarse = (mass_of_cells(z[::k, ::k], q[::k, ::k]) - 1 for k in (1, 2))
    # of second order in the cells' side of 0.035, and so four times as much for twice the side
    assert abs(fine) < 1e-2
    np.testing.assert_allclose(coarse, 4 * fine, atol=abs(fine) + 1e-6)


def mass_of_cells(z, q):
    """Sum of areas of the cells' images, by their diagonals, times the mean density of their corners."""
    first, second = z[1:, 1:] - z[:-1, :-1], z[1:, :-1] - z[:-1, 1:]
    area = np.abs(first[..., 0] * second[..., 1] - first[..., 1] * second[..., 0]) / 2
    return np.sum(area * (q[1:, 1:] + q[:-1, :-1] + q[1:, :-1] + q[:-1, 1:]) / 4)


def test_a_coupling_flows_density_at_any_point():
    """Equal to the draw's own log q at the draw, and integrating to one over the plane by the trapezoidal rule."""
    forward = [LAYERS["coupling"], reverse, LAYERS["coupling"]]
    inverses = [LAYERS["coupling, inverse"], reverse, LAYERS["coupling, inverse"]]
    with jax.enable_x64(True):
        x = inputs(6)
        draw = flow_posterior(diagonal_posterior(encode), forward)
        log_density = jax.jit(flow_log_density(diagonal_log_density(encode), inverses))
        z, log_q = jax.jit(draw)(x, jax.random.key(0))
        np.testing.assert_allclose(log_density(x, z), log_q, rtol=1e-10)
        side = np.linspace(-12, 12, 481)
        plane = np.stack(np.meshgrid(side, side, indexing="ij"), axis=-1).reshape(-1, LATENT)
        wide = jnp.broadcast_to(x[:1], (len(plane), CONTEXT))
        total = np.exp(np.asarray(log_density(wide, jnp.asarray(plane)))).sum() * (side[1] - side[0]) ** 2
    np.testing.assert_allclose(total, 1, rtol=1e-4)  # smooth, and gone at the edges: the rule is spectral


@pytest.mark.parametrize("name", FLOWS)
def test_log_q_is_the_density_of_what_is_drawn(name):
    """E_q[r(z)/q(z | x)] = 1 for a density r: a narrow one amid the draws, so that the quotient has a variance."""
    n = 40_000
    with jax.enable_x64(True):
        x = jnp.broadcast_to(inputs(1), (n, CONTEXT))
        z, log_q = jax.device_get(
            jax.jit(flow_posterior(diagonal_posterior(encode), FLOWS[name]))(x, jax.random.key(3))
        )
    quotient = np.exp(scipy.stats.norm.logpdf(z, np.median(z, axis=0), 0.2).sum(1) - log_q)
    assert abs(quotient.mean() - 1) < 4 * quotient.std() / np.sqrt(n)


def test_context_is_made_once():
    calls = []

    def features(x):
        calls.append(1)
        return jnp.tanh(x)

    draw = flow_posterior(diagonal_posterior(encode), FLOWS["coupling"], context=features)
    x = jnp.asarray(inputs(4), jnp.float32)
    z, log_q = draw(x, jax.random.key(0))
    plain, same = flow_posterior(diagonal_posterior(encode), FLOWS["coupling"])(jnp.tanh(x), jax.random.key(0))
    assert len(calls) == 1
    assert z.shape == (4, LATENT)
    assert log_q.shape == (4,)
    assert not np.allclose(z, plain)
    assert not np.allclose(log_q, same)
