"""The scaling model: closed forms of its laws, known counts of programs, its predictions, and a smoke run."""

import csv
import json
import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_experiments

from dgm_jax.networks import MLP, ddpm_cifar10
from experiments import _peaks, scaling_model
from experiments import _scaling_page as scaling_page
from experiments import _scaling_programs as programs
from experiments._peaks import CHIPS, H100, V4, V5E, Chip, chip_of
from experiments._scaling_check import Sizes, machine, part_of
from experiments._scaling_costs import chip_hours
from experiments._scaling_laws import Counts, Latency, Step, ring_seconds, step_on, summing_seconds
from experiments._throughput import forward_flops

NO_LATENCY = Latency(0.0, 0.0)
COUNTS = Counts(flops=(1e9, 35e9), bytes=(3e9, 0.6e9), summed=143e6)


# laws -----------------------------------------------------------------------------------------------------------


def test_a_ring_of_one_sums_nothing_and_a_long_one_sends_everything_twice():
    assert ring_seconds(1e9, 1, 1e9) == 0
    assert ring_seconds(1e9, 2, 1e9) == 1
    assert ring_seconds(1e9, 10**9, 1e9) == pytest.approx(2, rel=1e-8)


def test_a_ring_simulated():
    """Reduce-scatter then all-gather, chunk by chunk: all hold the sum, and the busiest chip sends what is stated."""
    n, size = 5, 20
    values = np.random.default_rng(0).integers(0, 9, (n, size))
    held, sent = values.copy(), 0
    chunks = np.split(np.arange(size), n)
    for turn in range(2 * (n - 1)):
        before = held.copy()
        for chip in range(n):
            chunk = chunks[(chip - turn) % n]
            to = (chip + 1) % n
            held[to, chunk] = before[chip, chunk] + (held[to, chunk] if turn < n - 1 else 0)
        sent += len(chunks[0])
    np.testing.assert_array_equal(held, np.broadcast_to(values.sum(0), held.shape))
    assert ring_seconds(size, n, 1.0) == sent


def test_hops():
    """A cube of 16 x 16 x 16 chips, a square of 4 x 4, and a node of 8, beside a network of as many nodes."""
    latency = Latency(link=1.0, network=100.0)
    assert summing_seconds(0, 4096, V4, latency) == pytest.approx(2 * 3 * 15)
    assert summing_seconds(0, 16, V5E, latency) == pytest.approx(2 * 2 * 3)
    assert summing_seconds(0, 8, H100, latency) == pytest.approx(2 * 7)
    assert summing_seconds(0, 64, H100, latency) == pytest.approx(2 * 7 + 100 * 2 * 3)
    assert summing_seconds(0, 8, H100, latency, messages=3) == pytest.approx(3 * 2 * 7)


def test_nodes_share_the_network():
    """Among nodes of 8 each chip sends an eighth of the bytes, twice less one part, and all of them within its node."""
    within, among = 2 * 7 / 8 * 1e9 / 450e9, 2 * 3 / 4 * 1e9 / 8 / 50e9
    assert summing_seconds(1e9, 32, H100, NO_LATENCY) == pytest.approx(within + among)


def test_a_network_that_is_not_public():
    with pytest.raises(ValueError, match=r"Expected at most 4096 chips of TPU v4.*n=8192"):
        summing_seconds(1.0, 8192, V4, NO_LATENCY)


def test_the_roofline_has_two_limits():
    chip = replace(V4, flops=100.0, memory_bandwidth=10.0)
    busy, moving = Counts((0, 1000), (0, 1), 0), Counts((0, 1), (0, 1000), 0)
    for counts, seconds, bound in ((busy, 10.0, "operations"), (moving, 100.0, "memory")):
        step = step_on(chip, counts, n=1, batch=1, latency=NO_LATENCY)
        assert (step.computing, step.bound) == (seconds, bound)
    ridge = step_on(chip, Counts((0, 10), (0, 1), 0), n=1, batch=3, latency=NO_LATENCY)
    assert ridge.by_flops == ridge.by_bytes


