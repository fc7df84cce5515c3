"""Strict JAX for every test: no silent broadcasting, no silent dtype promotion, eight virtual devices."""

import mmap
import os
import socket
from pathlib import Path

os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # compile time is most of a unit test's time

import jax
import jaxlib
import pytest

# XLA's older emitters of loops, in programs of one piece, take a third of the time to compile
SHORT_COMPILATION = {"xla_cpu_use_fusion_emitters": "false", "xla_cpu_parallel_codegen_split_count": "1"}


def holds(path: Path, text: bytes) -> bool:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(text) >= 0


libraries = [path for path in Path(jaxlib.__file__).parent.iterdir() if path.suffix in {".so", ".dylib", ".pyd"}]
for flag, value in SHORT_COMPILATION.items():
    flags = os.environ.get("XLA_FLAGS", "")
    # a flag that this XLA does not have would abort the process
    if flag not in flags and any(holds(path, flag.encode()) for path in libraries):
        os.environ["XLA_FLAGS"] = f"{flags} --{flag}={value}"

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


@pytest.fixture
def no_network(monkeypatch):
    """Whatever reaches for the network fails the test."""

    def refuse(*args, **kwargs):
        raise AssertionError("the network was touched")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
