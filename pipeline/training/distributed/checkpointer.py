"""Checkpoints, metrics and sample grids of a run: read by every rank, committed by rank 0 in the background."""

import json
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import ray
from torch import Tensor

from pipeline.config.root import Config
from pipeline.errors import AlreadyExists, DataError, PipelineError
from pipeline.ingest.manifest import DatasetManifest
from pipeline.model_store.checkpoint import (
    RUN,
    committed_steps,
    load_newest,
    read_checkpoint,
    read_tensors,
    remove_old_checkpoints,
    rewind,
    usable_checkpoint,
    write_checkpoint,
    write_tensors,
)
from pipeline.model_store.load_model import find_model, load_unet
from pipeline.model_store.manifest import CheckpointManifest, RunPlan
from pipeline.storage.documents import read_document
from pipeline.storage.lease import LEASE, held_by
from pipeline.storage.retry import retry_through_outage
from pipeline.storage.store import Store
from pipeline.training.distributed.async_upload import Uploads, snapshot
from pipeline.training.metrics_table import write_metrics
from pipeline.training.trackers.tracker import Tracker, open_trackers

T = TypeVar("T")
Tensors = Mapping[str, Mapping[str, Tensor]]


class StaleWorkerGroup(PipelineError):
    """The newest checkpoint is another than the one this worker group started from; the next group starts from it."""


@dataclass(frozen=True)
class DataPosition:
    """Position in the data: `batches` global batches of `epoch` are done. lane_digests: a running sha256 of each lane's
    sample ids."""

    epoch: int
    batches: int
    lane_digests: tuple[str, ...]