@pytest.mark.parametrize(("summing", "apart", "overlapped"), [(0.0, 3, 3), (1.0, 4, 3), (2.0, 5, 3), (5.0, 8, 6)])
def test_overlap_hides_what_the_backward_pass_lasts(summing, apart, overlapped):
    step = Step(by_flops=3.0, by_bytes=1.0, summing=summing)
    assert step.apart == pytest.approx(apart)
    assert step.overlapped == pytest.approx(overlapped)


# programs -------------------------------------------------------------------------------------------------------


def test_operations_of_a_product_are_known():
    a, b = jax.ShapeDtypeStruct((30, 40), jnp.float32), jax.ShapeDtypeStruct((40, 50), jnp.float32)
    assert programs.cost(jax.jit(jnp.matmul).lower(a, b))["flops"] == pytest.approx(2 * 30 * 40 * 50, rel=1e-6)


def test_a_step_of_an_mlp_takes_three_passes():
    """2 operations a weight forward, as many for each of two gradients, of which the first layer needs one."""
    width, event = 256, (64,)
    net = MLP((width, width), embedding=4)
    first, others = 64 * width, width * width + width * 64
    found = programs.step_counts(net, event, batches=(64, 128))
    assert found.flops[1] == pytest.approx(2 * (2 * first + 3 * others), rel=0.05)  # the rest is elementwise
    assert forward_flops(net, event) == pytest.approx(2 * (first + others), rel=0.05)


def test_the_gradients_are_summed_once():
    """On eight devices: as many bytes as the parameters have, and the loss."""
    net, event = MLP((32, 16)), (5,)
    params = net.init(jax.random.key(0), jnp.zeros((1, *event)), jnp.zeros(1))
    leaves = jax.tree.leaves(params)
    assert programs.summed(net, event) == (sum(leaf.nbytes for leaf in leaves) + 4, len(leaves) + 1)
    assert programs.parameters(net, event) == sum(leaf.size for leaf in leaves)


def test_all_reduced_reads_types_of_any_width():
    text = """
  %a = (f32[2,3]{1,0}, bf16[4]{0}) all-reduce-start(%x, %y), to_apply=%sum
  ROOT %b = f64[] all-reduce(%z), to_apply=%sum
  %c = f32[8]{0} all-gather(%w)"""
    assert programs.all_reduced(text) == (2 * 3 * 4 + 4 * 2 + 8, 3)


def test_ddpm_has_its_parameters():
    assert programs.parameters(ddpm_cifar10(), (32, 32, 3)) == pytest.approx(35.7e6, rel=2e-3)


# predictions ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rows():
    return scaling_model.predictions(scaling_model.Config(), COUNTS)


@pytest.mark.parametrize("kind", ["strong", "weak"])
@pytest.mark.parametrize("chip", [chip.name for chip in CHIPS])
def test_efficiency_is_one_alone_and_falls(rows, chip, kind):
    part = [row for row in rows if (row["chip"], row["scaling"]) == (chip, kind)]
    assert [row["chips"] for row in part] == [2**k for k in range(8 if kind == "strong" else 13)]
    for name in ("efficiency", "overlapped_efficiency"):
        found = np.array([row[name] for row in part])
        assert found[0] == pytest.approx(1)
        assert (np.diff(found) <= 1e-12).all()
        assert found[-1] > 0
    assert part[-1]["efficiency"] < 1
    assert all(row["overlapped_efficiency"] >= row["efficiency"] for row in part)


def test_strong_scaling_without_links_is_amdahls(rows):
    """Where nothing is summed, the constant part remains: 1 / (n share + 1 - share)."""
    counts = replace(COUNTS, summed=0.0)
    config = scaling_model.Config(link_latency=0.0, network_latency=0.0)
    share = counts.bytes[0] / counts.of(128)[1]
    for row in scaling_model.predictions(config, counts):
        if row["scaling"] == "strong" and row["chip"] == "TPU v4":
            assert row["bound"] == "memory"
            assert row["efficiency"] == pytest.approx(1 / (row["chips"] * share + 1 - share))


