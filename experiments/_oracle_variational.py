"""Rows of the oracle table for variational autoencoders: bounds, gradients, KLs, decoders, posteriors, priors.

The bounds are those of probabilistic PCA, whose likelihood and posterior are known; KLs and densities are SciPy's or
integrals; the probabilities of decoders sum to one. None depends on a process.
"""

import itertools
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.integrate
import scipy.special
import scipy.stats

from dgm_jax import losses
from dgm_jax.losses import flows, priors
from experiments._oracle_rows import Row, paper, relative, standard_errors, worst
from tests.exact_latent import CORRELATED, DIAGONAL, kl_of_gaussians

KINGMA, BURDA, DREG, IAF, BURGESS = "1312.6114", "1509.00519", "1810.04152", "1606.04934", "1804.03599"
PLANAR, NVP, VAMP, PIXEL = "1505.05770", "1605.08803", "1705.07120", "1701.05517"
POINTS, NONE = 4_000, "none"


def variational_rows(names: Sequence[str]) -> Iterator[Row]:
    """All rows; no process takes part, so that the names are not looked at."""
    yield from bound_rows()
    yield from divergence_rows()
    yield from decoder_rows()
    yield from posterior_rows()
    yield from prior_rows()


def _law(family: Any, *parameters: Any) -> Any:
    """A frozen law of SciPy's."""
    return family(*parameters)


def _off(x: Any) -> tuple[Any, Any]:
    """A posterior beside the exact one."""
    mean, log_std = DIAGONAL.encode_diagonal(x)
    return mean + 0.3, log_std + 0.2


def bound_rows() -> Iterator[Row]:
    """Bounds and the losses made of them."""
    x = CORRELATED.sample(np.random.default_rng(0), 16)
    draw = losses.full_covariance_posterior(CORRELATED.encode_full)
    exact = CORRELATED.log_prob(x)
    oracle = "log p(x) of PCA at the exact posterior, each draw"
    joint = jax.jit(partial(losses.elbo, draw, CORRELATED.log_joint))(jnp.asarray(x), jax.random.key(0))
    yield Row("`elbo`", paper(KINGMA, "eq. 2"), NONE, oracle, worst(relative(joint, exact), 1e-12))
    many = jax.jit(partial(losses.iwae_bound, draw, CORRELATED.log_joint, samples=7))(jnp.asarray(x), jax.random.key(0))
    yield Row("`iwae_bound`", paper(BURDA, "eq. 8"), NONE, oracle, worst(relative(many, exact), 1e-12))
    one = DIAGONAL.sample(np.random.default_rng(1), 1)
    wide = jnp.asarray(np.repeat(one, POINTS, 0))
    variance = np.exp(0.4) / np.diag(np.linalg.inv(DIAGONAL.covariance))
    expected = float(DIAGONAL.elbo(one, DIAGONAL.mean(one) + 0.3, np.diag(variance))[0])
    terms = jax.jit(partial(losses.gaussian_elbo, _off, DIAGONAL.log_likelihood))(wide, jax.random.key(1))
    oracle = "log p(x) - KL from the exact posterior; standard errors"
    yield Row("`gaussian_elbo`", paper(KINGMA, "eq. 7"), NONE, oracle, standard_errors(terms.value, expected))
    few = jnp.asarray(one)

    def gradient(bound: str, log_std: Any, key: Any) -> Any:
        encode = lambda x, s: (_off(x)[0], _off(x)[1] + s)  # noqa: E731
        draw = losses.diagonal_posterior(partial(encode, s=log_std))
        if bound == "iwae":
            return losses.iwae_bound(draw, DIAGONAL.log_joint, few, key, samples=5)[0]
        log_q = losses.diagonal_log_density(partial(encode, s=jax.lax.stop_gradient(log_std)))
        return losses.dreg_bound(draw, log_q, DIAGONAL.log_joint, few, key, samples=5)[0]

    keys = jax.random.split(jax.random.key(2), POINTS)
    old, new = (
        jax.jit(jax.vmap(jax.grad(partial(gradient, bound)), (None, 0)))(jnp.zeros(()), keys)
        for bound in ("iwae", "dreg")
    )
    oracle = "IWAE's gradient in log std, same draws; standard errors"
    yield Row("`dreg_bound`", paper(DREG, "eq. 8"), NONE, oracle, standard_errors(np.asarray(old - new), 0.0))
    pair = losses.Elbo(jnp.asarray([-3.0, -5.0]), jnp.asarray([4.0, 1.0]))
    measured = worst(losses.beta_loss(pair, beta=4.0) - np.array([19.0, 9.0]), 1e-12)
    yield Row("`beta_loss`", paper(BURGESS, "eq. 3"), NONE, "its formula", measured)
    measured = worst(losses.capacity_loss(pair, capacity=2.5, gamma=10.0) - np.array([18.0, 20.0]), 1e-12)
    yield Row("`capacity_loss`", paper(BURGESS, "eq. 8"), NONE, "its formula", measured)
    kl = np.random.default_rng(0).gamma(1.0, [0.1, 0.6, 2.0], (50, 3))
    bits = float(losses.free_bits(jnp.asarray(kl), nats=0.5).mean()) - np.maximum(0.5, kl.mean(0)).sum()
    yield Row("`free_bits`", paper(IAF, "eq. 15"), NONE, "sum of maxima", worst(bits, 1e-12))
    values = np.random.default_rng(0).standard_normal((5, 3))
    error = losses.log_mean_exp(jnp.asarray(values + 1e3)) - 1e3 - np.log(np.exp(values).mean(0))
    yield Row("`log_mean_exp`", paper(BURDA), NONE, "NumPy, shifted by 1000", worst(error, 1e-11))


