"""TensorBoard event files under `<run>/tensorboard/`: one for the metrics of a checkpoint, one for an image.

An event file is TFRecords (length, its masked CRC-32C, data, its masked CRC-32C) of Event protobufs. A file is built
in memory and stored in one write under a name made from its step: no local disk is needed, a repeated step replaces its
file, and names sort by step, the order in which TensorBoard reads a folder.
"""

import io
import struct
import time
from collections.abc import Iterable, Sequence
from typing import Any

from PIL import Image
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import masked_crc32c

from pipeline.storage.retry import retry_through_outage
from pipeline.storage.store import Store
from pipeline.training.metrics_table import Row, charts

FILE_VERSION = "brain.Event:2"
COLOURS = {"L": 1, "RGB": 3, "RGBA": 4}


class TensorBoard:
    """Scalars and images of one run. Raises StorageError."""

    def __init__(self, run: Store) -> None:
        self._run = run

    def scalars(self, rows: Sequence[Row]) -> None:
        """One event a row; wall times assume that the last step ended now."""
        when = time.time() - sum(row["step_seconds"] for row in rows[1:])
        events = []
        for number, (row, (step, values)) in enumerate(zip(rows, charts(rows), strict=True)):
            when += row["step_seconds"] if number else 0.0
            summary = Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()])
            events.append(Event(wall_time=when, step=step, summary=summary))
        self._put(int(rows[-1]["step"]), "0-scalars", events)

    def image(self, name: str, png: bytes, step: int) -> None:
        """Store a PNG unchanged."""
        picture = Image.open(io.BytesIO(png))
        image = Summary.Image(
            height=picture.height,
            width=picture.width,
            colorspace=COLOURS.get(picture.mode, 3),
            encoded_image_string=png,
        )
        summary = Summary(value=[Summary.Value(tag=name, image=image)])
        self._put(step, f"1-{name}", [Event(wall_time=time.time(), step=step, summary=summary)])

    def close(self) -> None:
        """No resources to release."""

    def _put(self, step: int, what: str, events: Sequence[Any]) -> None:
        key = f"tensorboard/events.out.tfevents.{step:012d}.{what}"
        data = _records([Event(wall_time=events[0].wall_time, file_version=FILE_VERSION), *events])
        retry_through_outage(lambda: self._run.put(key, data), self._run.config.outage_seconds, self._run.location(key))


def _records(events: Iterable[Any]) -> bytes:
    return b"".join(_record(event.SerializeToString()) for event in events)


def _record(data: bytes) -> bytes:
    length = struct.pack("<Q", len(data))
    return length + struct.pack("<I", masked_crc32c(length)) + data + struct.pack("<I", masked_crc32c(data))
