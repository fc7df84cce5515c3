"""What a network predicts, as a row a x_0 + b noise = m target, and its conversion to a denoiser.

With x_t = alpha x_0 + sigma noise, a target and x_t are two linear equations for (x_0, noise), so that one formula
serves every prediction:

    x_0 = (sigma m target - b x_t) / (sigma a - alpha b)

| prediction | m target | a | b | reference |
|---|---|---|---|---|
| x_0 | x_0 | 1 | 0 | |
| noise | noise | 0 | 1 | Ho et al. 2020, arXiv:2006.11239, eq. 11 |
| score | sigma score | 0 | -1 | Song & Ermon 2019, arXiv:1907.05600, eq. 5 |
| v | v | -sigma | alpha | Salimans & Ho 2022, arXiv:2202.00512, section 4 |
| velocity | dx_t/dt | alpha' | sigma' | Lipman et al. 2022, arXiv:2210.02747, eq. 14 |

A rectified process with prediction "velocity" is flow matching: the target is noise - x_0.
"""

from typing import Literal, get_args

import jax.numpy as jnp
from jaxtyping import Array

from dgm_jax.numerics import check_like, expand_to
from dgm_jax.processes.gaussian import GaussianProcess
from dgm_jax.typing import Data, Denoiser, Network, PerExample

Prediction = Literal["x_0", "noise", "score", "v", "velocity"]


def row(process: GaussianProcess, t: PerExample, prediction: Prediction) -> tuple[Array, Array, Array]:
    """(a, b, m) of the target at times t: m target = a x_0 + b noise."""
    alpha, sigma = process.alpha(t), process.sigma(t)
    zero, one = jnp.zeros_like(t), jnp.ones_like(t)
    if prediction == "x_0":
        return one, zero, one
    if prediction == "noise":
        return zero, one, one
    if prediction == "score":
        return zero, -one, sigma
    if prediction == "v":
        return -sigma, alpha, one
    if prediction == "velocity":
        return *process.rates(t), one
    raise ValueError(
        f"Expected prediction to be one of {get_args(Prediction)}, as each is a row of the table; got {prediction!r}."
    )


def target_of(process: GaussianProcess, x_0: Data, t: PerExample, noise: Data, prediction: Prediction) -> Data:
    """The target a network with this prediction is trained towards."""
    a, b, m = (expand_to(c, x_0) for c in row(process, t, prediction))
    return (a * x_0 + b * noise) / m


def as_denoiser(network: Network, process: GaussianProcess, *, prediction: Prediction) -> Denoiser:
    """A denoiser from a network that predicts x_0, noise, score, v or velocity.

    Where sigma(t) = 0 the state is noiseless and the answer is x_t/alpha, whatever the network says. Where
    alpha(t) = 0, "noise" and "score" hold no information on x_0 and the answer is not finite.
    """
    row(process, jnp.zeros(1), prediction)  # an unknown prediction fails here, not inside a trace

    def denoise(x_t: Data, t: PerExample) -> Data:
        output = check_like(network(x_t, t), x_t, "network")
        if prediction == "x_0":
            return output
        alpha, sigma = process.alpha(t), process.sigma(t)
        a, b, m = row(process, t, prediction)
        determinant = sigma * a - alpha * b
        noiseless = sigma <= 0
        from_output = jnp.where(noiseless, 0.0, sigma * m / determinant)
        from_state = jnp.where(noiseless, 1 / alpha, -b / determinant)
        return expand_to(from_output, x_t) * output + expand_to(from_state, x_t) * x_t

    return denoise


def error_ratio(process: GaussianProcess, t: PerExample, prediction: Prediction) -> PerExample:
    """The weight that turns squared x_0 error into that target's squared error: ((sigma a - alpha b)/(sigma m))^2."""
    if prediction == "x_0":
        return jnp.ones_like(t)
    alpha, sigma = process.alpha(t), process.sigma(t)
    a, b, m = row(process, t, prediction)
    return ((a - b * alpha / sigma) / m) ** 2


def score_of(denoise: Denoiser, process: GaussianProcess) -> Network:
    """The score, grad log p_t(x_t) = (alpha D - x_t)/sigma^2 (Tweedie's formula)."""

    def score(x_t: Data, t: PerExample) -> Data:
        process.refuse_no_noise(t, "the score")
        alpha, variance = expand_to(process.alpha(t), x_t), expand_to(process.variance(t), x_t)
        return (alpha * denoise(x_t, t) - x_t) / variance

    return score


def noise_of(denoise: Denoiser, process: GaussianProcess) -> Network:
    """The noise estimate, E[noise | x_t] = (x_t - alpha D)/sigma."""

    def noise(x_t: Data, t: PerExample) -> Data:
        process.refuse_no_noise(t, "the noise")
        alpha, sigma = expand_to(process.alpha(t), x_t), expand_to(process.sigma(t), x_t)
        return (x_t - alpha * denoise(x_t, t)) / sigma

    return noise


def velocity_of(denoise: Denoiser, process: GaussianProcess) -> Network:
    """dx/dt of the probability-flow ODE, alpha' D + sigma' (x_t - alpha D)/sigma: finite where alpha = 0."""

    def velocity(x_t: Data, t: PerExample) -> Data:
        process.refuse_no_noise(t, "the velocity")
        alpha, sigma = expand_to(process.alpha(t), x_t), expand_to(process.sigma(t), x_t)
        alpha_rate, sigma_rate = (expand_to(rate, x_t) for rate in process.rates(t))
        estimate = denoise(x_t, t)
        return alpha_rate * estimate + sigma_rate * (x_t - alpha * estimate) / sigma

    return velocity
