"""Training metrics at rest: Parquet files named by checkpoints, and the curves that trackers show of them."""

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from pipeline.config.base import FileEntry
from pipeline.model_store.manifest import CheckpointManifest
from pipeline.schema import METRICS
from pipeline.storage.files import parquet_bytes, put_file, read_parquet
from pipeline.storage.store import Store

Row = Mapping[str, Any]
"""One step: values by METRICS column; nullable columns may be missing."""
CHARTED = ("loss", "lr", "grad_norm", "skew_seconds")


def write_metrics(run: Store, rows: Sequence[Row]) -> FileEntry:
    """Store the steps since the last checkpoint, in a file named by its first and last step."""
    table = pa.Table.from_pylist([dict(row) for row in rows], schema=METRICS)
    key = f"metrics/steps-{int(rows[0]['step']):09d}-{int(rows[-1]['step']):09d}.parquet"
    return put_file(run, key, parquet_bytes(table, len(rows)))


def read_metrics(run: Store, checkpoint: CheckpointManifest) -> pa.Table:
    """METRICS of every step up to a checkpoint, each step once; columns missing from older files are null."""
    parts = [_with_all_columns(read_parquet(run, part)) for part in checkpoint.metric_parts]
    return pa.concat_tables(parts) if parts else METRICS.empty_table()


def _with_all_columns(part: pa.Table) -> pa.Table:
    known = set(part.column_names)
    missing = [field for field in METRICS if field.nullable and field.name not in known]
    for field in missing:
        part = part.append_column(field, pa.nulls(len(part), field.type))
    return part.select(METRICS.names).cast(METRICS)


def charts(rows: Sequence[Row]) -> list[tuple[int, dict[str, float]]]:
    """(step, value by chart name) of every row.

    Charts: loss, learning rate, gradient norm, rank skew in seconds, loss by tenth of the timesteps, and the share of
    time (0..1) spent waiting for data; null values are left out. The last row also has the images per second of all
    rows after the first.
    """
    found = [(int(row["step"]), _charts_of(row)) for row in rows]
    images = rows[-1]["images"] - rows[0]["images"]
    seconds = sum(row["step_seconds"] for row in rows[1:])
    if seconds > 0:
        found[-1][1]["train/images_per_second"] = images / seconds
    return found


def _charts_of(row: Row) -> dict[str, float]:
    values = {f"train/{name}": row.get(name) for name in CHARTED}
    if row["step_seconds"] > 0:
        values["train/data_wait"] = row["data_wait_seconds"] / row["step_seconds"]
    values |= {f"train/loss_by_t/{tenth}": value for tenth, value in enumerate(row.get("loss_by_t") or ())}
    return {name: float(value) for name, value in values.items() if value is not None}
