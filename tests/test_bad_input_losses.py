"""What GANs and VAEs refuse: one clear error (rule, reason, value) before any compute is spent."""

import jax
import jax.numpy as jnp
import pytest

from dgm_jax.losses import (
    Elbo,
    bernoulli_log_likelihood,
    beta_loss,
    capacity_loss,
    categorical_log_likelihood,
    diagonal_posterior,
    discretized_logistic_log_likelihood,
    dreg_bound,
    elbo,
    flow_posterior,
    flows,
    free_bits,
    full_covariance_kl,
    gaussian_elbo,
    gaussian_kl,
    gaussian_log_likelihood,
    gradient_penalty,
    iwae_bound,
    minimax,
    monte_carlo_kl,
    priors,
    r1_penalty,
)
from dgm_jax.processes import uniform

X, KEY = jnp.zeros((3, 2)), jax.random.key(0)
TS = uniform(5, t_min=1e-3)
T = jnp.full(3, 0.5)
TERMS = Elbo(-T, T)


def never(x, t):
    raise AssertionError("the network was called before the input was checked")


def ones(t):
    return jnp.ones_like(t)


CASES = {
    "labels for logits": (lambda: minimax.discriminator(X[:, 0], jnp.ones(3, int)), "fake_logits to be floating-point"),
    "a critic of columns": (lambda: r1_penalty(lambda x: x[:, :1], X), "one real number per example"),
    "a negative target": (lambda: gradient_penalty(never, X, X, KEY, target=-1.0), "target >= 0.*-1"),
    "grey pixels for a Bernoulli decoder": (
        lambda: bernoulli_log_likelihood(X, X + 0.5),
        "binary x.*binarise.*6 other values, such as 0.5",
    ),
    "images beside their logits": (lambda: bernoulli_log_likelihood(X[:, :1], X), "logits to return the shape"),
    "a deviation that would broadcast": (
        lambda: gaussian_log_likelihood(X, X[:, :1], X),
        r"log_std of the shape of x, \(3, 2\), or one number.*\(3, 1\)",
    ),
    "a mean that would broadcast": (lambda: gaussian_log_likelihood(X[:1], X, X), "mean to return the shape"),
    "data between the levels of a decoder": (
        lambda: discretized_logistic_log_likelihood(X, X, X + 0.03, levels=17),
        "x at the centres of 17 levels",
    ),
    "a logistic of one level": (lambda: discretized_logistic_log_likelihood(X, X, X, levels=1), "levels > 1"),
    "classes that are real": (lambda: categorical_log_likelihood(X[..., None], X), "integer x.*float32"),
    "a class too many": (
        lambda: categorical_log_likelihood(jnp.zeros((3, 2, 4)), jnp.full((3, 2), 4)),
        r"x in \[0, 4\).*4 to 4",
    ),
    "logits without classes": (
        lambda: categorical_log_likelihood(X, jnp.zeros((3, 2), jnp.int32)),
        r"logits of shape \(3, 2, 'classes'\)",
    ),
    "no importance samples": (
        lambda: iwae_bound(diagonal_posterior(never), never, X, KEY, samples=0),
        "samples >= 1.*samples=0",
    ),
    "half an importance sample": (
        lambda: dreg_bound(diagonal_posterior(never), never, never, X, KEY, samples=1.5),
        "integer samples.*samples=1.5",
    ),
    "a KL from no draws": (
        lambda: monte_carlo_kl(diagonal_posterior(never), never, X, KEY, samples=0),
        "samples >= 1",
    ),
    "NaN under the bound": (
        lambda: gaussian_elbo(never, never, X.at[0, 0].set(jnp.nan), KEY),
        "finite x",
    ),
    "no data under the bound": (lambda: gaussian_elbo(never, never, X[:0], KEY), r"with values"),
    "a log_std of another shape": (
        lambda: gaussian_elbo(lambda x: (x, x[:, :1]), never, X, KEY),
        r"mean and log_std of one shape \(3, latent\).*\(3, 2\) and \(3, 1\)",
    ),
    "a log-likelihood per pixel": (
        lambda: gaussian_elbo(lambda x: (x, x), lambda x, z: x, X, KEY),
        r"log-likelihood of shape \(3,\), one value per example.*\(3, 2\)",
    ),
    "a joint density in one number": (
        lambda: elbo(diagonal_posterior(lambda x: (x, x)), lambda x, z: z.sum(), X, KEY),
        r"log_joint of shape \(3,\).*got \(\)",
    ),
    "a posterior's density per latent": (
        lambda: elbo(lambda x, key: (x, x), never, X, KEY),
        r"posterior's log-density of shape \(3,\)",
    ),
    "a negative beta": (lambda: beta_loss(TERMS, beta=-1.0), "beta >= 0.*-1.0"),
    "a negative capacity": (lambda: capacity_loss(TERMS, capacity=-1.0, gamma=1.0), "capacity >= 0"),
    "a capacity held by nothing": (lambda: capacity_loss(TERMS, capacity=1.0, gamma=-1.0), "gamma >= 0"),
    "negative free bits": (lambda: free_bits(X, nats=-0.1), "nats >= 0.*-0.1"),
    "latents of two shapes": (lambda: gaussian_kl(X, X[:, :1]), "of one shape"),
    "a factor without its entries": (lambda: full_covariance_kl(X, X), r"entries \[batch, 3\].*\(3, 2\)"),
    "a coupling that keeps all": (
        lambda: flows.affine_coupling(never, kept=(True, True)),
        "both True and False",
    ),
    "a coupling of other latents": (
        lambda: flows.affine_coupling(never, kept=(True, False, True))(X, None),
        "each of 2 latents",
    ),
    "a flow's determinant of the batch": (
        lambda: flow_posterior(diagonal_posterior(lambda x: (x, x)), [lambda z, c: (z, z.sum())])(X, KEY),
        r"log_det of shape \(3,\)",
    ),
    "a prior of no latents": (lambda: priors.standard_normal(0), "latent >= 1"),
    "a prior of other latents": (lambda: priors.standard_normal(3).log_prob(X), r"\[batch, 3\].*\(3, 2\)"),
    "a mixture without weights": (lambda: priors.mixture(X, X, jnp.zeros(2)), r"logits \[components\].*\(2,\)"),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_refused_with_rule_reason_and_value(case, untyped):
    call, message = CASES[case]
    with pytest.raises(ValueError, match=f"(?s)Expected.*(?:{message})"):
        call()
