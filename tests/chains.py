"""The samplers' formulas as their papers print them, in x, and the exact moments that they give Gaussian data.

On Gaussian data every sampler here is affine in its starting point and in its noise. In an eigendirection of the
covariance a quantity is therefore a vector: its constant, then its coefficient of each independent standard normal.
Sums and multiples of such vectors are all that the formulas need, and the end's mean and variance can be read off,
discretisation error included.
"""

import jax.numpy as jnp
import numpy as np

from tests.oracles import GAUSSIAN

VALUES, VECTORS = np.linalg.eigh(GAUSSIAN.covariances[0])
MEANS = GAUSSIAN.means[0] @ VECTORS
X = np.array([[0.3, -1.1], [1.9, 0.4], [-0.6, -0.2]])  # a few states


class Direction:
    """One eigendirection along a grid: levels alpha[i] and sigma[i], the exact denoiser, fresh normals."""

    def __init__(self, k, alpha, sigma, rates, start):
        self.v, self.m, self.alpha, self.sigma, self.rates = VALUES[k], MEANS[k], alpha, sigma, rates
        self.steps = len(alpha) - 1
        self.size, self.used = 2 + 4 * len(alpha), 1
        self.one = self.unit(0)
        self.x = sigma[0] * self.noise() if start is None else start[k] * self.one

    def unit(self, i):
        vector = np.zeros(self.size)
        vector[i] = 1.0
        return vector

    def noise(self):
        self.used += 1
        return self.unit(self.used - 1)

    def D(self, x, a, s):
        return self.m * self.one + a * self.v * (x - a * self.m * self.one) / (a**2 * self.v + s**2)

    def E(self, x, a, s):
        return (x - a * self.D(x, a, s)) / s

    def score(self, x, a, s):
        return -(x - a * self.m * self.one) / (a**2 * self.v + s**2)

    def pairs(self):
        """(alpha_t, sigma_t, alpha_s, sigma_s) of every step."""
        return zip(self.alpha[:-1], self.sigma[:-1], self.alpha[1:], self.sigma[1:], strict=True)


def moments(process, ts, chain, *, start=None, to_zero=False):
    """Mean [2] and covariance [2, 2] at the grid's end; with `to_zero` after the denoiser's estimate there."""
    t = jnp.asarray(ts, float)
    alpha, sigma = np.asarray(process.alpha(t), np.float64), np.asarray(process.sigma(t), np.float64)
    rates = (
        None if alpha[0] == 0 else tuple(np.asarray(f) for f in (process.log_alpha_rate(t), process.diffusion(t), t))
    )
    start = None if start is None else np.asarray(start) @ VECTORS
    mean, variance = np.zeros(2), np.zeros(2)
    for k in range(2):
        direction = Direction(k, alpha, sigma, rates, start)
        x = chain(direction)
        if to_zero:
            x = direction.D(x, alpha[-1], sigma[-1])
        mean[k], variance[k] = x[0], np.sum(x[1:] ** 2)
    return VECTORS @ mean, VECTORS @ np.diag(variance) @ VECTORS.T


def gaussian_denoiser(process):
    """E[x_0 | x_t] of GAUSSIAN in the eigenbasis of its covariance: compiles faster than the mixture's."""

    values, means = jnp.asarray(VALUES)[None], jnp.asarray(MEANS)[None]

    def denoise(x_t, t):
        alpha, variance = process.alpha(t)[:, None], process.variance(t)[:, None]
        gain = alpha * values / (alpha**2 * values + variance)
        return (means + (x_t @ VECTORS - alpha * means) * gain) @ VECTORS.T

    return denoise


def check_moments(x, mean, covariance):
    """Within four standard errors of the exact law of the discretised chain: no bias is left to allow."""
    x = np.asarray(x)
    spread = np.sqrt(np.diag(covariance))
    np.testing.assert_array_less(np.abs(x.mean(0) - mean), 4 * spread / np.sqrt(len(x)))
    error = np.sqrt((np.outer(spread, spread) ** 2 + covariance**2) / len(x))
    np.testing.assert_array_less(np.abs(np.cov(x.T) - covariance), 4 * error)


# the papers --------------------------------------------------------------------------------------------------------


def beta(a_t, s_t, a_s, s_s):
    """Variance of the forward kernel q(x_t | x_s); 1 - alpha_t/alpha_s in DDPM's notation."""
    return s_t**2 - (a_t / a_s) ** 2 * s_s**2


def ddpm(v):
    """Ho et al. 2020, eq. 6 and 7; log variance v of the way to beta (Nichol & Dhariwal 2021, eq. 15)."""

    def chain(d):
        x = d.x
        for a_t, s_t, a_s, s_s in d.pairs():
            b = beta(a_t, s_t, a_s, s_s)
            mean = a_s * b / s_t**2 * d.D(x, a_t, s_t) + a_t / a_s * s_s**2 / s_t**2 * x
            posterior = s_s**2 / s_t**2 * b
            x = mean + np.sqrt(np.exp(v * np.log(b) + (1 - v) * np.log(posterior))) * d.noise()
        return x

    return chain


def ddim(eta):
    """Song et al. 2020, eq. 12 with eq. 16."""

    def chain(d):
        x = d.x
        for a_t, s_t, a_s, s_s in d.pairs():
            c = eta * np.sqrt(s_s**2 / s_t**2 * beta(a_t, s_t, a_s, s_s))
            x = a_s * d.D(x, a_t, s_t) + np.sqrt(s_s**2 - c**2) * d.E(x, a_t, s_t) + c * d.noise()
        return x

    return chain


