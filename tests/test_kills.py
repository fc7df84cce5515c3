"""Runs that are killed at any moment and started again end as if they had never been."""

import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import killable
import numpy as np
import pytest

ROOT = Path(__file__).parents[1]


def start(folder, processes, steps=killable.STEPS):
    """The run's processes; 0 is one without `jax.distributed`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    command = [sys.executable, str(ROOT / "tests/killable.py"), str(folder), address, str(processes)]
    children = []
    for rank in range(max(processes, 1)):
        with (folder / f"errors-{rank}").open("a") as errors:  # a file, as a full pipe would stop the run
            children.append(subprocess.Popen([*command, str(rank), str(steps)], env=env, cwd=ROOT, stderr=errors))
    return children


def steps_made(folder):
    path = folder / "steps-0"
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def finish(children):
    try:
        assert [child.wait(timeout=300) for child in children] == [0] * len(children)
    finally:
        for child in children:
            child.kill()


def result(folder):
    with np.load(folder / "last-0.npz") as file:
        return [file[name] for name in file.files]


@pytest.fixture(scope="module", params=[0, 2], ids=["one process", "two processes"])
def uninterrupted(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    finish(start(folder, request.param))
    return request.param, result(folder)


def wait_for_step(folder, step, children):
    while max(steps_made(folder), default=0) < step:
        if any(child.poll() is not None for child in children):
            for child in children:
                child.kill()
            raise AssertionError((folder / "errors-0").read_text()[-3000:])
        time.sleep(0.01)


def survive(processes, want, folder, *, kills, steps, seed):
    """Kill a random process at random moments, so many times, and compare the end with the uninterrupted run's."""
    rng, lost, noticed = random.Random(seed), [], []
    for _ in range(kills):
        children = start(folder, processes, steps)
        before = max(steps_made(folder), default=0)
        if rng.random() < 0.3:
            time.sleep(rng.uniform(0, 4))  # while it starts, restores or compiles
        else:
            wait_for_step(folder, min(before + rng.randint(1, 12), steps - 10), children)
            time.sleep(rng.uniform(0, 0.1))
        rng.choice(children).kill()
        begun = time.monotonic()
        for child in children:
            assert child.wait(timeout=120) != 0  # the others notice: no run hangs on a dead worker
        noticed.append(round(time.monotonic() - begun, 1))
        saved = [int(path.name) for path in (folder / "checkpoints").glob("*") if path.name.isdigit()]
        lost.append(max(steps_made(folder), default=0) - max(saved, default=0))
    finish(start(folder, processes, steps))
    for got, leaf in zip(result(folder), want, strict=True):
        np.testing.assert_array_equal(got, leaf)
    print(f"kills survived: {kills}, steps lost: {lost}, seconds until all had ended: {noticed}")
    assert max(noticed) < 60  # a heartbeat of 10 s, or 30 s where one waits for another to start
    assert max(lost) <= 6  # a save every third step, of which one may be under way


def test_three_kills(uninterrupted, tmp_path):
    processes, want = uninterrupted
    survive(processes, want, tmp_path, kills=3, steps=killable.STEPS, seed=0)


def test_another_number_of_processes_goes_on(uninterrupted, tmp_path):
    """What two began one ends, and the other way round, within rounding."""
    processes, want = uninterrupted
    children = start(tmp_path, processes)
    wait_for_step(tmp_path, 20, children)
    for child in children:
        child.kill()
        child.wait()
    finish(start(tmp_path, 2 - processes))
    for got, leaf in zip(result(tmp_path), want, strict=True):
        np.testing.assert_allclose(got, leaf, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [0, 2], ids=["one process", "two processes"])
def test_twenty_kills(processes, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    finish(start(whole, processes, killable.LONG))
    survive(processes, result(whole), killed, kills=20, steps=killable.LONG, seed=1)


def test_sigterm_saves_the_step_on_all_hosts(uninterrupted, tmp_path):
    """The status says so, nothing is lost, and the same command goes on."""
    processes, want = uninterrupted
    children = start(tmp_path, processes)
    wait_for_step(tmp_path, 5, children)
    children[-1].send_signal(signal.SIGTERM)
    assert [child.wait(timeout=120) for child in children] == [75] * len(children)
    saved = max(int(path.name) for path in (tmp_path / "checkpoints").glob("*") if path.name.isdigit())
    assert steps_made(tmp_path)[-1] == saved
    finish(start(tmp_path, processes))
    assert steps_made(tmp_path) == list(range(1, 61))
    for got, leaf in zip(result(tmp_path), want, strict=True):
        np.testing.assert_array_equal(got, leaf)
