"""Strict JAX for every test: no silent broadcasting, no silent dtype promotion, eight virtual devices."""

import os
import socket

os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # compile time is most of a unit test's time

import jax
import jaxtyping
import pytest

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


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
