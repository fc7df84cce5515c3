"""Karras et al.'s preconditioning, for any process: the network sees unit variance and is asked for unit variance.

In units of the data, y = x_t/alpha has noise of std r = sigma/alpha and

    D = c_skip y + c_out F(c_in y, c_noise),    c_skip = s^2/(r^2 + s^2),    c_out = r s/sqrt(r^2 + s^2),
    c_in = 1/sqrt(r^2 + s^2),                   c_noise = log(r)/4,          s = sigma_data

(arXiv:2206.00364, table 1 and eq. 7). Below, alpha is multiplied in, so that all but c_noise stay finite where
alpha = 0 or sigma = 0.
"""

import jax.numpy as jnp

from dgm_jax.numerics import check_like, expand_to
from dgm_jax.processes.gaussian import GaussianProcess
from dgm_jax.typing import Data, Denoiser, Network, PerExample


def precondition(network: Network, process: GaussianProcess, *, sigma_data: float) -> Denoiser:
    """A denoiser around `network(scaled x_t, c_noise)`; note that the network's second argument is not t.

    Args:
        sigma_data: standard deviation of the data, in data units.
    """
    if not sigma_data > 0:
        raise ValueError(f"Expected sigma_data > 0, as a standard deviation of data is; got {sigma_data=}.")

    def denoise(x_t: Data, t: PerExample) -> Data:
        alpha, sigma = process.alpha(t), process.sigma(t)
        scale = jnp.sqrt(sigma**2 + (alpha * sigma_data) ** 2)  # the std of x_t
        c_skip = alpha * sigma_data**2 / scale**2
        c_out = sigma * sigma_data / scale
        # log 0 would reach the network, and c_out = 0 cannot undo a NaN
        tiny = jnp.finfo(t.dtype).tiny
        c_noise = (jnp.log(jnp.maximum(sigma, tiny)) - jnp.log(jnp.maximum(alpha, tiny))) / 4
        output = check_like(network(x_t / expand_to(scale, x_t), c_noise), x_t, "network")
        return expand_to(c_skip, x_t) * x_t + expand_to(c_out, x_t) * output

    return denoise
