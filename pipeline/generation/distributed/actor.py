"""Generation actor: loads the network once, then samples shards while a thread commits the previous shard."""

import os
import pickle
import platform
import time
import uuid
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property, partial
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from pipeline.errors import VerificationFailed
from pipeline.generation.commit import commit_shard, marker_key
from pipeline.generation.generator import GeneratedImages, ShardGenerator, sample_table
from pipeline.generation.manifest import SamplePlan
from pipeline.generation.request_table import load_requests
from pipeline.generation.sample_plan import PlannedSamples
from pipeline.generation.shard_metrics import SHARD_METRICS
from pipeline.images.png import encode_png
from pipeline.log import collect
from pipeline.model_store.load_model import find_model, load_unet
from pipeline.models.cpu import compute_on_one_core
from pipeline.storage.store import Store

HEARTBEAT_SECONDS = 30.0
"""Interval of progress rows. A shard may take hours, and Ray Data aborts after half an hour without output."""
MEASURED_BATCHES = 2
"""Batches timed after one warm-up batch. The first actor's speed gives the forecast."""
WORKING, MEASURED, ERROR = "working", "measured", "error"
COMMITTED = "committed"
ALREADY_COMMITTED = "already committed"
"""By another attempt."""
ROW = pa.schema(
    [
        *(field.with_nullable(True) for field in SHARD_METRICS),  # rows of WORKING: images finished so far
        pa.field("state", pa.string()),
        pa.field("bytes", pa.int64()),  # of the file; MEASURED: of the images as PNG
        pa.field("actor", pa.string()),  # node:process
        pa.field("error", pa.binary()),  # pickled exception
        pa.field("warnings", pa.binary()),  # pickled list of log.Entry since the row before
    ]
)
Row = dict[str, Any]


class GenerateShards:
    """For `map_batches`: column shard (int64) -> ROW: progress rows during a shard, one row when it is finished.

    An exception becomes a row: the driver gets the original type, and the other shards of the block go on. At most two
    shards are in memory: one being sampled and one being committed.
    """

    def __init__(self, folder: Store, plan: SamplePlan, model_uri: str, use_gpu: bool) -> None:
        self._folder, self._plan, self._model_uri = folder, plan, model_uri
        self._device = torch.device("cuda" if use_gpu else "cpu")
        if not use_gpu:
            compute_on_one_core()
        self._warnings = collect(actor=f"{platform.node()}:{os.getpid()}")
        self._side = ThreadPoolExecutor(1, "commit")
        self._batches: list[tuple[float, int]] = []  # end and images of the first batches

    def __call__(self, block: pa.Table) -> Iterator[pa.Table]:
        pending: Future[Row] | None = None
        for shard in block["shard"].to_pylist():
            following: Future[Row] = Future()
            try:
                commit = yield from self._sampled(shard)
                following = self._side.submit(commit)
            except Exception as error:
                following.set_result(_error_row(shard, error))
            if pending is not None:
                yield self._table(pending.result())
            pending = following
        if pending is not None:
            yield self._table(pending.result())

    def _sampled(self, shard: int) -> Generator[pa.Table, None, Any]:
        """Sample a shard. Returns a function that commits it and returns its row."""
        if self._folder.exists(marker_key(shard)):
            return lambda: {"shard": shard, "state": ALREADY_COMMITTED}
        generator, ids = self._generator, self._planned.layout.ids(shard)
        started, clock = time.time(), time.monotonic()
        last_report = clock
        for step in generator.steps(ids):
            if isinstance(step, GeneratedImages):
                return partial(self._committed, shard, step, started, time.monotonic() - clock)
            if step.pixels is not None and len(self._batches) <= MEASURED_BATCHES:
                self._batches.append((time.monotonic(), len(step.pixels)))
                if len(self._batches) > MEASURED_BATCHES:
                    yield self._table({"shard": shard, "state": MEASURED, **self._measured(step.pixels)})
            if time.monotonic() - last_report >= HEARTBEAT_SECONDS:
                last_report = time.monotonic()
                yield self._table({"shard": shard, "state": WORKING, "rows": step.done})

    def _measured(self, pixels: NDArray[np.uint8]) -> Row:
        """Speed of the batches after this actor's first one, and PNG size of the last one, `pixels`."""
        (began, _), *batches = self._batches
        images = sum(count for _, count in batches)
        size = sum(len(encode_png(image)) for image in pixels) / len(pixels)
        return {"rows": images, "seconds": batches[-1][0] - began, "bytes": round(size * images)}

    def _committed(self, shard: int, images: GeneratedImages, started: float, seconds: float) -> Row:
        attempt = uuid.uuid4().hex
        try:
            table = sample_table(self._plan, images)
            marker = commit_shard(self._folder, self._plan, shard, table, attempt, images.specs.ids)
        except Exception as error:
            return _error_row(shard, error)
        return {
            "shard": shard,
            "state": COMMITTED if marker.attempt == attempt else ALREADY_COMMITTED,
            "rows": marker.rows,
            "failed": marker.failed,
            "started": started,
            "seconds": seconds,
            "img_s": marker.rows / max(seconds, 1e-9),
            "bytes": marker.bytes,
            "node": platform.node(),
            "actor": f"{platform.node()}:{os.getpid()}",
            **_levels(images.pixels[images.finite]),
        }

    @cached_property
    def _generator(self) -> ShardGenerator:
        config = self._folder.config
        found = find_model(self._model_uri, self._plan.weights, config, self._plan.null_label)
        if found.digest != self._plan.model_digest:
            raise VerificationFailed(f"{found.uri} is another model now than when {self._folder.uri} was planned")
        return ShardGenerator(load_unet(found, config), self._plan, self._device, self._planned.requests)

    @cached_property
    def _planned(self) -> PlannedSamples:
        return PlannedSamples(self._plan, load_requests(self._folder, self._plan))

    def _table(self, row: Row) -> pa.Table:
        """A row for the driver, with the warnings that this actor logged since the previous row."""
        warnings = self._warnings.take()
        return pa.Table.from_pylist([{**row, "warnings": pickle.dumps(warnings) if warnings else None}], schema=ROW)


def _levels(pixels: NDArray[np.uint8]) -> Row:
    """Columns pixel_mean, pixel_std and saturated_share; empty without images."""
    if not pixels.size:
        return {}
    counts = np.zeros(256, np.int64)
    for image in pixels:  # image by image: bincount converts its input to int64
        counts += np.bincount(image.reshape(-1), minlength=256)
    levels, total = np.arange(256), pixels.size
    mean = float((counts * levels).sum() / total)
    std = float(np.sqrt((counts * (levels - mean) ** 2).sum() / total))
    return {"pixel_mean": mean, "pixel_std": std, "saturated_share": float((counts[0] + counts[255]) / total)}


def _error_row(shard: int, error: Exception) -> Row:
    try:
        data = pickle.dumps(error)
        pickle.loads(data)
    except Exception:  # an exception class that cannot be pickled
        data = pickle.dumps(RuntimeError(f"{type(error).__name__}: {error}"))
    return {"shard": shard, "state": ERROR, "error": data}
