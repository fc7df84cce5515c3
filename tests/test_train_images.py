"""The pod script as it is run: alone, cut short, in two processes, with another back end; and what is drawn from it."""

import json
import math
import os
import re
import shutil
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dgm_jax.data import source
from dgm_jax.training import load_params, saved_steps
from experiments import sample_images, train_images
from experiments._image_evaluation import Evaluation
from experiments._image_papers import PAPERS
from experiments._reports import Logs
from experiments._run import open_run, read_config
from tests.test_experiments import experiment

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True, scope="module")
def compiled_once(tmp_path_factory):
    """The runs share their compiled programs, as docs/pods.md says that restarts may; this process read the variable
    when it began, and shares nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path_factory.mktemp("programs")))
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A whole run in one process."""
    directory = tmp_path_factory.mktemp("runs") / "trained"
    data, elsewhere = tmp_path_factory.mktemp("data"), tmp_path_factory.mktemp("elsewhere")
    source("digits", "train", data_dir=data)  # prepared once; TFDS leaves an empty folder in $TMPDIR then
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TFDS_DATA_DIR", str(data))
        for name in ("HOME", "TMPDIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"):
            patch.setenv(name, str(elsewhere))
        done = experiment("experiments.train_images", "--smoke", "--run-dir", str(directory))
    assert done.returncode == 0, done.stderr
    assert list(elsewhere.iterdir()) == []  # nothing is written outside the run's folder and the data's
    assert {path.name for path in data.iterdir()} == {"digits"}
    assert list(directory.parent.iterdir()) == [directory]
    return directory, done.stdout


def in_processes(module, directory, *args, processes=2):
    """The module in so many processes, each with one device; what they printed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, "-m", module, "--run-dir", str(directory), *args]
    command += ["--coordinator", address, "--num-processes", str(processes), "--heartbeat", "10"]
    env = {**os.environ, "JAX_NUM_CPU_DEVICES": "1", "JAX_PLATFORMS": "cpu"}
    children = [
        subprocess.Popen([*command, "--process-id", str(rank)], cwd=ROOT, env=env, text=True, stdout=-1, stderr=-1)
        for rank in range(processes)
    ]
    try:
        return [(*child.communicate(timeout=500), child.returncode) for child in children]
    finally:
        for child in children:
            child.kill()


def test_run_alone(trained):
    directory, printed = trained
    assert {path.name for path in directory.glob("*.png")} == {"samples-0000003.png", "samples-0000006.png"}
    assert "parameters; " in printed
    records = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    steps = [record for record in records if "loss" in record]
    assert [record["step"] for record in steps] == [1, 2, 3, 4, 5, 6]
    assert all(0 < record["loss"] < 3 for record in steps)  # the noise's error, 1 at the start
    assert all(record["model_flops"] > 0 for record in steps if "model_flops" in record)
    held_out = [record for record in records if "held_out_loss" in record]
    assert [record["step"] for record in held_out] == [3, 6]
    assert all(0.5 < record["held_out_loss"] < 2 and math.isfinite(record["bits_per_dim"]) for record in held_out)
    assert set(os.listdir(directory)) == {
        *("config.json", "metrics.jsonl", "scores.json", "tensorboard", "checkpoints", "averages"),
        *("samples-0000003.png", "samples-0000006.png"),
    }


def test_board_has_the_same_numbers(trained):
    """TensorBoard's file, read by its records: a length of 8 bytes, its checksum, an event, its checksum."""
    from tensorboardX.proto.event_pb2 import Event

    directory, _ = trained
    (path,) = (directory / "tensorboard").iterdir()
    data, found = path.read_bytes(), {}
    while data:
        size = int.from_bytes(data[:8], "little")
        event, data = Event.FromString(data[12 : 12 + size]), data[16 + size :]
        found.update({(event.step, value.tag): value.simple_value for value in event.summary.value})
    records = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    for record in records:
        for name in {"loss", "gradient_norm", "bits_per_dim"} & set(record):
            assert found[record["step"], name] == pytest.approx(record[name], rel=1e-6)
    assert (6, "samples") in found


