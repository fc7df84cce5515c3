"""Metrics against scikit-learn, and permutation tests against their own statistic.

Times are of compiled functions in float32, waited for, by turns with what they are held against; scikit-learn's kernel
is that of the same float32 points, the fastest that it has, and its three matrices are summed in float64. Memory is
the growth of a fresh process's peak while the statistic is computed once, its compilation included.

    python -m experiments.benchmarks.metrics [--write]

Time: about 3 minutes on 2 cores. Required: MMD at 10,000 against 10,000 points in 64 dimensions at least 2 times faster
than scikit-learn and under 1 GiB; a permutation test of 5,000 + 5,000 points with 200 permutations at most 5 times its
statistic; precision and recall of 10,000 points faster than prdc. Measured: see docs/benchmarks.md.
"""

import contextlib
import io
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import numpy as np
import tyro
from jaxtyping import Float

from dgm_jax.metrics import density_coverage, energy_test, gaussian, mmd, mmd_test, precision_recall, wild_mmd_test
from experiments.benchmarks._table import Row, ratio_row, report
from experiments.benchmarks._timing import rounds

GIB = 2**30
Points = Float[np.ndarray, "points dim"]


@dataclass(frozen=True)
class Config:
    """Sizes of the run; `--smoke` takes seconds, writes nothing, and its ratios mean nothing."""

    points: int = 10_000
    dim: int = 64
    permutations: int = 200
    repeats: int = 5
    write: bool = False
    smoke: bool = False


def two_sets(points: int, dim: int) -> tuple[Points, Points]:
    """Standard normal points in float32."""
    x, y = np.random.default_rng(0).standard_normal((2, points, dim), np.float32)
    return x, y


def statistic(dim: int) -> Callable[..., Any]:
    """The compiled MMD^2 at a bandwidth of about the median distance, sqrt(2 dim)."""
    return jax.jit(partial(mmd, kernel=gaussian((2 * dim) ** 0.5)))


def scikit_learn_mmd(x: Points, y: Points) -> float:
    """The same number from three whole kernel matrices, one at a time."""
    from sklearn.metrics.pairwise import rbf_kernel

    n, gamma = len(x), 1 / (4 * x.shape[1])
    own = sum((rbf_kernel(part, gamma=gamma).sum(dtype=np.float64) - n) / (n * (n - 1)) for part in (x, y))
    return float(own - 2 * rbf_kernel(x, y, gamma=gamma).mean(dtype=np.float64))


def numpy_mmd(x: Points, y: Points) -> float:
    """The same by matrix products and exponentials in place, in NumPy's float32."""

    def kernel(a: Points, b: Points) -> Points:
        out = a @ b.T
        out *= 2
        out -= (a * a).sum(1)[:, None]
        out -= (b * b).sum(1)[None]
        out *= 1 / (4 * a.shape[1])
        return np.exp(out, out=out)

    n = len(x)
    own = sum((kernel(part, part).sum(dtype=np.float64) - n) / (n * (n - 1)) for part in (x, y))
    return float(own - 2 * kernel(x, y).mean(dtype=np.float64))


MEMORY = """
import re
from pathlib import Path
from experiments.benchmarks.metrics import statistic, two_sets

def peak():  # of this program: getrusage's would be at least that of the process which started it
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])

x, y = two_sets({points}, {dim})
statistic({dim})(x[:2], y[:2]).block_until_ready()
before = peak()
statistic({dim})(x, y).block_until_ready()
print(1024 * (peak() - before))
"""


def extra_bytes(points: int, dim: int) -> int:
    """What the statistic adds to the peak resident memory of a process that has used JAX before."""
    program = MEMORY.format(points=points, dim=dim)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1])


def mmd_rows(config: Config) -> list[Row]:
    """The statistic's time and memory."""
    x, y = two_sets(config.points, config.dim)
    ours = partial(statistic(config.dim), *jax.device_put((x, y)))
    peers = {"scikit-learn": scikit_learn_mmd, "NumPy": numpy_mmd}
    seconds = rounds(
        {"ours": ours} | {name: partial(peer, x, y) for name, peer in peers.items()},
        repeats=config.repeats,
        rest=0.0 if config.smoke else 0.3,
    )
    what = f"MMD of {config.points:,} and {config.points:,} points, {config.dim} dimensions"
    rows = [
        ratio_row(
            f"{what}: {name} / ours; best of each {seconds[name].min() / seconds['ours'].min():.2f}",
            seconds[name],
            seconds["ours"],
            at_least=2.0,
        )
        for name in peers
    ]
    extra = extra_bytes(config.points, config.dim)
    return [*rows, Row(f"{what}: extra peak memory", f"{extra / 2**20:.0f} MiB", "under 1 GiB", extra < GIB)]


def test_rows(config: Config) -> list[Row]:
    """Tests of half as many points a set against the statistic of the same points."""
    x, y = jax.device_put(two_sets(config.points // 2, config.dim))
    key, kernel, draws = jax.random.key(0), gaussian((2 * config.dim) ** 0.5), config.permutations
    tests = {
        "mmd_test": partial(mmd_test, kernel=kernel, permutations=draws),
        "mmd_test, median distance": partial(mmd_test, permutations=draws),
        "energy_test": partial(energy_test, permutations=draws),
        "wild_mmd_test": partial(wild_mmd_test, kernel=kernel, draws=draws),
    }
    candidates = {name: partial(jax.jit(test), x, y, key) for name, test in tests.items()}
    seconds = rounds({"statistic": partial(statistic(config.dim), x, y)} | candidates, repeats=config.repeats)
    return [
        ratio_row(
            f"{name}, {len(x):,} + {len(x):,} points, {draws} draws / MMD of the same; best of each "
            f"{seconds[name].min() / seconds['statistic'].min():.2f}",
            seconds[name],
            seconds["statistic"],
            at_most=5.0,
        )
        for name in tests
    ]


def coverage_rows(config: Config) -> list[Row]:
    """Precision and recall against prdc, which computes density and coverage with them."""
    from prdc import compute_prdc

    x, y = two_sets(config.points, config.dim)
    both = jax.jit(lambda x, y: (precision_recall(x, y, k=3), density_coverage(x, y, k=3)))
    candidates = {
        "precision_recall": partial(jax.jit(precision_recall), *jax.device_put((x, y))),
        "and density_coverage": partial(both, *jax.device_put((x, y))),
        "prdc": partial(compute_prdc, x, y, nearest_k=3),
    }
    with contextlib.redirect_stdout(io.StringIO()):
        seconds = rounds(candidates, repeats=min(config.repeats, 3))
    what = f"{config.points:,} and {config.points:,} points, {config.dim} dimensions: prdc, which has all four, / "
    names = list(candidates)[:2]
    return [ratio_row(what + name, seconds["prdc"], seconds[name], at_least=1.0) for name in names]


CASES: list[Callable[[Config], list[Row]]] = [mmd_rows, test_rows, coverage_rows]


def main(config: Config) -> None:
    """Time every case and print the table."""
    if config.smoke:
        config = replace(config, points=200, dim=3, permutations=9, repeats=1, write=False)
    rows = [row for case in CASES for row in case(config)]
    report(
        "metrics",
        "python -m experiments.benchmarks.metrics",
        rows,
        write=config.write,
        packages=["scikit-learn", "numpy"],
    )


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
