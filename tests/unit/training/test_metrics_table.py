"""Metrics of a run: new columns, files of older runs, charts."""

import pyarrow as pa
import pytest
from tiny_run import checkpoint_manifest, metric_row

from pipeline.schema import METRICS
from pipeline.storage.files import parquet_bytes, put_file
from pipeline.training.metrics_table import charts, read_metrics, write_metrics

NEW = ["skew_seconds", "slowest_rank", "loss_by_t"]
TENTHS = [0.9, 0.8, None, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05]


def full(step):
    return metric_row(step, skew_seconds=0.25, slowest_rank=1, loss_by_t=TENTHS)


def checkpoint(*parts):
    return checkpoint_manifest(6, metric_parts=parts)


def test_rows_are_read_as_written_whether_they_have_the_new_columns_or_not(store):
    parts = write_metrics(store, [full(1), full(2)]), write_metrics(store, [metric_row(3)])
    assert [part.key for part in parts] == [
        "metrics/steps-000000001-000000002.parquet",
        "metrics/steps-000000003-000000003.parquet",
    ]
    table = read_metrics(store, checkpoint(*parts))
    assert table.schema.equals(METRICS)
    assert table.to_pylist() == [full(1), full(2), metric_row(3, **dict.fromkeys(NEW))]


def test_parts_of_an_older_run_are_read_with_nulls(store):
    old = pa.schema([field for field in METRICS if field.name not in NEW])
    data = parquet_bytes(pa.Table.from_pylist([metric_row(1), metric_row(2)], schema=old), 2)
    parts = put_file(store, "metrics/steps-000000001-000000002.parquet", data), write_metrics(store, [full(3)])
    table = read_metrics(store, checkpoint(*parts))
    assert table.schema.equals(METRICS)
    assert table.to_pylist() == [metric_row(1, **dict.fromkeys(NEW)), metric_row(2, **dict.fromkeys(NEW)), full(3)]


def test_a_run_without_parts_has_an_empty_table(store):
    assert read_metrics(store, checkpoint()).schema.equals(METRICS)


@pytest.mark.unit
def test_charts_show_what_a_row_has():
    (first, one), (second, two), (third, three) = charts([metric_row(1), full(2), metric_row(4, step_seconds=1.5)])
    assert (first, second, third) == (1, 2, 4)
    old = {"train/loss": 1.0, "train/lr": 1e-4, "train/grad_norm": 2.0, "train/data_wait": 0.25}
    assert one == old
    by_t = {f"train/loss_by_t/{tenth}": value for tenth, value in enumerate(TENTHS) if value is not None}
    assert two == {**old, "train/loss": 0.5, "train/skew_seconds": 0.25, **by_t}
    assert three["train/images_per_second"] == (4 - 1) * 8 / (0.5 + 1.5)
    assert three["train/data_wait"] == pytest.approx(0.125 / 1.5)


@pytest.mark.unit
def test_charts_divide_by_no_zero():
    assert charts([metric_row(1, step_seconds=0.0)])[0][1].keys() == {"train/loss", "train/lr", "train/grad_norm"}
