"""First pass of an ingest, a task a partition of the source: runs of prepared images, sorted by slot, and rejects."""

import hashlib
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from pipeline.config.ingest import IngestConfig
from pipeline.images.png import encode_png
from pipeline.images.reject_reasons import Reject
from pipeline.ingest.decode.decoder import Decoder
from pipeline.ingest.journal import Prepared, Work
from pipeline.ingest.manifest import DatasetManifest
from pipeline.ingest.partitioning import shuffle_key
from pipeline.ingest.sorted_runs import PreparedImage, RunFile, run_bytes
from pipeline.ingest.sources.source import Partition, Source, SourceRow
from pipeline.schema import REJECTS
from pipeline.storage.credentials import without_credentials
from pipeline.storage.files import parquet_bytes, put_file

__all__ = ["MAX_DETAIL", "IngestContext", "partition_name", "prepare"]

RUN_BYTES = 64 * 2**20
"""Encoded images that a preparing task holds before it writes them as a run."""
MAX_DETAIL = 300


@dataclass(frozen=True)
class IngestContext:
    """What every task of an ingest needs; small but for `parent` and `runs`, which travel once a node."""

    config: IngestConfig
    work: Work
    source: Source
    parent: DatasetManifest | None
    runs: tuple[RunFile, ...] = ()
    classes: tuple[str, ...] | None = None
    shard_rows: int = 0

    @property
    def shape(self) -> tuple[int, int]:
        return self.work.plan.slots.count, self.config.channels

    @property
    def first_row(self) -> int:
        """Sample ids before this generation."""
        return 0 if self.parent is None else self.parent.rows("train") + self.parent.rows("heldout")


class Place(NamedTuple):
    """Where a row is in the source."""

    row: int
    source: str
    label: str | None


@dataclass
class PartitionOutput:
    """What a preparing task has made so far; images are written whenever RUN_BYTES of them have come together."""

    context: IngestContext
    partition: int
    images: list[PreparedImage] = field(default_factory=list)
    waiting_bytes: int = 0
    image_bytes: int = 0
    runs: list[RunFile] = field(default_factory=list)
    labels: set[str] = field(default_factory=set)
    rejects: list[dict[str, str]] = field(default_factory=list)

    def add(self, image: PreparedImage) -> None:
        self.images.append(image)
        self.waiting_bytes += len(image.png)
        self.image_bytes += len(image.png)
        if image.label is not None:
            self.labels.add(image.label)
        if self.waiting_bytes >= RUN_BYTES:
            self.flush()

    def flush(self) -> None:
        if not self.images:
            return
        data, text_bytes = run_bytes(self.images, *self.context.shape)
        key = self.context.work.data(f"{self.partition:07d}-{len(self.runs):03d}-{uuid.uuid4().hex}.run")
        file = put_file(self.context.work.dataset, key, data)
        self.runs.append(RunFile(**file.model_dump(), rows=len(self.images), text_bytes=text_bytes))
        self.images, self.waiting_bytes = [], 0

    def finish(self, rows: int) -> Prepared:
        self.flush()
        rejects = None
        if self.rejects:
            key = self.context.work.data(f"{self.partition:07d}-{uuid.uuid4().hex}.rejects")
            table = pa.Table.from_pylist(self.rejects, schema=REJECTS)
            rejects = put_file(self.context.work.dataset, key, parquet_bytes(table, len(table)))
        return Prepared(
            partition=self.partition,
            rows=rows,
            image_bytes=self.image_bytes,
            runs=tuple(self.runs),
            labels=tuple(sorted(self.labels)),
            reject_counts=dict(sorted(Counter(row["reason"] for row in self.rejects).items())),
            rejects=rejects,
        )


def partition_name(number: int) -> str:
    """Name of a partition's marker."""
    return f"{number:07d}"


def prepare(context: IngestContext, number: int, partition: Partition) -> Prepared:
    """Every row of a partition becomes an image of a run, or a reject."""
    name = partition_name(number)
    done = context.work.read(Prepared, "prepared", name)
    if done is not None:
        return done
    output, rows = PartitionOutput(context, number), 0
    with Decoder(context.config) as decoder:
        for place, image in decoder.prepare(_placed(context.source.rows(partition))):
            rows += 1
            if isinstance(image, Reject):
                detail = without_credentials(_text(image.detail))[:MAX_DETAIL]
                output.rejects.append({"source": place.source, "reason": image.reason, "detail": detail})
            else:
                output.add(_prepared(context, number, place, image))
    return context.work.mark(output.finish(rows), "prepared", name)


def _placed(rows: Iterable[SourceRow]) -> Iterator[tuple[Place, Any]]:
    for number, row in enumerate(rows):
        label = None if row.label is None else _text(row.label)
        yield Place(number, without_credentials(_text(row.source)), label), row.image


def _text(name: str) -> str:
    """A name as UTF-8 can hold it, without NUL."""
    return name.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")


def _prepared(context: IngestContext, partition: int, place: Place, pixels: Any) -> PreparedImage:
    """pixels: uint8 [size, size, channels]."""
    digest = hashlib.sha256(np.ascontiguousarray(pixels).data).digest()
    key = shuffle_key(digest.hex(), context.config.seed)
    levels = pixels.reshape(-1, context.config.channels).astype(np.float64)  # sums of squares stay below 2^53: exact
    sums = (*levels.sum(0), *np.einsum("nc,nc->c", levels, levels))
    return PreparedImage(
        slot=context.work.plan.slots.of(digest.hex(), key, context.config.heldout_share),
        key=key,
        sha256=digest,
        partition=partition,
        row=place.row,
        sums=tuple(int(value) for value in sums),
        source=place.source,
        label=place.label,
        png=encode_png(pixels),
    )
