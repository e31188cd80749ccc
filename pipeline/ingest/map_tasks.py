"""First pass of an ingest: a task decodes one partition of the source into sorted runs of images, and rejects."""

import hashlib
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from pipeline.config.ingest import IngestConfig
from pipeline.images.png import encode_png
from pipeline.images.reject_reasons import Reject
from pipeline.ingest.decode.decoder import Decoder
from pipeline.ingest.journal import PreparedPartition, WorkFolder
from pipeline.ingest.partitioning import shuffle_key
from pipeline.ingest.sorted_runs import PreparedImage, RunFormat, SortedRunFile, sorted_run_bytes
from pipeline.ingest.sources.source import Partition, Source, SourceRow
from pipeline.schema import REJECTS
from pipeline.storage.credentials import without_credentials
from pipeline.storage.files import parquet_bytes, put_file

SORTED_RUN_BYTES = 64 * 2**20
"""Encoded images that a task holds before it writes them as a sorted run."""
MAX_DETAIL = 300


@dataclass(frozen=True)
class MapContext:
    """Inputs that all tasks of the first pass share."""

    config: IngestConfig
    work: WorkFolder
    source: Source


class RowOrigin(NamedTuple):
    """A source row without its image: its number in the partition, its name in the source, its label and split."""

    row: int
    source: str
    label: str | None
    split: str | None = None


@dataclass
class PartitionWriter:
    """Collects the images and rejects of one partition; writes a sorted run for every SORTED_RUN_BYTES of images."""

    work: WorkFolder
    layout: RunFormat
    partition: int
    images: list[PreparedImage] = field(default_factory=list)
    waiting_bytes: int = 0
    image_bytes: int = 0
    runs: list[SortedRunFile] = field(default_factory=list)
    labels: set[str] = field(default_factory=set)
    rejects: list[dict[str, str]] = field(default_factory=list)

    def add(self, image: PreparedImage) -> None:
        self.images.append(image)
        self.waiting_bytes += len(image.png)
        self.image_bytes += len(image.png)
        if image.label is not None:
            self.labels.add(image.label)
        if self.waiting_bytes >= SORTED_RUN_BYTES:
            self.flush()

    def reject(self, source: str, reject: Reject) -> None:
        detail = without_credentials(_as_utf8(reject.detail))[:MAX_DETAIL]
        self.rejects.append({"source": source, "reason": reject.reason, "detail": detail})

    def flush(self) -> None:
        if not self.images:
            return
        data, text_bytes = sorted_run_bytes(self.images, self.layout)
        key = self.work.data(f"{self.partition:07d}-{len(self.runs):03d}-{uuid.uuid4().hex}.run")
        file = put_file(self.work.dataset, key, data)
        self.runs.append(SortedRunFile(**file.model_dump(), rows=len(self.images), text_bytes=text_bytes))
        self.images, self.waiting_bytes = [], 0

    def finish(self, rows: int, without_profile: Sequence[RowOrigin]) -> PreparedPartition:
        self.flush()
        rejects = None
        if self.rejects:
            key = self.work.data(f"{self.partition:07d}-{uuid.uuid4().hex}.rejects")
            table = pa.Table.from_pylist(self.rejects, schema=REJECTS)
            rejects = put_file(self.work.dataset, key, parquet_bytes(table, len(table)))
        return PreparedPartition(
            partition=self.partition,
            rows=rows,
            image_bytes=self.image_bytes,
            runs=tuple(self.runs),
            labels=tuple(sorted(self.labels)),
            reject_counts=dict(sorted(Counter(row["reason"] for row in self.rejects).items())),
            rejects=rejects,
            first_reject=next((f"{row['source']}: {row['detail']}" for row in self.rejects), None),
            unusable_profiles=len(without_profile),
            unusable_profile=next((origin.source for origin in without_profile), None),
        )


def partition_name(number: int) -> str:
    """Name of a partition's marker."""
    return f"{number:07d}"


def prepare_partition(context: MapContext, number: int, partition: Partition) -> PreparedPartition:
    """Turn every row of a partition into an image in a sorted run, or a reject. Skipped when its marker exists."""
    name = partition_name(number)
    done = context.work.read(PreparedPartition, "prepared", name)
    if done is not None:
        return done
    layout = RunFormat(context.work.plan.slots.count, context.config.channels)
    writer, rows = PartitionWriter(context.work, layout, number), 0
    with Decoder(context.config) as decoder:
        for origin, image in decoder.prepare(_with_origin(context.source.rows(partition))):
            rows += 1
            if isinstance(image, Reject):
                writer.reject(origin.source, image)
            else:
                writer.add(_prepared_image(context, number, origin, image))
    return context.work.mark(writer.finish(rows, decoder.unusable_profiles), "prepared", name)


def _with_origin(rows: Iterable[SourceRow]) -> Iterator[tuple[RowOrigin, Any]]:
    for number, row in enumerate(rows):
        label = None if row.label is None else _as_utf8(row.label)
        yield RowOrigin(number, without_credentials(_as_utf8(row.source)), label, row.split), row.image


def _as_utf8(name: str) -> str:
    """The name with everything escaped that UTF-8 cannot hold, and NUL, which separates texts in sorted runs."""
    return name.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")


def _prepared_image(context: MapContext, partition: int, origin: RowOrigin, pixels: Any) -> PreparedImage:
    """pixels: uint8 [size, size, channels]."""
    digest = hashlib.sha256(np.ascontiguousarray(pixels).data).digest()
    key = shuffle_key(digest.hex(), context.config.seed)
    levels = pixels.reshape(-1, context.config.channels).astype(np.float64)  # sums of squares stay below 2^53: exact
    sums = (*levels.sum(0), *np.einsum("nc,nc->c", levels, levels))
    return PreparedImage(
        slot=context.work.plan.slots.of(digest.hex(), key, context.config.heldout_share, origin.split),
        key=key,
        sha256=digest,
        partition=partition,
        row=origin.row,
        sums=tuple(int(value) for value in sums),
        source=origin.source,
        label=origin.label,
        png=encode_png(pixels),
    )
