"""Inception's features are pytorch-fid's, its pools NumPy's, and a weights file is read without PyTorch, or refused."""

import io
import pickle
import struct
import sys
import types
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from inception_weights import images, weights

from dgm_jax.data.torch_files import MAGIC, read_torch_file
from dgm_jax.metrics import load_inception
from dgm_jax.networks import inception
from dgm_jax.networks.inception import inception_features

# pytorch-fid 0.3.0's InceptionV3([3], resize_input=False, normalize_input=False) with these weights on this image:
# the first and last feature above 0.5 of each of the last block's six branches, and mean and std of all
PLACES = [5, 319, 320, 703, 704, 1087, 1090, 1471, 1472, 1855, 1856, 2044]
FEATURES = [
    *(3.62463, 4.48583, 7.50043, 2.47767, 1.63411, 0.594292, 0.683187, 5.29035, 3.85623, 1.57825, 20.4881, 15.958),
]
MEAN, STD = 4.680196285247803, 6.262205600738525


@pytest.fixture(scope="module")
def arrays():
    return weights()


def test_features_are_those_of_pytorch_fid(arrays):
    found = np.asarray(jax.jit(lambda x: inception_features(arrays, x))(jnp.asarray(images())))[0]
    np.testing.assert_allclose(found[PLACES], FEATURES, rtol=1e-4)
    np.testing.assert_allclose([found.mean(), found.std()], [MEAN, STD], rtol=1e-5)


def test_pools_against_numpy():
    x = np.random.default_rng(1).normal(size=(2, 5, 7, 3)).astype(np.float32)
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=np.nan)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
    np.testing.assert_allclose(inception._mean_pool(jnp.asarray(x)), np.nanmean(windows, axis=(4, 5)), rtol=1e-5)
    largest = inception._max_pool(jnp.asarray(x), stride=1, padding=1)
    np.testing.assert_array_equal(largest, np.nanmax(windows, axis=(4, 5)))
    inner = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(1, 2))[:, ::2, ::2]
    np.testing.assert_array_equal(inception._max_pool(jnp.asarray(x), stride=2), inner.max(axis=(4, 5)))


# files in PyTorch's formats, written by pickle alone -------------------------------------------------------------


class Stored:
    def __init__(self, key, values):
        self.key, self.values = key, values


@pytest.fixture
def torch_names(monkeypatch):
    """Modules named as PyTorch's, with what state dictionaries name, so that pickle can write them."""
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    torch.FloatStorage = type("FloatStorage", (), {"__module__": "torch"})
    torch.LongStorage = type("LongStorage", (), {"__module__": "torch"})

    def _rebuild_tensor_v2(*arguments):
        raise AssertionError("only its name is written")

    _rebuild_tensor_v2.__module__, _rebuild_tensor_v2.__qualname__ = "torch._utils", "_rebuild_tensor_v2"
    utils._rebuild_tensor_v2 = _rebuild_tensor_v2
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "torch._utils", utils)
    return torch, utils


def pickled(tensors, names, *, views):
    """The pickle of {name: (storage key, shape, strides, offset)} and the storages."""
    torch, utils = names

    class Tensor:
        def __init__(self, arguments):
            self.arguments = arguments

        def __reduce__(self):
            return utils._rebuild_tensor_v2, self.arguments

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            if isinstance(value, Stored):
                kind = torch.FloatStorage if value.values.dtype == np.float32 else torch.LongStorage
                return ("storage", kind, value.key, "cpu", value.values.size, *views)
            return None

    stream = io.BytesIO()
    state = {
        name: Tensor((stored, offset, shape, strides, False, None))
        for name, (stored, offset, shape, strides) in tensors.items()
    }
    Pickler(stream, protocol=2).dump(state)
    return stream.getvalue()


FLOATS, WHOLE = Stored("0", np.arange(12, dtype=np.float32)), Stored("1", np.array([7], np.int64))
TENSORS = {
    "plain": (FLOATS, 0, (3, 4), (4, 1)),
    "transposed": (FLOATS, 1, (4, 2), (1, 4)),
    "number": (WHOLE, 0, (), ()),
}


