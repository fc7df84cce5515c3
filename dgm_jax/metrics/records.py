"""A distance with what it was measured on, so that two numbers are compared or refused.

A Frechet distance is a number of its features, of the split it was measured against, of how images were resized, and of
how many samples there were; published ones that leave these out differ by more than the models do.

Reference: Parmar et al. 2022, arXiv:2104.11222; Chong & Forsyth 2020, arXiv:1911.07023.
"""

from dataclasses import asdict, dataclass
from typing import Any

from dgm_jax.metrics.intervals import Interval


@dataclass(frozen=True)
class Record:
    """What a distance was measured on.

    Attributes:
        metric: "Frechet", "kernel", ...
        features: the network and the layer, with the weights' name or hash; "pixels" for none.
        split: of the real data, as "test[:500]".
        resize: the method, its size and whether it filters; "none".
        real: how many real samples; `None` of a value that is extrapolated to infinitely many.
        fake: how many generated ones, likewise.
    """

    metric: str
    features: str
    split: str
    resize: str
    real: int | None
    fake: int | None

    def __post_init__(self) -> None:
        """Raise `ValueError` where something is left unsaid."""
        for name in ("metric", "features", "split", "resize"):
            value = getattr(self, name)
            if not isinstance(value, str) or not value.strip():
                raise ValueError(f"Expected {name} to be said, as numbers depend on it; got {value!r}.")
        for name in ("real", "fake"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 2):
                raise ValueError(f"Expected {name} >= 2 samples, or None where extrapolated; got {value!r}.")


@dataclass(frozen=True)
class Distance:
    """A value with its interval, and the record of what it was measured on."""

    interval: Interval
    record: Record

    @property
    def value(self) -> Any:
        """The distance itself."""
        return self.interval.value


def difference(a: Distance, b: Distance) -> Any:
    """a's value less b's.

    Raises:
        ValueError: their records differ, so that the numbers do not compare; the message lists in what.
    """
    mine, other = asdict(a.record), asdict(b.record)
    differ = [f"{name}: {mine[name]!r} against {other[name]!r}" for name in mine if mine[name] != other[name]]
    if differ:
        raise ValueError(
            f"Expected distances with one record, as each entry moves the number; got {'; '.join(differ)}."
        )
    return a.value - b.value