def test_two_processes_go_on_where_one_stopped(trained, tmp_path):
    """From step 3, with the other back end, gradients in two pieces, and the state split over both."""
    directory, _ = trained
    other = tmp_path / "other"
    shutil.copytree(directory, other)
    for path in [other / "scores.json", other / "samples-0000006.png"]:
        path.unlink()
    shutil.rmtree(other / "checkpoints" / "6")
    shutil.rmtree(other / "averages" / "6")
    options = ("--back-end", "mesh", "--pieces", "2", "--parameter-shards", "2")
    (first, _), (_, _) = [
        (out, None) if not code else pytest.fail(err)
        for out, err, code in in_processes("experiments.train_images", other, "--smoke", *options)
    ]
    assert "Resumed at step 3 of 6" in first
    for part in ("params", "ema/0", "ema/1", "ema/2"):
        one, two = (load_params(path / "checkpoints", part=part) for path in (directory, other))
        for name, value in _flat(one).items():
            np.testing.assert_allclose(_flat(two)[name], value, rtol=1e-5, atol=1e-5)
    a, b = (json.loads((path / "scores.json").read_text()) for path in (directory, other))
    assert a == pytest.approx(b, rel=1e-3)
    steps = [json.loads(line)["step"] for line in (other / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 3, 4, 5, 6, 6]  # an evaluation at 3 and at 6
    assert saved_steps(other / "averages") == [3, 6]


def _flat(tree, prefix=""):
    if not isinstance(tree, dict):
        return {prefix: tree}
    return {name: leaf for key, value in tree.items() for name, leaf in _flat(value, f"{prefix}/{key}").items()}


def test_another_configuration_is_refused_unless_told(trained, tmp_path):
    directory, _ = trained
    copy = tmp_path / "copy"
    shutil.copytree(directory, copy)
    config = replace(read_config(copy, train_images.Config), run_dir=str(copy))
    for options, words in (
        ({"learning_rate": 0.5}, r"learning_rate: 0.001 in the run, 0.5 now[\s\S]*--changed"),
        ({"changed": True, "steps": 4}, "Expected --steps 6 or more"),
        ({"changed": True, "widths": (0.2,)}, "the run's own --widths"),
    ):
        with pytest.raises(SystemExit, match=words):
            train_images.main(replace(config, smoke=False, **options))
    args = ("--smoke", "--run-dir", str(copy), "--changed", "--steps", "7")
    longer = experiment("experiments.train_images", *args)
    assert longer.returncode == 0, longer.stderr
    assert "steps: 6 in the run, 7 now" in longer.stdout
    assert read_config(copy, train_images.Config).steps == 7
    assert json.loads((copy / "scores.json").read_text())["step"] == 7
    assert (copy / "samples-0000007.png").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch": 15}, "Expected a batch divisible by 8, as 8 devices take 1 piece"),
        ({"pieces": 3}, "Expected a batch divisible by 24"),
        ({"parameter_shards": 2}, "Expected --back-end mesh"),
        ({"steps": 0}, "Expected steps >= 1"),
        ({"pieces": 0}, "Expected pieces >= 1"),
        ({"dropped": 2.0}, "Expected dropped in [0, 1]"),
        ({"dropout": 1.0}, "Expected dropout in [0, 1)"),
        ({"learning_rate": -1.0}, "Expected learning_rate finite and above 0"),
        ({"learning_rate": math.nan}, "Expected learning_rate finite"),
        ({"clip": 0.0}, "Expected clip > 0"),
        ({"warmup": -1}, "Expected warmup >= 0"),
        ({"skip_nonfinite": -1}, "Expected skip_nonfinite >= 0"),
        ({"size": -4}, "Expected size >= 0"),
        ({"seed": -1}, "Expected seed in [0, 2^32 - 1)"),
        ({"seed": 2**32 - 1}, "Expected seed in"),
        ({"heartbeat": 0}, "Expected heartbeat >= 1"),
        ({"widths": (0.5,)}, "Expected 0 < width"),
        ({"ema_decay": 1.0}, "Expected 0 <= ema_decay < 1"),
        ({"size": 9}, "height and width divisible by 2"),
        ({"process_id": 0}, "together"),
        ({"coordinator": "127.0.0.1:1", "process_id": 2, "num_processes": 2}, "0 <= process-id < num"),
        ({"network": "ncsn++"}, "Expected --process ve"),
        ({"dataset": "nothing_such"}, "To download it"),
        ({"classes": 5}, "Expected labels below"),
    ],
)
def test_bad_options_are_refused_in_words(tmp_path, options, words):
    config = replace(train_images.SMOKE, smoke=False, run_dir=str(tmp_path / "run"), **options)
    with pytest.raises((SystemExit, ValueError, FileNotFoundError), match=re.escape(words)):
        train_images.main(config)
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def drawn(trained, tmp_path_factory):
    """Images of the run, on the devices that the machine offers."""
    directory = tmp_path_factory.mktemp("runs") / "drawn"
    args = ("--trained", str(trained[0]), "--width", "0.07", "--scale", "2", "--sampler", "dpm-solver++")
    done = experiment("experiments.sample_images", *SMALL, *args, "--run-dir", str(directory))
    assert done.returncode == 0, done.stderr
    return directory, args


