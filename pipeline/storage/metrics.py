"""Training metrics at rest: Parquet parts that a checkpoint names, and TensorBoard event files beside them."""

import io
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image
from tensorboardX import SummaryWriter

from pipeline.manifests import CheckpointManifest, FileEntry
from pipeline.schema import METRICS
from pipeline.storage.shards import parquet_bytes, put_file, read_parquet
from pipeline.storage.store import Store

__all__ = ["TensorBoard", "read_metrics", "write_metrics"]

Row = Mapping[str, float]
CHARTED = ("loss", "lr", "grad_norm")


def write_metrics(run: Store, rows: Sequence[Row]) -> FileEntry:
    """The steps since the last checkpoint, under a name that only those steps have."""
    table = pa.Table.from_pylist([dict(row) for row in rows], schema=METRICS)
    key = f"metrics/steps-{int(rows[0]['step']):09d}-{int(rows[-1]['step']):09d}.parquet"
    return put_file(run, key, parquet_bytes(table, len(rows)))


def read_metrics(run: Store, checkpoint: CheckpointManifest) -> pa.Table:
    """METRICS of every step up to a checkpoint, each step once."""
    parts = [read_parquet(run, part) for part in checkpoint.metric_parts]
    return pa.concat_tables(parts) if parts else METRICS.empty_table()


class TensorBoard:
    """Event files of one attempt, kept whole under `<run>/tensorboard/`; steps appear when a checkpoint has them."""

    def __init__(self, run: Store) -> None:
        self._run = run
        self._folder = tempfile.TemporaryDirectory(prefix="ddpm-tensorboard-")
        self._writer = SummaryWriter(self._folder.name)

    def scalars(self, rows: Sequence[Row]) -> None:
        """Chart loss, learning rate, gradient norm, img/s and the share of time spent waiting for data."""
        for row in rows:
            step = int(row["step"])
            for name in CHARTED:
                self._writer.add_scalar(f"train/{name}", row[name], step)
            self._writer.add_scalar("train/data_wait", row["data_wait_seconds"] / row["step_seconds"], step)
        images = rows[-1]["images"] - rows[0]["images"]
        seconds = sum(row["step_seconds"] for row in rows[1:])
        if seconds > 0:
            self._writer.add_scalar("train/images_per_second", images / seconds, int(rows[-1]["step"]))
        self._upload()

    def image(self, name: str, png: bytes, step: int) -> None:
        """Show a PNG."""
        pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
        self._writer.add_image(name, pixels, step, dataformats="HWC")
        self._upload()

    def _upload(self) -> None:
        self._writer.flush()
        for file in Path(self._folder.name).iterdir():
            self._run.put(f"tensorboard/{file.name}", file.read_bytes())
