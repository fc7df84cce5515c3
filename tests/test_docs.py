"""README and docs: every Python block runs, every command, test, name and link in them exists."""

import ast
import importlib
import importlib.util
import re
import socket
import sys
import tomllib
import types
from dataclasses import replace
from pathlib import Path
from typing import get_args

import diffrax
import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import pytest

from dgm_jax import processes
from dgm_jax.data import ring
from dgm_jax.losses import weights
from dgm_jax.parameterizations.predictions import Prediction
from dgm_jax.samplers.coordinates import CoordinateName
from dgm_jax.training import Checkpoints
from experiments import quickstart
from experiments._run import open_run

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = {str(path.relative_to(ROOT)): path for path in [README, *sorted((ROOT / "docs").rglob("*.md"))]}
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(path, language):
    """The code blocks of a page, each below as many empty lines as make its line numbers those of the page."""
    text = path.read_text()
    found = [match for match in BLOCK.finditer(text) if match[1] == language]
    return ["\n" * text.count("\n", 0, match.start(2)) + match[2] for match in found]


def run(path, monkeypatch):
    """Execute the Python blocks of a page in order, as one module."""
    page = types.ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", page)  # classes look their module up
    for code in blocks(path, "python"):
        exec(compile(code, str(path), "exec"), page.__dict__)
    return page


@pytest.fixture
def sandbox(monkeypatch, tmp_path):
    """An empty working directory, no network, no display, data sets in a directory of their own."""

    def refuse(*args, **kwargs):
        raise AssertionError("the network was touched")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    mpl.use("Agg")
    return tmp_path


def test_readme_learns_the_ring_and_samples_from_a_checkpoint(sandbox, monkeypatch):
    """The program's samples lie on the ring, and the demo's checkpoint is stood in for by one of the same shape."""
    config = replace(quickstart.SMOKE, run_dir="runs/quickstart")
    run_directory = open_run(config).directory
    image, t, label = jnp.zeros((1, *quickstart.SHAPE)), jnp.zeros(1), jnp.zeros(1, int)
    shapes = jax.eval_shape(quickstart.network(config).init, jax.random.key(0), image, t, label)
    params = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.01, leaf.dtype), shapes)
    with Checkpoints(run_directory / "checkpoints") as checkpoints:
        checkpoints.save(1, {"ema": params})
    page = run(README, monkeypatch)
    density = ring(std=0.1)
    # within 5 standard deviations of a mode lie all but exp(-12.5) of the data, and a seventh of N(0, I)
    distance = np.linalg.norm(np.asarray(page.samples)[:, None] - density.means, axis=-1).min(1)
    assert (distance < 0.5).mean() > 0.9
    assert set(np.linalg.norm(np.asarray(page.samples)[:, None] - density.means, axis=-1).argmin(1)) == set(range(8))
    assert page.digits.shape == (16, 28, 28, 1)
    assert np.isfinite(page.digits).all()


@pytest.mark.parametrize("name", [n for n, path in PAGES.items() if path != README and blocks(path, "python")])
def test_blocks_run(name, sandbox, monkeypatch):
    page = run(PAGES[name], monkeypatch)
    assert any(not name.startswith("__") for name in vars(page))


def targets():
    return set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def extras():
    return set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])


SHELL = (
    "for ",
    "done",
    "export ",
    "on_all",
    "gcloud ",
    "JAX_NUM_CPU_DEVICES=1 ",
    "--coordinator",
    "--data-dir",
    "srun ",
)
SBATCH = ("#!/bin/bash", "#SBATCH", "status=", "[ $status", "exit ")


def check_command(line):
    if line.startswith((*SHELL, *SBATCH)):  # what runs elsewhere, around commands of the project
        for module in re.findall(r"python -m ([\w.]+)", line):
            assert importlib.util.find_spec(module) is not None, line
        return
    if match := re.match(r'python -c "from dgm_jax.data import download; ', line):
        return
    if match := re.match(r"make ([\w-]+)", line):
        assert match[1] in targets(), line
    elif match := re.match(r"python -m pip install -e '\.\[([\w,]+)\]'", line):
        assert set(match[1].split(",")) <= extras(), line
    elif match := re.match(r"(?:\.venv/bin/)?python -m ([\w.]+)", line):
        assert importlib.util.find_spec(match[1]) is not None, line
    else:
        raise AssertionError(f"a command of a kind that no test knows: {line}")


