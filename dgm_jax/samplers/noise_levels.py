"""NCSNv2's choices for annealed Langevin dynamics (Song & Ermon 2020, arXiv:2006.09011), as plain NumPy functions.

The paper's five techniques, in its order:

1. sigma_1 is the `largest_distance` between two data points.
2. Levels are geometric, as many as `level_count` says, so that neighbours overlap in `dim` dimensions. Under VE their
   times are `log_snr_grid(process, L - 1, t_min=, t_max=)`.
3. The score is s(x)/sigma with a network s that ignores t: prediction "noise", with the network's sign turned.
4. The step size for a number of steps a level is `langevin_epsilon`.
5. Samples are drawn with a moving average of the parameters, `TrainState.ema`.
"""

import math

import numpy as np
from jaxtyping import Float


def largest_distance(x: Float[np.ndarray, " batch *event"]) -> float:
    """The largest Euclidean distance between two of the points, in data units; its time grows as batch^2."""
    points = np.asarray(x, np.float64).reshape(len(x), -1)
    if len(points) < 2 or not np.isfinite(points).all():
        raise ValueError(f"Expected 2 finite points or more, as a distance is between two; got x of shape {x.shape}.")
    points = points - points.mean(0)  # a common offset would cost digits in what follows
    squares = np.sum(points**2, axis=1)
    rows = max(1, 10**7 // len(points))  # 80 MB at a time
    blocks = [slice(start, start + rows) for start in range(0, len(points), rows)]
    largest = max((squares[b, None] + squares[None] - 2 * points[b] @ points.T).max() for b in blocks)
    return math.sqrt(max(largest, 0.0))


def level_ratio(dim: int, *, overlap: float = 0.5) -> float:
    """The ratio gamma of neighbouring levels that solves technique 2's equation,

        Phi(sqrt(2 dim) (gamma - 1) + 3 gamma) - Phi(sqrt(2 dim) (gamma - 1) - 3 gamma) = overlap

    The radius of noise of level sigma is about N(sqrt(dim) sigma, sigma^2/2); the left-hand side is its mass within
    three standard deviations of the radius at the next larger level. The paper asks for about 0.5; the levels of its
    own five experiments have 0.567. Below 5 dimensions levels of any ratio overlap by more.
    """
    if dim < 5 or not 0 < overlap < 0.9:
        raise ValueError(
            "Expected dim >= 5 and 0 < overlap < 0.9, as levels of any ratio overlap in fewer dimensions; "
            f"got {dim=}, {overlap=}."
        )

    def shared(gamma: float) -> float:
        centre = math.sqrt(2 * dim) * (gamma - 1)
        return _normal_cdf(centre + 3 * gamma) - _normal_cdf(centre - 3 * gamma)

    low, high = 1.0, 2.0
    while shared(high) > overlap:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if shared(middle) > overlap else (low, middle)
    return low


def level_count(dim: int, *, sigma_min: float, sigma_max: float, overlap: float = 0.5) -> int:
    """The number L of geometric levels from sigma_max to sigma_min, both included, with `level_ratio` between them."""
    if not 0 < sigma_min < sigma_max < math.inf:
        raise ValueError(f"Expected 0 < sigma_min < sigma_max < inf, as levels fall; got {sigma_min=}, {sigma_max=}.")
    return 1 + max(1, round(math.log(sigma_max / sigma_min) / math.log(level_ratio(dim, overlap=overlap))))


def langevin_epsilon(steps: int, *, ratio: float, sigma_min: float) -> float:
    """The `epsilon` for `steps` at each level with `ratio` between levels: technique 4.

    A state that enters a level sigma with the previous level's standard deviation, ratio sigma, leaves it with variance
    s^2 after `steps` on N(0, sigma^2 I). The paper takes the epsilon at which s^2/sigma^2, which is above 1, is least.
    Its steps are x + alpha score + sqrt(2 alpha) z where those of `annealed_langevin` are x + alpha/2 score +
    sqrt(alpha) z: the number returned is twice the paper's.
    """
    if steps < 1 or not 1 < ratio < math.inf or not 0 < sigma_min < math.inf:
        raise ValueError(
            "Expected steps >= 1, ratio > 1 and sigma_min > 0, as levels fall by steps of Langevin dynamics; "
            f"got {steps=}, {ratio=}, {sigma_min=}."
        )

    def final_variance(a: np.ndarray) -> np.ndarray:
        """s^2/sigma^2 for the paper's a = alpha/sigma^2: the variance's fixed point 2/(2 - a), and what is left."""
        fixed = 2 / (2 - a)
        return (1 - a) ** (2 * steps) * (ratio**2 - fixed) + fixed

    a = np.geomspace(1e-9, 1.0, 4001)
    for _ in range(3):
        best = int(np.argmin(final_variance(a)))
        a = np.linspace(a[max(best - 1, 0)], a[min(best + 1, len(a) - 1)], 401)
    return float(2 * a[np.argmin(final_variance(a))] * sigma_min**2)


def _normal_cdf(x: float) -> float:
    return math.erfc(-x / math.sqrt(2)) / 2