SMALL = ("--samples", "18", "--chunk", "4", "--steps", "2", "--real", "40")


def test_drawn_files(drawn):
    directory, _ = drawn
    files = sorted(directory.glob("samples-*.npz"))
    assert len(files) == 5
    with np.load(files[2]) as file:
        assert file["images"].shape == (4, 8, 8, 1)
        np.testing.assert_array_equal(file["labels"], [8, 9, 0, 1])
    scores = json.loads((directory / "scores.json").read_text())
    assert scores["images"] == 18
    assert 0 < scores["floor"] < scores["sliced_wasserstein"]


def test_the_same_files_from_two_processes_and_after_a_cut(drawn, tmp_path):
    """One device each in two processes; then one file and the scores are missing."""
    directory, args = drawn
    other = tmp_path / "other"
    command = ["experiments.sample_images", *SMALL[:-1], "20", *args, "--run-dir", str(other)]
    for _, err, code in in_processes(command[0], other, *SMALL, *args):
        assert code == 0, err
    assert [path.read_bytes() for path in sorted(other.glob("*.npz"))] == [
        path.read_bytes() for path in sorted(directory.glob("*.npz"))
    ]
    (other / "scores.json").unlink()
    (other / "samples-00003.npz").unlink()
    before = {path: path.stat().st_mtime_ns for path in other.glob("*.npz")}
    resumed = experiment(*command)
    assert resumed.returncode == 0, resumed.stderr
    assert json.loads((other / "scores.json").read_text())["real_images"] == 20  # scored anew, with other real images
    assert (other / "samples-00003.npz").read_bytes() == (directory / "samples-00003.npz").read_bytes()
    assert before == {path: path.stat().st_mtime_ns for path in before}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"width": 0.07}, "Expected parameters in"),
        ({"scale": 2.0}, "guidance needs a model that was trained with classes"),
        ({"steps": 0}, "Expected samples, chunk, steps"),
        ({"seed": -1}, "Expected seed in"),
        ({"inception": "nowhere"}, "Expected a file of Inception's weights"),
        ({}, "Expected parameters in"),
        ({"scale": math.nan}, "Expected --scale 1|Expected a finite scale"),
        ({"width": -0.1}, "Expected a finite scale, and 0 < width"),
        ({"width": math.nan}, "Expected a finite scale, and 0 < width"),
    ],
)
def test_what_cannot_be_drawn_is_refused(tmp_path, options, words):
    trained = replace(train_images.SMOKE, run_dir=str(tmp_path / "trained"), classes=0, smoke=False)
    open_run(trained)
    config = sample_images.Config(trained=str(tmp_path / "trained"), run_dir=str(tmp_path / "drawn"), **options)
    with pytest.raises(SystemExit, match=words):
        sample_images.main(config)
    assert not (tmp_path / "drawn").exists()