@pytest.mark.parametrize("name", [*PAGES, "CONTRIBUTING.md"])
def test_commands_exist(name):
    path = ROOT / name
    inline = re.findall(r"`((?:make |python -m )[^`]+)`", path.read_text())
    for line in [*"\n".join(blocks(path, "bash")).splitlines(), *inline]:
        if line.strip():
            check_command(line.strip())


def test_a_command_that_is_not_there_is_seen():
    for line in ("make coffee", "python -m experiments.coffee", "python -m pip install -e '.[coffee]'", "coffee"):
        with pytest.raises(AssertionError):
            check_command(line)


def rows():
    """The rows of the README's table of methods: method, function, paper, test."""
    lines = [line for line in README.read_text().splitlines() if line.startswith("| ") and "test_" in line]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def resolve(name):
    package, _, rest = name.partition(".")
    value = diffrax if package == "diffrax" else importlib.import_module(f"dgm_jax.{package}")
    for part in rest.split("."):
        value = getattr(value, part)
    return value


def test_methods_and_their_tests_exist():
    table = rows()
    assert len(table) > 40
    for method, function, _, test in table:
        for name in re.findall(r"`([a-z_]+\.[\w.]+)`", method + function):
            assert callable(resolve(name)), name
        file, function = re.fullmatch(r"`(test_\w+\.py)::(test_\w+)`", test).groups()
        tree = ast.parse((ROOT / "tests" / file).read_text())
        assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, test


def test_every_method_has_a_row():
    text = "".join(cell for row in rows() for cell in row[:2])
    public = {f"processes.{n}" for n, value in vars(processes).items() if callable(value)}
    public |= {
        f"losses.weights.{node.name}"
        for node in ast.parse(Path(weights.__file__).read_text()).body
        if isinstance(node, ast.FunctionDef)
    }
    for file in ("parameterizations", "losses", "samplers", "metrics", "latents"):
        module = importlib.import_module(f"dgm_jax.{file}")
        public |= {f"{file}.{n}" for n, value in vars(module).items() if isinstance(value, types.FunctionType)}
    public.remove("samplers.coordinates_of")  # not a method but the table behind three of them
    for name in sorted(public):
        assert f"`{name}`" in text, name
    for prediction in get_args(Prediction):
        assert f'`"{prediction}"`' in text, prediction
    page = PAGES["docs/3-samplers.md"].read_text()
    for coordinates in get_args(CoordinateName):
        assert f'| `"{coordinates}"` |' in page, coordinates


@pytest.mark.parametrize("name", [*PAGES, "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_lead_somewhere(name):
    path = ROOT / name
    for target in re.findall(r"\]\(([^)]+)\)", BLOCK.sub("", path.read_text())):
        if not target.startswith(("http://", "https://", "#")):
            assert (path.parent / target.partition("#")[0]).exists(), f"{name}: {target}"


def test_the_site_shows_every_page_and_documents_every_module():
    nav = set(re.findall(r":\s+([\w/-]+\.md)\s*$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE))
    pages = {str(path.relative_to(ROOT / "docs")) for path in PAGES.values() if path != README}
    assert nav == pages
    documented = set()
    for path in (ROOT / "docs" / "api").glob("*.md"):
        documented |= set(re.findall(r"^::: ([\w.]+)$", path.read_text(), re.MULTILINE))
    modules = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in (ROOT / "dgm_jax").rglob("*.py")
        if not path.name.startswith("_")
    }
    assert documented == modules


def test_the_readmes_picture_is_small():
    assert (ROOT / "docs" / "images" / "quickstart.png").stat().st_size < 200_000
