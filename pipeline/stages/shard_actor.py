"""The worker's part of generation: the network loaded once, shard after shard made here and committed beside it."""

import pickle
import platform
import time
import uuid
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import torch

from pipeline.assignment import Assignments
from pipeline.engine.generation import Images, ShardGenerator, sample_table
from pipeline.errors import VerificationFailed
from pipeline.manifests import SamplePlan
from pipeline.storage.models import find_model, load_unet
from pipeline.storage.requests import load_requests
from pipeline.storage.samples import commit_shard, marker_key
from pipeline.storage.store import Store

__all__ = ["COMMITTED", "ERROR", "ROW", "THERE", "WORKING", "GenerateShards"]

HEARTBEAT_SECONDS = 30.0
"""A shard may take hours; Ray Data gives up on a job that says nothing for half an hour."""
WORKING, COMMITTED, THERE, ERROR = "working", "committed", "there", "error"
ROW = pa.schema(
    [
        pa.field("shard", pa.int64()),
        pa.field("state", pa.string()),  # THERE: committed by another attempt
        pa.field("rows", pa.int64()),  # images; those finished so far when WORKING
        pa.field("failed", pa.int64()),
        pa.field("started", pa.float64()),  # Unix seconds
        pa.field("seconds", pa.float64()),  # in the network and the sampler
        pa.field("img_s", pa.float64()),
        pa.field("node", pa.string()),
        pa.field("error", pa.binary()),  # pickled exception
    ]
)
Row = dict[str, Any]


class GenerateShards:
    """For `map_batches`: column shard (int64) -> ROW, some while a shard is made and one when it is settled.

    An exception becomes a row, so that it reaches the driver as itself and costs no other shard of the block. At most
    two shards are in memory: the one being made and the one being committed.
    """

    def __init__(self, job: Store, plan: SamplePlan, model_uri: str, use_gpu: bool) -> None:
        self._job, self._plan, self._model_uri = job, plan, model_uri
        self._device = torch.device("cuda" if use_gpu else "cpu")
        if not use_gpu:
            torch.set_num_threads(1)  # a worker is one CPU
        self._side = ThreadPoolExecutor(1, "commit")
        self._assignments: Assignments | None = None
        self._generator: ShardGenerator | None = None

    def __call__(self, block: pa.Table) -> Iterator[pa.Table]:
        pending: Future[Row] | None = None
        for shard in block["shard"].to_pylist():
            following: Future[Row] = Future()
            try:
                settle = yield from self._made(shard)
                following = self._side.submit(settle)
            except Exception as error:
                following.set_result(_error_row(shard, error))
            if pending is not None:
                yield _table(pending.result())
            pending = following
        if pending is not None:
            yield _table(pending.result())

    def _made(self, shard: int) -> Generator[pa.Table, None, Any]:
        """Make a shard; what is left to do for it, as a function that returns its row."""
        if self._job.exists(marker_key(shard)):
            return lambda: {"shard": shard, "state": THERE}
        generator = self._loaded()
        ids = self._assigned().layout.ids(shard)
        started, clock = time.time(), time.monotonic()
        told, steps = clock, generator.steps(ids)
        while True:
            try:
                done = next(steps)
            except StopIteration as end:
                images: Images = end.value
                seconds = time.monotonic() - clock
                return lambda: self._committed(shard, images, started, seconds)
            if time.monotonic() - told >= HEARTBEAT_SECONDS:
                told = time.monotonic()
                yield _table({"shard": shard, "state": WORKING, "rows": done})

    def _committed(self, shard: int, images: Images, started: float, seconds: float) -> Row:
        attempt = uuid.uuid4().hex
        try:
            table = sample_table(self._plan, images)
            marker = commit_shard(self._job, self._plan, shard, table, attempt, images.work.ids)
        except Exception as error:
            return _error_row(shard, error)
        return {
            "shard": shard,
            "state": COMMITTED if marker.attempt == attempt else THERE,
            "rows": marker.rows,
            "failed": marker.failed,
            "started": started,
            "seconds": seconds,
            "img_s": marker.rows / max(seconds, 1e-9),
            "node": platform.node(),
        }

    def _loaded(self) -> ShardGenerator:
        if self._generator is None:
            config = self._job.config
            found = find_model(self._model_uri, self._plan.weights, config)
            if found.digest != self._plan.model_digest:
                raise VerificationFailed(f"{found.uri} is another model now than when {self._job.uri} was planned")
            requests = self._assigned().requests
            self._generator = ShardGenerator(load_unet(found, config), self._plan, self._device, requests)
        return self._generator

    def _assigned(self) -> Assignments:
        if self._assignments is None:
            self._assignments = Assignments(self._plan, load_requests(self._job, self._plan))
        return self._assignments


def _table(row: Row) -> pa.Table:
    return pa.Table.from_pylist([row], schema=ROW)


def _error_row(shard: int, error: Exception) -> Row:
    try:
        data = pickle.dumps(error)
        pickle.loads(data)
    except Exception:  # an exception of somebody's own making
        data = pickle.dumps(RuntimeError(f"{type(error).__name__}: {error}"))
    return {"shard": shard, "state": ERROR, "error": data}