def divergence_rows() -> Iterator[Row]:
    """KLs by quadrature, by determinants, and by draws."""
    rng = np.random.default_rng(1)
    mean, log_std, mean_2, log_std_2 = (0.7 * rng.standard_normal((4, 3)) for _ in range(4))
    below = 0.6 * rng.standard_normal((4, 3))

    def integral(m: float, s: float, m_2: float, s_2: float) -> float:
        q, p = (_law(scipy.stats.norm, *pair) for pair in ((m, np.exp(s)), (m_2, np.exp(s_2))))
        low, high = m - 12 * np.exp(s), m + 12 * np.exp(s)
        return scipy.integrate.quad(lambda z: q.pdf(z) * (q.logpdf(z) - p.logpdf(z)), low, high, epsabs=1e-12)[0]

    each = np.vectorize(integral)
    q, p = (jnp.asarray(mean), jnp.asarray(log_std)), (jnp.asarray(mean_2), jnp.asarray(log_std_2))
    unit, between = each(mean, log_std, 0.0, 0.0), each(mean, log_std, mean_2, log_std_2).sum(1)
    where = paper(KINGMA, "app. B")
    measured = worst(losses.gaussian_kl_per_latent(*q) - unit, 1e-9)
    yield Row("`gaussian_kl_per_latent`", where, NONE, "quadrature", measured)
    yield Row("`gaussian_kl`", where, NONE, "quadrature", worst(losses.gaussian_kl(*q) - unit.sum(1), 1e-9))
    measured = worst(losses.gaussian_kl_between(*q, *p) - between, 1e-8)
    yield Row("`gaussian_kl_between`", where, NONE, "quadrature", measured)
    entries = jnp.asarray(np.concatenate([log_std, below], 1))
    expected = []
    for m, s, b in zip(mean, log_std, below, strict=True):
        factor = np.diag(np.exp(s))
        factor[[1, 2, 2], [0, 0, 1]] = b
        expected.append(kl_of_gaussians(m, factor @ factor.T, np.zeros(3), np.eye(3)))
    measured = worst(relative(losses.full_covariance_kl(q[0], entries), np.array(expected)), 1e-10)
    yield Row("`full_covariance_kl`", paper(KINGMA), NONE, "determinants and a solve", measured)
    draw = losses.diagonal_posterior(lambda x: (x, jnp.zeros_like(x) + q[1][:1]))
    wide = jnp.repeat(q[0][:1], POINTS, axis=0)
    prior = priors.standard_normal(3).log_prob
    estimate = losses.monte_carlo_kl(draw, prior, wide, jax.random.key(0), samples=2)
    measured = standard_errors(np.asarray(estimate), float(unit[0].sum()))
    yield Row("`monte_carlo_kl`", paper(KINGMA), NONE, "quadrature; standard errors", measured)


