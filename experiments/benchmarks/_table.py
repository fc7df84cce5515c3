"""Tables of results: printed by every benchmark, and with `--write` kept in docs/benchmarks.md between markers.

The page holds one section per benchmark, each between `<!-- begin name -->` and `<!-- end name -->`; everything
outside the markers is left as it is.
"""

import os
import platform
import re
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

PAGE = Path(__file__).parents[2] / "docs" / "benchmarks.md"


class Row(NamedTuple):
    """One line of a table; an empty `required` is a line for information."""

    what: str
    measured: str
    required: str = ""
    holds: bool = True

    @property
    def verdict(self) -> str:
        """Whether the requirement holds, in a word."""
        if not self.required:
            return ""
        return "holds" if self.holds else "FAILS"


def ratio_row(
    what: str,
    numerator: Float[np.ndarray, " repeats"],
    denominator: Float[np.ndarray, " repeats"],
    *,
    at_most: float | None = None,
    at_least: float | None = None,
    above: float | None = None,
) -> Row:
    """Median and quartiles of the ratio within each round, the median times, and the verdict on the median ratio."""
    low, middle, high = np.quantile(numerator / denominator, [0.25, 0.5, 0.75])
    times = f"{_duration(np.median(numerator))} / {_duration(np.median(denominator))}"
    measured = f"{middle:.3f} ({low:.3f} to {high:.3f}); {times}"
    if at_most is not None:
        return Row(what, measured, f"at most {at_most:g}", bool(middle <= at_most))
    if at_least is not None:
        return Row(what, measured, f"at least {at_least:g}", bool(middle >= at_least))
    if above is not None:
        return Row(what, measured, f"above {above:g}", bool(middle > above))
    return Row(what, measured)


def report(name: str, command: str, rows: Sequence[Row], *, write: bool, packages: Sequence[str] = ()) -> None:
    """Print the table and, with `write`, put it in its section of docs/benchmarks.md."""
    lines = ["| what | measured | required | verdict |", "|---|---|---|---|"]
    lines += [f"| {row.what} | {row.measured} | {row.required} | {row.verdict} |" for row in rows]
    text = "\n".join([f"`{command}` on {machine(packages)}.", "", *lines])
    print(text)
    if write:
        page = PAGE.read_text() if PAGE.exists() else "# Benchmarks\n"
        PAGE.parent.mkdir(exist_ok=True)
        PAGE.write_text(with_section(page, name, text))
        print(f"\nWritten to {PAGE}.")


def with_section(page: str, name: str, text: str) -> str:
    """The page with the named section replaced, or appended where it has none."""
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    section = f"{begin}\n{text}\n{end}"
    found = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    if found.search(page):
        return found.sub(lambda _: section, page)
    return f"{page.rstrip()}\n\n## {name}\n\n{section}\n"


def machine(packages: Sequence[str] = ()) -> str:
    """Cores, architecture and versions: what a ratio depends on."""
    versions = ", ".join(f"{package} {version(package)}" for package in ("jax", "flax", "diffrax", *packages))
    return f"{cores()} cores ({platform.machine()}), Python {platform.python_version()}, {versions}"


def cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _duration(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"
