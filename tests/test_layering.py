"""The shape of the source tree, read with `ast`: layers, who may name a device, file lengths, imports that compute."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "dgm_jax"
LAYERS = {
    "typing": -1,  # below numerics, which is the rest of the ground floor
    "numerics": 0,
    "processes": 1,
    "networks": 1,
    "training": 1,
    "data": 1,
    "parameterizations": 2,
    "losses": 3,
    "samplers": 3,
    "metrics": 3,
    "likelihood": 4,
    "latents": 4,
}
DEVICE_NAMES = {
    *("devices", "local_devices", "device_count", "local_device_count", "default_device"),
    *("Mesh", "AbstractMesh", "make_mesh", "set_mesh", "NamedSharding", "PositionalSharding", "PartitionSpec"),
    *("pmap", "pmean", "psum", "all_gather", "shard_map", "device_put", "device_put_sharded", "device_put_replicated"),
}
# a restored array goes back to the sharding of the array that it replaces, which names no device
PLACES = {"device_put": {"training/checkpoint_files.py"}}

FILES = {str(path.relative_to(PACKAGE)): path for path in sorted(PACKAGE.rglob("*.py"))}
# read once, before any test ran: Python 3.11's parser fails where it is interrupted to collect another test's garbage
TREES = {name: ast.parse(path.read_text()) for name, path in FILES.items()}
each_file = pytest.mark.parametrize("name", FILES)


def imported_modules(name):
    """Every module that the file imports, at its top or inside a function, with the names taken from it."""
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Import):
            yield from ((alias.name, ()) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}:{node.lineno}: a relative import hides its layer"
            yield node.module, tuple(alias.name for alias in node.names)


def own_parts(name):
    """The parts of dgm_jax that the file imports: "processes", "numerics", ..."""
    for module, names in imported_modules(name):
        root, _, rest = module.partition(".")
        if root == "dgm_jax":
            yield from [rest.split(".")[0]] if rest else names


@each_file
def test_imports_go_down(name):
    if name == "__init__.py":
        assert not list(imported_modules(name))
        return
    part = Path(name).parts[0].removesuffix(".py")
    assert part in LAYERS, f"{part} has no layer"
    for imported in own_parts(name):
        assert imported == part or LAYERS[imported] < LAYERS[part], f"{name} imports {imported}"


@each_file
def test_libraries_stay_in_their_place(name):
    roots = {module.split(".")[0] for module, _ in imported_modules(name)}
    assert "flax" not in roots or name.startswith("networks/")
    assert "orbax" not in roots or name in ("training/checkpoint.py", "training/checkpoint_files.py")
    assert "scipy" not in roots or name == "metrics/wasserstein.py"  # the best pairing, which JAX has not
    assert not roots & {"torch", "tensorflow", "matplotlib", "tyro", "rich", "experiments", "tests"}


@each_file
def test_only_parallel_names_devices(name):
    used = set()
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            used.add(node.attr)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            used.add(node.id)
        elif isinstance(node, ast.ImportFrom):
            used.update(alias.name for alias in node.names)
    for word in used & DEVICE_NAMES:
        assert name.startswith("training/parallel/") or name in PLACES.get(word, ()), f"{name} names {word}"


@each_file
def test_files_are_short_and_say_what_they_are(name):
    assert len(FILES[name].read_text().splitlines()) <= 400
    assert ast.get_docstring(TREES[name])
    assert Path(name).name not in {"utils.py", "helpers.py", "common.py", "misc.py"}


def test_the_rules_see_violations(monkeypatch, tmp_path):
    bad = tmp_path / "bad.py"
    bad.write_text("def f():\n    import flax\n    from dgm_jax.samplers import ode\n    return flax.jax.devices()\n")
    monkeypatch.setitem(FILES, "processes/bad.py", bad)
    monkeypatch.setitem(TREES, "processes/bad.py", ast.parse(bad.read_text()))
    for rule in (test_imports_go_down, test_libraries_stay_in_their_place, test_only_parallel_names_devices):
        with pytest.raises(AssertionError):
            rule("processes/bad.py")
    with pytest.raises(AssertionError):
        test_files_are_short_and_say_what_they_are("processes/bad.py")


def test_import_starts_no_backend():
    """Reading every module computes nothing: devices may still be chosen, `jax.distributed` still initialised."""
    modules = [f"dgm_jax.{name.removesuffix('.py').removesuffix('/__init__').replace('/', '.')}" for name in FILES]
    program = f"""
import importlib
for module in {[m.removesuffix(".__init__") for m in modules]!r}:
    importlib.import_module(module)
from jax._src import xla_bridge
assert not xla_bridge._backends, xla_bridge._backends
import jax
jax.devices()
assert xla_bridge._backends
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=PACKAGE.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