def decoder_rows() -> Iterator[Row]:
    """Each decoder against SciPy, and the sum or integral over all data."""
    rng = np.random.default_rng(2)
    logits = 3 * rng.standard_normal(6)
    x = np.array(list(itertools.product([0.0, 1.0], repeat=6)))
    log_p = losses.bernoulli_log_likelihood(jnp.asarray(np.tile(logits, (64, 1))), jnp.asarray(x))
    error = [relative(log_p, scipy.stats.bernoulli.logpmf(x, scipy.special.expit(logits)).sum(1)).max()]
    measured = worst([*error, np.exp(log_p).sum() - 1], 1e-11)
    oracle = "SciPy, and its sum over all data"
    yield Row("`bernoulli_log_likelihood`", paper(KINGMA, "app. C.1"), NONE, oracle, measured)
    scores = 2 * rng.standard_normal((3, 4))
    x = np.array(list(itertools.product(range(4), repeat=3)))
    log_p = losses.categorical_log_likelihood(jnp.asarray(np.tile(scores, (64, 1, 1))), jnp.asarray(x))
    expected = scipy.special.log_softmax(scores, axis=1)[np.arange(3), x].sum(1)
    measured = worst([relative(log_p, expected).max(), np.exp(log_p).sum() - 1], 1e-11)
    yield Row("`categorical_log_likelihood`", paper(PIXEL), NONE, oracle, measured)
    mean, log_std, x = (rng.standard_normal((5, 6)) for _ in range(3))
    log_p = losses.gaussian_log_likelihood(*(jnp.asarray(part) for part in (mean, log_std, x)))
    expected = scipy.stats.norm.logpdf(x, mean, np.exp(log_std)).sum(1)
    measured = worst(relative(log_p, expected), 1e-10)
    yield Row("`gaussian_log_likelihood`", paper(KINGMA, "app. C.2"), NONE, "SciPy's density", measured)
    levels = 256
    centres = (2 * np.arange(levels) - (levels - 1)) / (levels - 1)
    edges = np.concatenate([[-np.inf], (centres[1:] + centres[:-1]) / 2, [np.inf]])
    errors = []
    for center, scale in ((0.1, 0.05), (-0.97, 0.3), (1.5, 0.08)):
        law, column = scipy.stats.logistic(center, scale), jnp.asarray(centres)[:, None]
        log_p = losses.discretized_logistic_log_likelihood(
            jnp.full_like(column, center), jnp.asarray(np.log(scale)), column, levels=levels
        )
        mass = np.where(centres < center, np.diff(law.cdf(edges)), -np.diff(law.sf(edges)))
        errors += [np.abs(np.asarray(log_p) - np.log(mass)).max(), abs(np.exp(log_p).sum() - 1)]
    where = paper(PIXEL, "eq. 2")
    yield Row("`discretized_logistic_log_likelihood`", where, NONE, oracle, worst(errors, 1e-9))