def write(path, kind, names, tensors=TENSORS):
    if kind == "archive":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("model/data.pkl", pickled(tensors, names, views=()))
            for stored in (FLOATS, WHOLE):
                archive.writestr(f"model/data/{stored.key}", stored.values.tobytes())
        return
    head = b"".join(pickle.dumps(part, protocol=2) for part in (MAGIC, 1001, {"little_endian": True}))
    storages = b"".join(struct.pack("<q", s.values.size) + s.values.tobytes() for s in (FLOATS, WHOLE))
    keys = pickle.dumps(["0", "1"], protocol=2)
    path.write_bytes(head + pickled(tensors, names, views=(None,)) + keys + storages)


@pytest.mark.parametrize("kind", ["archive", "stream"])
def test_state_dictionaries_are_read(tmp_path, kind, torch_names):
    write(tmp_path / "weights.pth", kind, torch_names)
    found = read_torch_file(tmp_path / "weights.pth")
    np.testing.assert_array_equal(found["plain"], np.arange(12).reshape(3, 4))
    np.testing.assert_array_equal(found["transposed"], [[1, 5], [2, 6], [3, 7], [4, 8]])
    assert found["number"] == 7
    assert (found["plain"].dtype, found["number"].dtype) == (np.float32, np.int64)


@pytest.mark.parametrize("kind", ["archive", "stream"])
def test_a_view_beyond_its_storage_is_refused(tmp_path, kind, torch_names):
    write(tmp_path / "weights.pth", kind, torch_names, {"long": (FLOATS, 8, (5,), (1,)), "n": TENSORS["number"]})
    with pytest.raises(ValueError, match=r"Expected a state dictionary.*view of \(5,\) values beyond its storage"):
        read_torch_file(tmp_path / "weights.pth")


class Harm:
    def __reduce__(self):
        return print, ("harm",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file"),
        (b"", "Ran out of input"),
        (b"<html>not found</html>", "invalid load key"),
        (pickle.dumps(3), "another kind of file"),
        (pickle.dumps(Harm()), "names builtins.print, which is no part"),
    ],
)
def test_other_files_are_refused_and_run_nothing(tmp_path, content, message, capsys):
    path = tmp_path / "weights.pth"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=f"(?s)Expected a state dictionary.*{message}"):
        read_torch_file(path)
    assert "harm" not in capsys.readouterr().out


def test_a_file_of_other_weights_is_refused(tmp_path, torch_names):
    write(tmp_path / "weights.pth", "archive", torch_names)
    with pytest.raises(ValueError, match=r"(?s)Inception v3's weights.*Conv2d_1a_3x3.conv.weight.*3 others, plain"):
        load_inception(tmp_path / "weights.pth")


def test_small_images_are_refused(arrays, untyped):
    with pytest.raises(ValueError, match=r"75 pixels.*\(1, 32, 32, 3\)"):
        inception_features(arrays, jnp.zeros((1, 32, 32, 3)))


def test_the_loaded_function_resizes_scales_and_chunks(monkeypatch):
    """With the network replaced by the mean of each channel: uint8 in, chunks of one shape, every image once."""
    module = sys.modules["dgm_jax.metrics.inception_features"]
    monkeypatch.setattr(module, "read_torch_file", lambda path: {})
    monkeypatch.setattr(module, "inception_features", lambda weights, x: x.mean((1, 2)))
    features = load_inception("weights.pth", chunk=2)
    pixels = np.random.default_rng(2).integers(0, 256, (5, 1, 1, 3)).astype(np.uint8)
    x = np.tile(pixels, (1, 6, 8, 1))  # of one colour, which no resizing changes
    np.testing.assert_allclose(features(x), 2 * pixels[:, 0, 0].astype(np.float64) / 255 - 1, atol=1e-5)
    with pytest.raises(ValueError, match=r"images uint8 \[n, height, width, 3\].*float32"):
        features(x.astype(np.float32))
    with pytest.raises(ValueError, match=r"images uint8.*\(5, 6, 8, 1\)"):
        features(x[..., :1])
