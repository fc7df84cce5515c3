"""The committed oracle table: a row for every public method, every error within its tolerance, and a run of it."""

import inspect
import re
from pathlib import Path

import jax
import pytest

from dgm_jax import latents, likelihood, losses, metrics, samplers
from dgm_jax.losses import denoising, flows, priors, quantization, weights
from dgm_jax.parameterizations import guidance
from dgm_jax.processes import schedules
from experiments import oracle_table
from experiments._oracle_rows import ALL, Row, worst

PAGE = Path(__file__).parents[1] / "docs" / "oracle.md"


def parse(text):
    """The rows of every section, as dictionaries by column."""
    sections = {}
    for part in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        title, *lines = part.splitlines()
        columns, _, *rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines if line]
        sections[title] = [dict(zip(columns, row, strict=True)) for row in rows]
    return sections


@pytest.fixture(scope="module")
def page():
    return parse(PAGE.read_text())


def functions(module, *, prefixes=("",)):
    """Public functions that a module offers; of a plain module, those that it defines."""
    is_package = hasattr(module, "__path__")
    return {
        name
        for name, value in inspect.getmembers(module, inspect.isfunction)
        if not name.startswith("_")
        and name.startswith(prefixes)
        and (is_package or value.__module__ == module.__name__)
    }


# the table behind three methods, NCSNv2's choices of numbers, a reader of files, and a subtraction
NOT_METHODS = {"coordinates_of", "largest_distance", "level_ratio", "level_count", "langevin_epsilon"}
NOT_METRICS = {"load_inception", "difference"}
METHODS = {
    "samplers": (functions(samplers) - NOT_METHODS, ""),
    "guidance": (functions(guidance), ""),
    "losses": (functions(losses) | functions(denoising), ""),
    "weights": (functions(weights), "weights."),
    "quantization": (functions(quantization), ""),
    "flows": (functions(flows), "flows."),
    "priors": (functions(priors), "priors."),
    "processes": (functions(schedules), ""),
    "likelihood": (functions(likelihood), ""),
    "latents": (functions(latents), ""),
    "metrics": (functions(metrics) - NOT_METRICS, ""),
}


def test_the_public_methods_are_found():
    """An introspection that finds nothing would ask for nothing."""
    assert {"solve_ode", "sample_ode", "solve_sde", "sample_sde", "simulate_forward"} <= METHODS["samplers"][0]
    assert {"ddpm", "ddim", "edm_heun", "deis", "predictor_corrector", "annealed_langevin"} <= METHODS["samplers"][0]
    assert {"denoising_error", "diffusion_loss"} <= METHODS["losses"][0]
    assert {"simple", "ncsn", "likelihood", "edm", "min_snr"} <= METHODS["weights"][0]
    assert len(METHODS["processes"][0]) >= 7
    assert METHODS["likelihood"][0] == {
        *("log_likelihood", "log_likelihood_with_error", "variational_bound", "continuous_bound"),
        *("bits_per_dim", "discrete_bits_per_dim", "dequantize", "variational_dequantize"),
        *("importance_log_likelihood", "annealed_log_likelihood", "reverse_annealed_log_likelihood"),
        *("annealed_step_sizes", "linear_betas", "sigmoid_betas", "summarize_likelihood"),
    }
    assert {"mmd_test", "classifier_test", "precision_recall", "frechet_of", "noise_floor"} <= METHODS["metrics"][0]


@pytest.mark.parametrize("name", [f"{prefix}{name}" for names, prefix in METHODS.values() for name in sorted(names)])
def test_every_public_method_has_a_row(page, name):
    methods = {found for rows in page.values() for row in rows for found in re.findall(r"`([^`]+)`", row["method"])}
    assert name in methods


OF_NO_PROCESS = {
    *("Dequantisation", "Variational autoencoders", "Marginal likelihood and vector quantisation", "Two-sample tests"),
    *("Coverage, memorisation, Wasserstein distances", "Distances of features", "Noise floors and intervals"),
    "Training",
}


def test_every_process_has_a_row_in_each_section(page):
    for title in set(oracle_table.SECTIONS) - OF_NO_PROCESS:
        labels = {row["process"] for row in page[title]}
        assert set(oracle_table.LABELS.values()) <= labels or ALL in labels, title


def test_every_error_is_within_its_tolerance(page):
    assert list(page) == list(oracle_table.SECTIONS)
    above = [
        (title, row)
        for title, rows in page.items()
        for row in rows
        if not 0 <= float(row["error"]) <= float(row["tolerance"])
    ]
    assert not above


def test_an_error_above_its_tolerance_or_nan_fails():
    assert Row("", "", "", "", worst([1e-3, 2.0], [1e-2, 4.0])).holds
    assert worst([1e-3, 2.0], [1e-2, 1.0]) == (2.0, 1.0)
    assert not Row("", "", "", "", worst([1e-3, 2.0], [1e-2, 1.0])).holds
    assert not Row("", "", "", "", worst([1.0, float("nan")], [2.0, 2.0])).holds


def test_a_failing_row_is_named_and_sets_the_status(monkeypatch, capsys):
    bad = Row("`solve_ode`", "", "vp", "closed-form flow", (0.5, 0.1))
    monkeypatch.setattr(oracle_table, "SECTIONS", {"ODE samplers": lambda names: [bad]})
    assert oracle_table.main(oracle_table.Config(smoke=True)) == 1
    assert "exceeds its tolerance: `solve_ode` |  | VP" in capsys.readouterr().out


@pytest.mark.parametrize("title", oracle_table.SECTIONS)
def test_every_section_runs_and_holds(title):
    with jax.enable_x64(True):
        rows = list(oracle_table.SECTIONS[title](["sub_vp"]))
    assert rows
    assert not [row for row in rows if not row.holds]


def test_smoke_prints_the_table_and_writes_nothing(monkeypatch, capsys):
    few = {title: oracle_table.SECTIONS[title] for title in ("Processes", "Dequantisation")}
    monkeypatch.setattr(oracle_table, "SECTIONS", few)
    before = PAGE.read_bytes()
    assert oracle_table.main(oracle_table.Config(smoke=True)) == 0
    assert PAGE.read_bytes() == before
    printed = capsys.readouterr().out
    assert list(parse(printed[printed.index("# Oracle table") :])) == list(few)
