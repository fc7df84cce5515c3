"""How good are drawn digits? A classifier's certainty and an energy distance, each beside its value on real digits."""

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float, Integer, Num

Images = Num[np.ndarray, "n height width 1"]  # levels 0 to 255
Labels = Integer[np.ndarray, " n"]


def fit_classifier(images: Images, labels: Labels) -> Callable[[Images], Float[np.ndarray, "n classes"]]:
    """Class probabilities by logistic regression on Gaussian kernel features, fitted in seconds.

    The features vanish far from all real digits, so that what resembles no digit gets no certain answer.
    """
    from sklearn.kernel_approximation import Nystroem
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    features = Nystroem(gamma=0.02, n_components=min(600, len(images)), random_state=0)
    model = make_pipeline(features, LogisticRegression(C=30.0, max_iter=300))
    model.fit(flat(images), labels)
    return lambda x: model.predict_proba(flat(x))


def certainty(
    probabilities: Float[np.ndarray, "n classes"], labels: Labels, *, above: float = 0.95
) -> dict[str, float]:
    """The share of images whose most likely class has a probability above `above`, and the share where it is `labels`.

    The standard error is of the second share.
    """
    sure = probabilities.max(1) > above
    right = sure & (probabilities.argmax(1) == labels)
    error = np.sqrt(max(right.mean() * (1 - right.mean()), 1 / len(right)) / len(right))
    return {"sure": float(sure.mean()), "sure_and_right": float(right.mean()), "standard_error": float(error)}


def energy_distance(x: Images, y: Images) -> float:
    """2 E|x - y| - E|x - x'| - E|y - y'| on pixels in [0, 1], without bias: zero on average for equal laws.

    Reference: Szekely and Rizzo 2013, doi:10.1016/j.jspi.2013.03.018.
    """
    a, b = flat(x), flat(y)
    within = [_distances(z, z).sum() / (len(z) * (len(z) - 1)) for z in (a, b)]
    return float(2 * _distances(a, b).mean() - sum(within))


def noise_floor(real: Images, sizes: tuple[int, int], *, splits: int = 20) -> tuple[float, float]:
    """Mean and 95 % quantile of the energy distance between disjoint random parts of `real` of the given sizes."""
    rng = np.random.default_rng(0)
    n, m = sizes
    orders = (rng.permutation(len(real)) for _ in range(splits))
    distances = [energy_distance(real[order[:n]], real[order[n : n + m]]) for order in orders]
    return float(np.mean(distances)), float(np.quantile(distances, 0.95))


def show(scores: dict[str, Any]) -> None:
    """Print the scores, each beside what real digits reach."""
    print(f"bits/dim of held-out digits: {scores['bits_per_dim']:.3f} +- {scores['bits_standard_error']:.3f}")
    print(f"{'digits':22}{'classifier sure':>16}{'and right':>18}{'energy distance':>18}")
    names = {"real": "real, held out", "sde": "reverse SDE", "ode": "probability-flow ODE"}
    for key, name in names.items():
        row = scores[key]
        right = f"{row['sure_and_right']:.2f} +- {row['standard_error']:.2f}"
        print(f"{name:22}{row['sure']:16.2f}{right:>18}{row['energy_distance']:18.4f}")
    print(
        f"(energy distance between parts of the real digits: below {scores['real']['energy_distance_95']:.4f} in 95 %)"
    )


def flat(images: Images) -> Float[np.ndarray, "n pixels"]:
    """Pixels in [0, 1], one row per image."""
    return images.reshape(len(images), -1).astype(np.float64) / 255


def _distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    squared = (a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * a @ b.T
    if a is b:
        np.fill_diagonal(squared, 0.0)  # else the root of rounding errors
    return np.sqrt(np.maximum(squared, 0.0))