def edm(gamma, low=0.0, high=np.inf, noise=1.0, top=np.inf):
    """Karras et al. 2022, algorithm 2 on x/alpha, which has noise of std sigma/alpha; levels stay below `top`."""

    def chain(d):
        x = d.x / d.alpha[0]
        for a_t, s_t, a_s, s_s in d.pairs():
            r, end = s_t / a_t, s_s / a_s
            raised = min(r * (1 + gamma * (low <= r <= high)), top)
            x = x + np.sqrt(raised**2 - r**2) * noise * d.noise()
            slope = (x - d.D(x, 1.0, raised)) / raised
            guess = x + (end - raised) * slope
            x = x + (end - raised) * (slope / 2 + (guess - d.D(guess, 1.0, end)) / end / 2)
        return x * d.alpha[-1]

    return chain


def dpm_solver_pp_2m(d):
    """Lu et al. 2022, algorithm 2; h is the step in lambda = log(alpha/sigma)."""
    return _two_step(d, lambda x, D, a_s, s_t, s_s, h: s_s / s_t * x - a_s * np.expm1(-h) * D)


def dpm_solver_pp_2m_sde(d):
    """Lu et al. 2022, SDE-DPM-Solver++(2M)."""

    def move(x, D, a_s, s_t, s_s, h):
        mean = s_s / s_t * np.exp(-h) * x + a_s * (1 - np.exp(-2 * h)) * D
        return mean + s_s * np.sqrt(1 - np.exp(-2 * h)) * d.noise()

    return _two_step(d, move)


def _two_step(d, move):
    x, last = d.x, None
    for a_t, s_t, a_s, s_s in d.pairs():
        h, estimate = np.log(a_s / s_s) - np.log(a_t / s_t), d.D(x, a_t, s_t)
        ahead = estimate if last is None else (1 + h / last[0] / 2) * estimate - h / last[0] / 2 * last[1]
        x, last = move(x, ahead, a_s, s_t, s_s, h), (h, estimate)
    return x


def adams_bashforth(order):
    """Zhang & Chen 2022, rhoAB-DEIS: the integral of the polynomial through the last slopes, by NumPy.

    Of order 3 the first step is Heun's.
    """

    def chain(d):
        r, y, past = d.sigma / d.alpha, d.x / d.alpha[0], []
        for i in range(d.steps):
            slope = d.E(y * d.alpha[i], d.alpha[i], d.sigma[i])
            past = [*past, (r[i], slope)][-order:]
            h = r[i + 1] - r[i]
            if order == 3 and i == 0:
                guess = (y + h * slope) * d.alpha[1]
                y = y + h / 2 * (slope + d.E(guess, d.alpha[1], d.sigma[1]))
                continue
            nodes = np.array([node for node, _ in past])
            for j, (_, value) in enumerate(past):
                others = np.delete(nodes, j)
                lagrange = np.poly1d(np.atleast_1d(np.poly(others))) / np.prod(nodes[j] - others)
                integral = lagrange.integ()
                y = y + (integral(r[i + 1]) - integral(r[i])) * value
        return y * d.alpha[-1]

    return chain


def predictor_corrector(predictor, snr=None, moves=1):
    """Song et al. 2021, algorithm 1: predict, then correct at the new level with e = 2 (snr sigma)^2."""

    def chain(d):
        x = d.x
        for i, (a_t, s_t, a_s, s_s) in enumerate(d.pairs()):
            x = predictor(d, x, i, a_t, s_t, a_s, s_s)
            for _ in range(moves if snr else 0):
                size = 2 * (snr * s_s) ** 2
                x = x + size * d.score(x, a_s, s_s) + np.sqrt(2 * size) * d.noise()
        return x

    return chain


def reverse_diffusion(d, x, i, a_t, s_t, a_s, s_s):
    """Song et al. 2021, eq. 46: x - f + G^2 score + G z, with the forward chain's f = (a_t/a_s - 1) x and G^2."""
    squared = beta(a_t, s_t, a_s, s_s)
    return x - (a_t / a_s - 1) * x + squared * d.score(x, a_t, s_t) + np.sqrt(squared) * d.noise()


def ancestral(d, x, i, a_t, s_t, a_s, s_s):
    """Song et al. 2021, eq. 47 for any alpha: (x + beta score)/(alpha_t/alpha_s) and the posterior's noise."""
    squared = beta(a_t, s_t, a_s, s_s)
    mean = (x + squared * d.score(x, a_t, s_t)) * a_s / a_t
    return mean + np.sqrt(squared * s_s**2 / s_t**2) * d.noise()


def euler_maruyama(eta):
    """Euler's step of Song et al. 2021, eq. 6 (eta = 1) and eq. 13 (eta = 0)."""

    def step(d, x, i, a_t, s_t, a_s, s_s):
        rate, g, t = (values[i : i + 2] for values in d.rates)
        h = t[0] - t[1]
        x = x - h * rate[0] * x + h * (1 + eta**2) / 2 * g[0] ** 2 * d.score(x, a_t, s_t)
        return x + eta * g[0] * np.sqrt(h) * d.noise()

    return step


def hold(d, x, i, *levels):
    """No step."""
    return x