def posterior_rows() -> Iterator[Row]:
    """Densities at the draws and beside them by SciPy; Jacobians of layers by differentiation."""
    x = jnp.asarray(CORRELATED.sample(np.random.default_rng(0), 6))
    diagonal = np.diag(1 / np.diag(np.linalg.inv(CORRELATED.covariance)))
    for name, encode, covariance in (
        ("diagonal", CORRELATED.encode_diagonal, diagonal),
        ("full_covariance", CORRELATED.encode_full, CORRELATED.covariance),
    ):
        z, log_q = getattr(losses, f"{name}_posterior")(encode)(x, jax.random.key(0))
        laws = [_law(scipy.stats.multivariate_normal, mean, covariance) for mean in CORRELATED.mean(x)]
        expected = np.array([law.logpdf(point) for law, point in zip(laws, np.asarray(z), strict=True)])
        where = paper(KINGMA, "eq. 9") if name == "diagonal" else paper(IAF)
        measured = worst(relative(log_q, expected), 1e-9)
        yield Row(f"`{name}_posterior`", where, NONE, "SciPy's density at the draw", measured)
        far = z + 1.3
        expected = np.array([law.logpdf(point) for law, point in zip(laws, np.asarray(far), strict=True)])
        measured = worst(relative(getattr(losses, f"{name}_log_density")(encode)(x, far), expected), 1e-9)
        yield Row(f"`{name}_log_density`", where, NONE, "SciPy's density", measured)

    def steer(z: Any, context: Any) -> tuple[Any, Any]:
        return jnp.sin(2 * z[:, ::-1]) + context, 0.5 * jnp.tanh(z[:, ::-1] - context)

    def autoregressive(z: Any, context: Any) -> tuple[Any, Any]:
        before = jnp.concatenate([jnp.zeros_like(z[:, :1]), z[:, :1]], axis=1)
        return jnp.sin(2 * before) + context, before + 1

    def bend(context: Any) -> tuple[Any, Any, Any]:
        return 2 * context, 1 - context, context[:, 0]

    def swap(z: Any, context: Any) -> tuple[Any, Any]:
        return z[:, ::-1], jnp.zeros(len(z), z.dtype)

    kept = (True, False)
    layer, inverse = flows.affine_coupling(steer, kept=kept), flows.affine_coupling_inverse(steer, kept=kept)
    layers = {
        "planar": (flows.planar(bend), paper(PLANAR, "eq. 10")),
        "affine_coupling": (layer, paper(NVP, "eq. 7")),
        "affine_coupling_inverse": (inverse, paper(NVP, "eq. 8")),
        "inverse_autoregressive": (flows.inverse_autoregressive(autoregressive), paper(IAF, "alg. 1")),
    }
    rng = np.random.default_rng(3)
    z, context = (jnp.asarray(rng.standard_normal((20, 2))) for _ in range(2))
    for name, (function, where) in layers.items():
        log_det = function(z, context)[1]
        single = lambda z, c, f=function: f(z[None], c[None])[0][0]  # noqa: E731
        expected = np.linalg.slogdet(np.asarray(jax.vmap(jax.jacfwd(single))(z, context)))[1]
        measured = worst(log_det - expected, 1e-10)
        yield Row(f"`flows.{name}`", where, NONE, "log det of the Jacobian", measured)
    unit = lambda x: (0 * x, 0 * x)  # noqa: E731
    draw = losses.flow_posterior(losses.diagonal_posterior(unit), [layer, swap, layer])
    density = losses.flow_log_density(losses.diagonal_log_density(unit), [inverse, swap, inverse])
    n = POINTS
    wide = jnp.broadcast_to(context[:1], (n, 2))
    bent, log_q = draw(wide, jax.random.key(1))
    quotient = np.exp(scipy.stats.norm.logpdf(bent, np.median(bent, 0), 0.2).sum(1) - np.asarray(log_q))
    oracle = "mean of a density over it is 1; standard errors"
    yield Row("`flow_posterior`", paper(PLANAR, "eq. 7"), NONE, oracle, standard_errors(quotient, 1.0))
    side = np.linspace(-10, 10, 401)
    plane = np.stack(np.meshgrid(side, side), -1).reshape(-1, 2)
    mass = (
        np.exp(density(jnp.broadcast_to(context[:1], plane.shape), jnp.asarray(plane))).sum() * (side[1] - side[0]) ** 2
    )
    yield Row("`flow_log_density`", paper(PLANAR, "eq. 7"), NONE, "integral over the plane", worst(mass - 1, 1e-4))


def prior_rows() -> Iterator[Row]:
    """Log-densities by SciPy."""
    rng = np.random.default_rng(4)
    means, log_stds, logits, z = (rng.standard_normal(shape) for shape in ((4, 2), (4, 2), (4,), (30, 2)))
    unit = priors.standard_normal(2).log_prob(jnp.asarray(z))
    expected = scipy.stats.norm.logpdf(z).sum(1)
    measured = worst(relative(unit, expected), 1e-11)
    yield Row("`priors.standard_normal`", paper(KINGMA), NONE, "SciPy's density", measured)
    each = scipy.stats.norm.logpdf(z[:, None], means, np.exp(log_stds)).sum(2)
    expected = scipy.special.logsumexp(each + scipy.special.log_softmax(logits), axis=1)
    mixed = priors.mixture(*(jnp.asarray(part) for part in (means, log_stds, logits))).log_prob(jnp.asarray(z))
    yield Row(
        "`priors.mixture`", paper(VAMP, "eq. 8"), NONE, "SciPy's density", worst(mixed - np.asarray(expected), 1e-10)
    )
    vamp = priors.vamp(lambda u: (2 * u, jnp.sin(u)), jnp.asarray(means)).log_prob(jnp.asarray(z))
    each = scipy.stats.norm.logpdf(z[:, None], 2 * means, np.exp(np.sin(means))).sum(2)
    measured = worst(vamp - (np.asarray(scipy.special.logsumexp(each, axis=1)) - np.log(4)), 1e-10)
    yield Row("`priors.vamp`", paper(VAMP, "eq. 9"), NONE, "mean of posteriors' densities, SciPy", measured)
