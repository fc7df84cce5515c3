"""Endless shuffled batches of a source through grain: seeded, split between hosts, exactly resumable.

Each epoch is one permutation of the source, cut into global batches of batch_size * shard_count examples; what is
left over at the end is dropped, and another permutation leaves out others. Shard i holds rows i batch_size to
(i + 1) batch_size of each global batch. So at a given global batch the examples of a step, in order, do not depend on
the number of shards.
"""

import json
from collections.abc import Iterator

import numpy as np

from dgm_jax.data.records import Source, read


class Batches(Iterator[dict[str, np.ndarray]]):
    """An endless iterator of dicts of arrays [batch_size, ...], built by `batches`."""

    def __init__(
        self, source: Source, batch_size: int, *, seed: int, shard_index: int, shard_count: int, prefetch: int
    ):
        import grain  # takes a second, and only training needs it

        first = shard_index * batch_size

        def read_rows(global_batch: np.ndarray) -> dict[str, np.ndarray]:
            return read(source, global_batch[first : first + batch_size].tolist())

        order = grain.MapDataset.range(len(source)).shuffle(seed=seed)
        rows = order.batch(batch_size * shard_count, drop_remainder=True).map(read_rows).repeat()
        options = grain.ReadOptions(num_threads=min(prefetch, 2), prefetch_buffer_size=prefetch)
        self._iterator = iter(rows.to_iter_dataset(options))
        self._stream = {"seed": seed, "global_batch": batch_size * shard_count, "examples": len(source)}

    def __next__(self) -> dict[str, np.ndarray]:
        return next(self._iterator)

    def get_state(self) -> bytes:
        """The position in the stream, as JSON: small, and the same for every shard."""
        return json.dumps({"stream": self._stream, "position": self._iterator.get_state()}).encode()

    def set_state(self, state: bytes) -> None:
        """Continue after the batch at which `get_state` was called, on this stream or an equal one.

        Raises:
            ValueError: where the state is of a stream with another seed, global batch or number of examples.
        """
        try:
            saved = json.loads(state)
            stream, position = saved["stream"], saved["position"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"Expected a state that get_state returned; got {state[:80]!r}.") from error
        if stream != self._stream:
            raise ValueError(f"Expected the state of a stream {self._stream}, as others differ in order; got {stream}.")
        self._iterator.set_state(position)


def batches(
    source: Source, batch_size: int, *, seed: int, shard_index: int = 0, shard_count: int = 1, prefetch: int = 4
) -> Batches:
    """Endless shuffled batches of `source`.

    Args:
        batch_size: examples per batch on this shard.
        seed: fixes the order, in [0, 2^32); the same on every shard.
        shard_index: which of the `shard_count` shards this is: `jax.process_index()` of `jax.process_count()`.
        prefetch: batches read ahead by at most two threads; 0 reads on demand.
    """
    if not 0 <= shard_index < shard_count:
        raise ValueError(f"Expected 0 <= shard_index < shard_count; got {shard_index=}, {shard_count=}.")
    if not 0 <= seed < 2**32:
        raise ValueError(f"Expected a seed of 32 bits, as grain's shuffle takes; got {seed=}.")
    if prefetch < 0:
        raise ValueError(f"Expected prefetch >= 0, as a number of batches; got {prefetch=}.")
    share = len(source) // shard_count
    if not 1 <= batch_size <= share:
        raise ValueError(
            f"Expected 1 <= batch_size <= {share}, as {len(source)} examples on {shard_count} shard(s) leave {share} "
            f"to each; got {batch_size=}."
        )
    return Batches(source, batch_size, seed=seed, shard_index=shard_index, shard_count=shard_count, prefetch=prefetch)
