"""Read and decode the usable images of samples shards and dataset shards.

A sample is usable when its status is ok. Every row of a dataset shard is usable.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.errors import DataError
from pipeline.generation.manifest import Marker
from pipeline.images.png import decode_batch
from pipeline.ingest.manifest import ShardEntry
from pipeline.schema import STATUS_OK
from pipeline.storage.sample_shards import read_samples
from pipeline.storage.store import Store

Pixels = NDArray[np.uint8]
StoredShard = Marker | ShardEntry


def usable_rows(shard: StoredShard) -> int:
    """How many rows of a shard have an image."""
    return shard.rows - (shard.failed if isinstance(shard, Marker) else 0)


def first_rows(shards: Sequence[StoredShard], n: int) -> Iterator[tuple[int, StoredShard, int]]:
    """The first `n` usable images of consecutive shards: (shard index, shard, number of rows from its start)."""
    for index, shard in enumerate(shards):
        count = min(usable_rows(shard), n)
        if count:
            yield index, shard, count
        n -= count


def read_usable(
    store: Store, shard: StoredShard, columns: Sequence[str] = ("sample_id", "image"), first: int = 0, count: int = -1
) -> pa.Table:
    """Usable rows first .. first + count - 1 of a verified shard (count -1: to the end).

    Raises DataError when the shard has fewer rows than its manifest states.
    """
    count = usable_rows(shard) - first if count < 0 else count
    if isinstance(shard, Marker):
        table = read_samples(store, shard, [*dict.fromkeys([*columns, "status"])])
        table = table.filter(pc.equal(table["status"], STATUS_OK))
    else:
        table = read_samples(store, shard, columns)
    table = table.slice(first, count)
    if len(table) != count:
        raise DataError(
            f"{store.location(shard.key)} has {first + len(table)} usable rows where its manifest states "
            f"{usable_rows(shard)}: run ddpm verify"
        )
    return table


def encoded_images(table: pa.Table) -> Iterator[bytes]:
    """The stored PNG or JPEG of each row, one at a time."""
    return (value.as_py() for value in pc.struct_field(table["image"], "bytes"))


def decode_column(table: pa.Table, shape: tuple[int, int, int]) -> Pixels:
    """The image column as uint8 [N, H, W, C]. Raises BadImage, and DataError on an image of another shape."""
    return decode_batch(pc.struct_field(table["image"], "bytes").to_pylist(), shape)
