"""Shuffled, sharded, resumable batches: each example once an epoch, and the identical next batch on resumption."""

import numpy as np
import pytest

from dgm_jax.data import batches, from_array, load, source

pytestmark = pytest.mark.usefixtures("no_network")


def numbered(n):
    return from_array(np.arange(n, dtype=np.float32)[:, None], np.arange(n))


def take(stream, n):
    return np.stack([next(stream)["label"] for _ in range(n)])


def test_an_epoch_holds_each_example_once_and_the_next_another_order():
    epochs = take(batches(numbered(24), 4, seed=0), 12).reshape(2, 24)
    for epoch in epochs:
        assert sorted(epoch) == list(range(24))
    assert (epochs[0] != epochs[1]).any()
    assert (epochs[0] != np.arange(24)).any()


def test_the_remainder_is_dropped_and_changes():
    epochs = take(batches(numbered(10), 4, seed=0), 20).reshape(10, 8)
    assert all(len(set(epoch)) == 8 for epoch in epochs)
    assert set(epochs.ravel()) == set(range(10))


def test_batches_keep_fields_together_and_depend_on_the_seed_alone():
    batch = next(batches(numbered(24), 4, seed=3))
    assert batch["image"].shape == (4, 1)
    np.testing.assert_array_equal(batch["image"][:, 0].astype(int), batch["label"])
    again = take(batches(numbered(24), 4, seed=3, prefetch=0), 9)
    np.testing.assert_array_equal(take(batches(numbered(24), 4, seed=3), 9), again)
    assert (take(batches(numbered(24), 4, seed=4), 9) != again).any()


@pytest.mark.parametrize("shard_count", [2, 3])
def test_shards_are_disjoint_complete_and_make_up_the_one_host_stream(shard_count):
    size = 12 // shard_count
    shards = [batches(numbered(24), size, seed=5, shard_index=i, shard_count=shard_count) for i in range(shard_count)]
    steps = np.concatenate([take(shard, 4) for shard in shards], axis=1)
    assert sorted(steps[:2].ravel()) == list(range(24))
    assert sorted(steps[2:].ravel()) == list(range(24))
    np.testing.assert_array_equal(steps, take(batches(numbered(24), 12, seed=5), 4))


@pytest.mark.parametrize("consumed", [0, 1, 4, 9])
def test_resuming_gives_the_identical_next_batches(consumed, tmp_path):
    digits = source("digits", "test[:50]", data_dir=tmp_path)
    stream = batches(digits, 8, seed=1)
    for _ in range(consumed):
        next(stream)
    state = stream.get_state()
    expected = [next(stream) for _ in range(8)]
    resumed = batches(digits, 8, seed=1)
    next(resumed)
    resumed.set_state(state)
    for batch in expected:
        other = next(resumed)
        np.testing.assert_array_equal(batch["image"], other["image"])
        np.testing.assert_array_equal(batch["label"], other["label"])
    stream.set_state(state)  # and back, on the stream that went ahead
    np.testing.assert_array_equal(next(stream)["image"], expected[0]["image"])


def test_a_state_moves_between_numbers_of_shards():
    whole = batches(numbered(24), 6, seed=0)
    take(whole, 5)
    halves = [batches(numbered(24), 3, seed=0, shard_index=i, shard_count=2) for i in range(2)]
    for half in halves:
        half.set_state(whole.get_state())
    steps = np.concatenate([take(half, 3) for half in halves], axis=1)
    np.testing.assert_array_equal(steps, take(whole, 3))


@pytest.mark.parametrize("other", [{"seed": 1}, {"batch_size": 3}, {"n": 23}])
def test_a_state_of_another_stream_is_refused(other):
    options = {"seed": 0, "batch_size": 4, "n": 24} | other
    stream = batches(numbered(options["n"]), options["batch_size"], seed=options["seed"])
    with pytest.raises(ValueError, match="Expected the state of a stream"):
        stream.set_state(batches(numbered(24), 4, seed=0).get_state())


@pytest.mark.parametrize("state", [b"", b"{}", b"[1]", b"\x80abc"])
def test_a_foreign_state_is_refused(state):
    with pytest.raises(ValueError, match="Expected a state that get_state returned"):
        batches(numbered(24), 4, seed=0).set_state(state)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 25}, r"batch_size <= 24.*batch_size=25"),
        ({"batch_size": 13, "shard_count": 2}, r"batch_size <= 12, as 24 examples on 2 shard"),
        ({"batch_size": 0}, "1 <= batch_size"),
        ({"batch_size": 4, "shard_index": 2, "shard_count": 2}, "shard_index < shard_count"),
        ({"batch_size": 4, "shard_index": -1}, "0 <= shard_index"),
        ({"batch_size": 4, "seed": -1}, "seed of 32 bits"),
        ({"batch_size": 4, "prefetch": -1}, "prefetch >= 0"),
    ],
)
def test_bad_batches(arguments, message):
    with pytest.raises(ValueError, match=message):
        batches(numbered(24), **({"seed": 0} | arguments))


class Damaged:
    """24 records, of which number 17 raises or is not like the others."""

    def __init__(self, damage):
        self.damage = damage

    def __len__(self):
        return 24

    def __getitem__(self, index):
        whole = {"image": np.full(2, index, np.float32), "label": index}
        if index == 17:
            if isinstance(self.damage, Exception):
                raise self.damage
            whole = {k: v for k, v in (whole | self.damage).items() if v is not None}
        return whole


class DamagedTogether(Damaged):
    def __getitems__(self, indices):
        return [self[index] for index in indices]


@pytest.mark.parametrize("kind", [Damaged, DamagedTogether])
@pytest.mark.parametrize("prefetch", [0, 4], ids=["", "in threads"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (OSError("a bad sector"), "Expected record 17 to be readable.*OSError: a bad sector"),
        (KeyError("image"), "Expected record 17 to be readable"),
        (
            {"image": np.zeros(3, np.float32)},
            r"one shape and kind for all records of 'image'.*float32\[3\] in record 17",
        ),
        ({"image": np.array(["a", "b"])}, "one shape and kind for all records of 'image'.* in record 17"),
        ({"label": 0.5}, r"one shape and kind for all records of 'label'.*float64\[\] in record 17"),
        ({"label": None}, "Expected 'label' in record 17"),
    ],
)
def test_a_bad_record_is_named(kind, prefetch, damage, message):
    stream = batches(kind(damage), 4, seed=0, prefetch=prefetch)
    with pytest.raises(ValueError, match=message):
        take(stream, 6)
    with pytest.raises(ValueError, match=message):
        load(kind(damage))


@pytest.mark.parametrize("seed", range(8))
def test_a_corrupted_file_is_never_read_as_data(seed, tmp_path):
    """A file cut short or with 16 bytes flipped: the record that it spoils is named, or nothing was in those bytes."""
    whole = load(source("digits", "test", data_dir=tmp_path))
    (path,) = tmp_path.rglob("*digits-test.array_record*")
    data, rng = bytearray(path.read_bytes()), np.random.default_rng(seed)
    at = int(rng.integers(20_000))  # where the records are; zeros follow
    if seed % 2:
        data[at : at + 16] = bytes(255 - byte for byte in data[at : at + 16])
    else:
        del data[70_000 - at :]
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"Expected record \d+ to be readable.*(Corrupted|ArrayRecord)"):
        np.testing.assert_equal(load(source("digits", "test", data_dir=tmp_path)), whole)


def test_empty_sources_are_refused():
    with pytest.raises(ValueError, match="at least one record"):
        load([])
