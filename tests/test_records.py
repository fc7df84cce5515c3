"""Distances are compared where their records agree, and refused where they differ."""

from dataclasses import replace

import jax.numpy as jnp
import pytest

from dgm_jax.metrics import Distance, Interval, Record, difference

RECORD = Record("Frechet", "digit classifier, 64 units", "test[:500]", "none", 500, 500)


def distance(value, record=RECORD):
    return Distance(Interval(jnp.asarray(value), jnp.asarray(value - 1), jnp.asarray(value + 1)), record)


def test_equal_records_compare():
    assert float(difference(distance(3.0), distance(1.5))) == 1.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": "Inception"}, "features: 'digit classifier, 64 units' against 'Inception'"),
        ({"split": "train"}, "split: .* against 'train'"),
        ({"resize": "bilinear to 299, antialiased"}, "resize: 'none' against"),
        ({"fake": 1000}, "fake: 500 against 1000"),
        ({"real": None, "fake": None}, "real: 500 against None; fake: 500 against None"),
        ({"metric": "kernel"}, "metric: 'Frechet' against 'kernel'"),
    ],
)
def test_other_records_are_refused(change, message):
    with pytest.raises(ValueError, match=f"Expected distances with one record.*{message}"):
        difference(distance(3.0), distance(1.5, replace(RECORD, **change)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": " "}, "features to be said.*' '"),
        ({"split": None}, "split to be said.*None"),
        ({"real": 1}, "real >= 2.*1"),
        ({"fake": 2.5}, "fake >= 2.*2.5"),
    ],
)
def test_a_record_leaves_nothing_unsaid(change, message, untyped):
    with pytest.raises(ValueError, match=f"Expected {message}"):
        replace(RECORD, **change)