def test_images_are_compared_with_a_split_of_choice(tmp_path):
    config, settings = replace(sample_images.SMOKE, run_dir=str(tmp_path / "run")), train_images.SMOKE
    for split, name in ((None, settings.test_split), ("train", "train"), ("train[:30]", "train[:30]")):
        real, expected = sample_images.real_images(replace(config, real_split=split), settings), source("digits", name)
        assert len(real) == len(expected)
        np.testing.assert_array_equal(real[7]["image"], expected[7]["image"])
    with pytest.raises(ValueError, match="Expected a split of digits"):
        sample_images.main(replace(config, real_split="nothing_such"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("sampler", ["heun", "ddim", "ddpm", "dpm-solver++", "sde"])
@pytest.mark.parametrize("process", ["ddpm", "vp", "sub-vp", "ve", "edm"])
def test_no_noise_is_left(process, sampler):
    """With the exact denoiser of a black image, every sampler ends in black, under every process."""
    model = train_images.model_of(replace(train_images.SMOKE, process=process), (8, 8, 1))
    config = sample_images.Config(sampler=sampler, steps=4)
    draw = sample_images.sampler_of(config, model)
    x = draw(lambda x_t, t: jnp.full_like(x_t, -1.0), jax.random.key(0), (2, 8, 8, 1)).x
    np.testing.assert_allclose(x, -1.0, atol=1e-6)


def test_evaluation_has_no_dropout():
    """The same loss twice, of a network that drops all while it trains."""
    config = replace(train_images.SMOKE, smoke=False, dropout=0.9)
    model, _, held_out = train_images.prepare(config)
    evaluation = Evaluation(model, held_out, images=8, coded=8, steps=2, seed=0)
    params = jax.tree.map(lambda leaf: leaf + 0.05, model.init(jax.random.key(0)))
    still = replace(model, network=model.network.clone(dropout=0.0))
    of_still = Evaluation(still, held_out, images=8, coded=8, steps=2, seed=0)
    assert evaluation.numbers(params)["held_out_loss"] == of_still.numbers(params)["held_out_loss"]


def test_a_resumed_run_logs_each_number_once(tmp_path):
    run = open_run(replace(train_images.SMOKE, run_dir=str(tmp_path)))
    with Logs(run, after=0) as logs:
        for step in (1, 2, 3):
            logs.numbers(step, {"loss": step})
        logs.numbers(2, {"held_out_loss": 5.0})
    with Logs(run, after=2) as logs:
        logs.numbers(2, {"held_out_loss": 6.0})
        logs.numbers(2, {"bits": 7.0})
        logs.numbers(3, {"loss": 8.0})
    assert run.records() == [
        *({"step": 1, "loss": 1.0}, {"step": 2, "loss": 2.0}, {"step": 2, "held_out_loss": 5.0}),
        *({"step": 2, "bits": 7.0}, {"step": 3, "loss": 8.0}),
    ]


# configurations -------------------------------------------------------------------------------------------------


def test_papers_are_asked_for_by_name():
    config = train_images.command_line(["ddpm", "--steps", "7"])
    assert (config.network, config.batch, config.steps, config.run_dir) == ("ddpm", 128, 7, "runs/ddpm")
    assert train_images.command_line(["--smoke"]).smoke
    with pytest.raises(SystemExit, match="Expected one of ddpm, "):
        train_images.command_line(["ddqm"])


@pytest.mark.parametrize("name", PAPERS)
def test_papers_settings_are_taken(name, tmp_path):
    train_images.check(train_images.command_line([name, "--run-dir", str(tmp_path / "run")]))


def test_edm_counts_images():
    """Table 7 of the paper: 200 million images, a warm-up of 10 million, an average that halves in 0.5 million."""
    edm = PAPERS["edm-vp"]
    assert edm["steps"] * edm["batch"] == 200_000_000
    assert edm["warmup"] * edm["batch"] == pytest.approx(10_000_000, rel=1e-4)
    assert edm["ema_decay"] == pytest.approx(0.5 ** (edm["batch"] / 500_000), abs=5e-6)


def test_where_it_runs_is_not_the_experiment(tmp_path):
    config = replace(train_images.SMOKE, run_dir=str(tmp_path))
    assert {"back_end", "pieces", "coordinator"} <= set(config.NOT_SCIENCE)
    assert set(config.NOT_SCIENCE) <= set(vars(config))
