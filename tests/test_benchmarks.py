"""Facts of compiled programs that need no clock, and the arithmetic of the benchmarks' tables."""

import re

import numpy as np
import pytest

from experiments.benchmarks import compiled, parallel
from experiments.benchmarks._cases import mlp
from experiments.benchmarks._table import ratio_row, with_section
from experiments.benchmarks._timing import rounds

CASE = mlp(16, (8, 8))


@pytest.mark.parametrize("sample", compiled.SAMPLERS.values(), ids=compiled.SAMPLERS)
def test_memory_of_a_sampler_does_not_grow_with_its_steps(sample):
    few, many = (compiled.temporary_bytes(CASE, sample, steps) for steps in (10, 1000))
    path = 4 * np.prod(CASE.shape) * (1000 - 10)  # what one kept state a step would cost
    assert few > 0
    assert many - few <= compiled.GRID_COPIES * 4 * (1000 - 10) < path


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        ("pmap_step", ["all-reduce"]),
        ("mesh_step", ["all-reduce"]),
        ("pmap_sampler", []),
        ("mesh_sampler", []),
    ],
)
def test_collectives(program, expected):
    assert compiled.collectives(compiled.lowered_programs(CASE, steps=5)[program]()) == expected


@pytest.mark.parametrize("sample", compiled.SAMPLERS.values(), ids=compiled.SAMPLERS)
def test_two_calls_trace_a_sampler_once(sample):
    assert compiled.traces(CASE, sample, steps=3) == 1


def test_rounds_times_every_candidate_after_an_untimed_call():
    calls = []
    candidates = {name: (lambda name=name: calls.append(name)) for name in "ab"}
    seconds = rounds(candidates, repeats=3)
    assert "".join(calls) == "ab" + "ab" + "ba" + "ab"
    assert {name: values.shape for name, values in seconds.items()} == {"a": (3,), "b": (3,)}
    with pytest.raises(ValueError, match="Expected repeats >= 1"):
        rounds(candidates, repeats=0)


def test_ratio_row_takes_the_median_of_the_ratios_not_the_ratio_of_the_medians():
    numerator, denominator = np.array([1.0, 20.0, 3.0]), np.array([1.0, 10.0, 1.0])
    row = ratio_row("x", numerator, denominator, at_most=1.9)
    assert re.match(r"2\.000 \(1\.500 to 2\.500\)", row.measured)  # ratios 1, 2, 3; medians 3 and 1
    assert row.verdict == "FAILS"
    assert ratio_row("x", numerator, denominator, at_least=2.0).verdict == "holds"
    assert ratio_row("x", numerator, denominator, above=2.0).verdict == "FAILS"
    assert ratio_row("x", numerator, denominator).verdict == ""


def test_a_section_is_replaced_between_its_markers_alone():
    page = with_section(with_section("# Benchmarks\n\nKept.\n", "a", "old"), "b", "other")
    replaced = with_section(page, "a", r"new \1")
    assert replaced == page.replace("old", r"new \1")
    assert replaced.startswith("# Benchmarks\n\nKept.\n")
    assert replaced.count("<!-- begin a -->") == 1


def test_waiting_share_counts_the_pipeline_alone():
    """Batches that take 1 second each, steps that take 3."""
    now = [0.0]

    def lasting(seconds, result=None):
        now[0] += seconds
        return result

    stream = (lasting(1.0, {}) for _ in range(8))
    state, share = parallel.waiting_share(
        lambda state, batch: lasting(3.0, (state + 1, {})), 0, stream, steps=8, clock=lambda: now[0]
    )
    assert state == 8
    assert share == pytest.approx(1 / 4)
