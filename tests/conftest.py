"""Strict JAX for every test: no silent broadcasting, no silent dtype promotion, eight virtual devices."""

import importlib.metadata
import os
import socket

os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # compile time is most of a unit test's time
if importlib.metadata.version("jaxlib").startswith("0.10."):  # a third of it, by a switch that later releases lack
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_cpu_use_fusion_emitters=false"

import jax
import jaxtyping
import pytest

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


@pytest.fixture(autouse=True, scope="module")
def forgotten_programs():
    """No file uses another's compiled programs: kept, they would be 7 GB for each worker by the end."""
    yield
    jax.clear_caches()


@pytest.fixture
def untyped(monkeypatch):
    """Without the type checks of the test run, as in production, so that the library's own errors are reached."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.fixture
def no_network(monkeypatch):
    """Whatever reaches for the network fails the test."""

    def refuse(*args, **kwargs):
        raise AssertionError("the network was touched")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
