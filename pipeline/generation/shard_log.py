"""What each shard of a generation job cost, beside the samples."""

import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import StorageError
from pipeline.storage.files import parquet_bytes
from pipeline.storage.store import Store

__all__ = ["SHARD_LOG", "SHARD_LOG_KEY", "ShardLog"]

SHARD_LOG_KEY = "metrics/shards.parquet"
SHARD_LOG = pa.schema(
    [
        pa.field("shard", pa.int64(), nullable=False),
        pa.field("rows", pa.int64(), nullable=False),
        pa.field("failed", pa.int64(), nullable=False),
        pa.field("started", pa.float64(), nullable=False),  # Unix seconds
        pa.field("seconds", pa.float64(), nullable=False),  # in the network and the sampler
        pa.field("img_s", pa.float64(), nullable=False),  # of the one actor that made the shard
        pa.field("node", pa.string(), nullable=False),  # host name
        pa.field("pixel_mean", pa.float64()),  # of levels 0..255, over images that could be made
        pa.field("pixel_std", pa.float64()),
        pa.field("saturated_share", pa.float64()),  # of levels that are 0 or 255
    ]
)
LOG_SECONDS = 60.0
ROW_GROUP_ROWS = 1000


class ShardLog:
    """`metrics/shards.parquet`: what each shard cost, over all invocations. A courtesy: a killed driver loses a minute.

    Rows of at most a minute are Python objects, the others are Arrow's.
    """

    def __init__(self, job: Store) -> None:
        self._job = job
        self._rows: list[dict[str, Any]] = []
        try:
            self._table = pq.read_table(pa.BufferReader(job.read(SHARD_LOG_KEY)), schema=SHARD_LOG)
        except (StorageError, pa.ArrowException, OSError):
            self._table = SHARD_LOG.empty_table()
        self._written = time.monotonic()

    def add(self, row: Mapping[str, Any]) -> None:
        """Note one committed shard (columns of SHARD_LOG; others are ignored); writes once a minute."""
        self._rows.append({name: row.get(name) for name in SHARD_LOG.names})
        if time.monotonic() - self._written >= LOG_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what is new; a store that does not take it now is asked again next time."""
        self._written = time.monotonic()
        if not self._rows:
            return
        new = pa.Table.from_pylist(self._rows, schema=SHARD_LOG)
        table = pa.concat_tables([self._table, new]).sort_by("shard")
        with suppress(StorageError):
            self._job.put(SHARD_LOG_KEY, parquet_bytes(table, ROW_GROUP_ROWS))
            self._table, self._rows = table, []