@dataclass
class Checkpointer:
    """Every rank may read; only rank 0 calls `commit` and `store_grid`, inside `uploading`."""

    config: Config
    run: Store
    dataset: DatasetManifest
    dataset_digest: str
    lease: str
    world_size: int
    metric_parts: tuple[Any, ...] = ()
    uploads: Uploads | None = None
    trackers: Sequence[Tracker] = ()
    _found: tuple[CheckpointManifest, dict[str, dict[str, Tensor]]] | None = None

    def newest_step(self) -> int:
        """Step of the newest intact checkpoint, -1 without one; later, damaged checkpoints are removed.

        Raises StaleWorkerGroup when the lanes were planned from one of the damaged checkpoints.
        """
        return self._retried(self._newest_step, "checkpoints/")

    def _newest_step(self) -> int:
        planned = usable_checkpoint(self.run)  # the lanes start at this one, chosen without reading tensors
        found = load_newest(self.run)
        if planned is None or found is None:
            return -1
        self._found = found
        step = found[0].step
        if committed_steps(self.run)[-1] != step:
            rewind(self.run, step)
        if planned.step != step:
            raise StaleWorkerGroup(
                f"{self.run.uri}: the checkpoint of step {planned.step} is damaged; continuing from step {step}"
            )
        return step

    def read(self, step: int) -> tuple[CheckpointManifest, dict[str, dict[str, Tensor]]]:
        """Manifest and tensors of a checkpoint, verified by hash."""
        found, self._found = self._found, None
        if found is not None and found[0].step == step:
            self.metric_parts = found[0].metric_parts
            return found
        manifest = self._retried(lambda: read_checkpoint(self.run, step), f"checkpoint {step}")
        self.metric_parts = manifest.metric_parts
        return manifest, self._retried(lambda: read_tensors(self.run, manifest), f"checkpoint {step}")

    def initial_weights(self) -> dict[str, Tensor]:
        """Weights of `train.init_from`. Raises DataError when the run recorded another hash of them at its start."""
        settings = self.config.train
        assert settings.init_from is not None
        found = find_model(settings.init_from, settings.init_weights, self.config.storage)
        pinned = read_document(self.run, RUN, RunPlan).init_digest
        if found.sha256 != pinned:
            raise DataError(
                f"train.init_from {settings.init_from} has other weights now than when {self.run.uri} was started: "
                "name a checkpoint, or start another run"
            )
        return dict(load_unet(found, self.config.storage).state_dict())

    @contextmanager
    def uploading(self, rank: int, step: int) -> Iterator[None]:
        """On rank 0: records this attempt, opens trackers, and at the end waits until all uploads are stored."""
        if rank != 0:
            yield
            return
        self._record_attempt(step)
        self.trackers = open_trackers(self.run, self.config.train.trackers)
        with Uploads() as self.uploads:
            yield
        for tracker in self.trackers:
            tracker.close()

    def _record_attempt(self, step: int) -> None:
        attempt = {
            "step": step,
            "world_size": self.world_size,
            "node": ray.util.get_node_ip_address(),
            "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        key = f"attempts/step-{step:09d}-{uuid.uuid4().hex[:8]}.json"
        self._retried(lambda: self.run.put(key, json.dumps(attempt).encode()), key)

    def commit(self, step: int, position: DataPosition, tensors: Tensors, rows: list[dict[str, Any]]) -> None:
        """Copy the tensors and upload the copy in the background. Raises the error of the previous upload."""
        assert self.uploads is not None, "only inside `uploading`"
        self.uploads.wait()  # at most one copy in memory
        copy = snapshot(tensors)
        self._submit(lambda: self._store(step, position, copy, rows))

    def _store(self, step: int, position: DataPosition, tensors: Tensors, rows: list[dict[str, Any]]) -> None:
        """Check the lease, then write tensors, metrics and, last, the manifest.

        Raises StaleWorkerGroup when the step is committed already: by a worker of this driver that Ray had declared
        dead, so its checkpoint is valid.
        """
        where = f"checkpoint {step}"
        if not self._retried(lambda: held_by(self.run, LEASE, self.lease), LEASE):
            raise PipelineError(f"{self.run.uri} was taken over by another driver: this one ends without a checkpoint")
        try:
            self._write(step, position, tensors, rows)
        except AlreadyExists as error:
            raise StaleWorkerGroup(f"{error}; continuing from that checkpoint") from error
        self._retried(self._remove_old, where)
        for tracker in self.trackers:
            tracker.scalars(rows)

    def _write(self, step: int, position: DataPosition, tensors: Tensors, rows: list[dict[str, Any]]) -> None:
        where = f"checkpoint {step}"
        files = self._retried(lambda: write_tensors(self.run, step, tensors), where)
        if rows:
            part = self._retried(lambda: write_metrics(self.run, rows), where)
            self.metric_parts = (*self.metric_parts, part)
        manifest = CheckpointManifest(
            step=step,
            images=step * self.config.train.global_batch,
            epoch=position.epoch,
            batches=position.batches,
            world_size=self.world_size,
            dataset_digest=self.dataset_digest,
            image_size=self.dataset.image_size,
            channels=self.dataset.channels,
            classes=self.dataset.classes,
            config=self.config.model_dump(mode="json"),
            config_digest=self.config.digest(),
            lane_digests=position.lane_digests,
            metric_parts=self.metric_parts,
            ema=("ema", *self.config.train.more_ema),
            loss=sum(row["loss"] for row in rows) / len(rows) if rows else None,
            files=files,
        )
        self._retried(lambda: write_checkpoint(self.run, manifest), where)

    def _remove_old(self) -> None:
        settings = self.config.train
        remove_old_checkpoints(self.run, settings.keep_checkpoints, settings.keep_every, settings.keep_best)

    def store_grid(self, step: int, png: bytes) -> None:
        """Upload a grid of samples in the background."""
        self._submit(lambda: self._store_grid(step, png))

    def _store_grid(self, step: int, png: bytes) -> None:
        key = f"grids/step-{step:09d}.png"
        self._retried(lambda: self.run.put(key, png), key)
        for tracker in self.trackers:
            tracker.image("samples", png, step)

    def _submit(self, task: Callable[[], None]) -> None:
        assert self.uploads is not None, "only inside `uploading`"
        self.uploads.submit(task)

    def _retried(self, action: Callable[[], T], what: str) -> T:
        return retry_through_outage(action, self.config.storage.outage_seconds, self.run.location(what))