def test_chip_hours_by_hand():
    assert chip_hours(275e12 * 3600, 0.5)["TPU v4"] == pytest.approx(2)


def test_agreement_of_a_model_that_is_exact_and_of_one_that_is_upside_down():
    def found(predict):
        return scaling_model.agreement(
            [
                {"width": 1, "batch": b, "processes": n, "measured": b / n, "predicted": predict(b, n)}
                for b in (3, 50, 700)
                for n in (1, 2, 4)
            ]
        )

    exact, inverse = found(lambda b, n: 2.0 * b / n), found(lambda b, n: n / b)
    assert exact["rank_of_times"] == exact["rank_of_speedups"] == pytest.approx(1)
    assert exact["ratio"] == pytest.approx(2)
    assert inverse["rank_of_times"] == inverse["rank_of_speedups"] == pytest.approx(-1)


# this machine ---------------------------------------------------------------------------------------------------


def test_the_machine_is_what_was_timed(monkeypatch):
    sizes = Sizes(product=100, moved=1000)
    alone = {"call": [1.0], "product": [3.0], "traffic": [5.0], "sum 4": [0.0], "sum 8388608": [0.0]}
    pair = {"sum 4": [7.0], "sum 8388608": [9.0]}
    chip, latency, call = machine({1: alone, 2: pair}, sizes)
    assert (chip.flops, chip.memory_bandwidth) == (2 * 100**3 / 2, 2 * 4 * 1000 / 4)
    assert call == 1
    assert summing_seconds(0, 2, chip, latency) == pytest.approx(7 - call)
    assert summing_seconds(2**23, 2, chip, latency) == pytest.approx(9 - call)
    monkeypatch.setattr("experiments._scaling_check.cores", lambda: 2)
    half, quarter = part_of(chip, 2), part_of(chip, 4)
    assert (half.flops, half.link_bandwidth) == (chip.flops / 2, chip.link_bandwidth)
    assert (quarter.flops, quarter.link_bandwidth) == (chip.flops / 4, chip.link_bandwidth / 2)


def test_ddpms_own_step_by_hand():
    """A core's 450e9 bytes a second, 3 + 16 * 0.6 GB; and the published 21 steps a second of 128 images."""
    text = scaling_page.published_step(COUNTS)
    assert f"{1e3 * (3 + 16 * 0.6) / 450:.1f} ms for its 16 images (memory)" in text
    assert f"{1e3 / 21:.1f} ms each" in text


def test_chips_by_the_names_that_jax_gives_them():
    assert chip_of("TPU v5 lite") is V5E
    assert chip_of("TPU v5") is chip_of("TPU v5p") is _peaks.V5P
    assert chip_of("NVIDIA H100 80GB HBM3") is H100
    for other in ("cpu", "NVIDIA H100 PCIe", "TPU v4 lite", "NVIDIA A100-SXM4-40GB"):
        assert chip_of(other) is None
    for chip in CHIPS:
        assert isinstance(chip, Chip)
        # operations a byte: memory is what small kernels wait for, and links are slower than memory
        assert 100 < chip.flops / chip.memory_bandwidth < 600
        assert chip.link_bandwidth < chip.memory_bandwidth
        assert chip.network is None or chip.network < chip.link_bandwidth


def test_smoke(tmp_path):
    directory = tmp_path / "run"
    done = test_experiments.experiment("experiments.scaling_model", "--smoke", "--run-dir", str(directory))
    assert done.returncode == 0, done.stderr
    test_experiments.check_pictures(directory, {"scaling_model.png"})
    with (directory / "scaling.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(CHIPS) * (8 + 13)
    scores = json.loads((directory / "scores.json").read_text())
    assert scores["predictions"] == len(rows)
    assert all(math.isfinite(value) for value in scores.values())
    assert "ESTIMATES" in (directory / "tables.md").read_text()
    again = test_experiments.experiment("experiments.scaling_model", "--smoke", "--run-dir", str(directory))
    assert "is done" in again.stdout
