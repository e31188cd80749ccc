"""Time, speed and pixel statistics of each generated shard: `metrics/shards.parquet` in the samples folder."""

import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import StorageError
from pipeline.storage.files import parquet_bytes
from pipeline.storage.store import Store

SHARD_METRICS_KEY = "metrics/shards.parquet"
SHARD_METRICS = pa.schema(
    [
        pa.field("shard", pa.int64(), nullable=False),
        pa.field("rows", pa.int64(), nullable=False),
        pa.field("failed", pa.int64(), nullable=False),
        pa.field("started", pa.float64(), nullable=False),  # Unix seconds
        pa.field("seconds", pa.float64(), nullable=False),  # in the network and the sampler
        pa.field("img_s", pa.float64(), nullable=False),  # of the actor that made the shard
        pa.field("node", pa.string(), nullable=False),  # host name
        pa.field("pixel_mean", pa.float64()),  # of levels 0..255, failed images excluded
        pa.field("pixel_std", pa.float64()),
        pa.field("saturated_share", pa.float64()),  # share of levels that are 0 or 255
    ]
)
LOG_SECONDS = 60.0
ROW_GROUP_ROWS = 1000


class ShardMetrics:
    """`metrics/shards.parquet` over all invocations. Best effort: a killed driver loses up to a minute of rows.

    Unwritten rows are Python objects; written rows are one Arrow table.
    """

    def __init__(self, folder: Store) -> None:
        self._folder = folder
        self._rows: list[dict[str, Any]] = []
        try:
            self._table = pq.read_table(pa.BufferReader(folder.read(SHARD_METRICS_KEY)), schema=SHARD_METRICS)
        except (StorageError, pa.ArrowException, OSError):
            self._table = SHARD_METRICS.empty_table()
        self._written = time.monotonic()

    def add(self, row: Mapping[str, Any]) -> None:
        """Record one committed shard; keys outside SHARD_METRICS are ignored. Writes at most once a minute."""
        self._rows.append({name: row.get(name) for name in SHARD_METRICS.names})
        if time.monotonic() - self._written >= LOG_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write new rows; after a storage error they stay queued for the next flush."""
        self._written = time.monotonic()
        if not self._rows:
            return
        new = pa.Table.from_pylist(self._rows, schema=SHARD_METRICS)
        table = pa.concat_tables([self._table, new]).sort_by("shard")
        with suppress(StorageError):
            self._folder.put(SHARD_METRICS_KEY, parquet_bytes(table, ROW_GROUP_ROWS))
            self._table, self._rows = table, []
