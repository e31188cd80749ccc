"""Keeps what a run made: checkpoints, metrics, pictures; committed by rank 0 off the training path."""

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
from pipeline.storage.retry import patiently
from pipeline.storage.store import Store
from pipeline.training.distributed.async_upload import Uploads, snapshot
from pipeline.training.metrics_table import write_metrics
from pipeline.training.trackers.tracker import Tracker, open_trackers

__all__ = ["Checkpointer", "DataPosition", "Restart"]

T = TypeVar("T")
Tensors = Mapping[str, Mapping[str, Tensor]]


class Restart(PipelineError):
    """What is at rest is not what this group of workers began with: the next group begins with it."""


@dataclass(frozen=True)
class DataPosition:
    """Where a run stands: `batches` global batches of `epoch` are done; running sha256 of each lane's sample ids."""

    epoch: int
    batches: int
    lane_digests: tuple[str, ...]


@dataclass
class Checkpointer:
    """Reading is for every rank; `working`, `commit` and `picture` are rank 0's."""

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
        """Step of the newest checkpoint that is whole, -1 without one; later ones that are not are removed.

        Raises Restart when the feed was cut for one of these, so that all start again.
        """
        return self._patiently(self._newest_step, "checkpoints/")

    def _newest_step(self) -> int:
        cut = usable_checkpoint(self.run)  # as every lane of the feed did
        found = load_newest(self.run)
        if cut is None or found is None:
            return -1
        self._found = found
        step = found[0].step
        if committed_steps(self.run)[-1] != step:
            rewind(self.run, step)
        if cut.step != step:
            raise Restart(f"{self.run.uri}: the checkpoint of step {cut.step} is damaged; going on from step {step}")
        return step

    def read(self, step: int) -> tuple[CheckpointManifest, dict[str, dict[str, Tensor]]]:
        """A checkpoint, verified."""
        found, self._found = self._found, None
        if found is not None and found[0].step == step:
            self.metric_parts = found[0].metric_parts
            return found
        manifest = self._patiently(lambda: read_checkpoint(self.run, step), f"checkpoint {step}")
        self.metric_parts = manifest.metric_parts
        return manifest, self._patiently(lambda: read_tensors(self.run, manifest), f"checkpoint {step}")

    def initial_weights(self) -> dict[str, Tensor]:
        """Of the model that a warm start takes. Raises DataError when they are not those that the run pinned."""
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
    def working(self, rank: int, step: int) -> Iterator[None]:
        """On rank 0: says who begins where, and does not end before everything that was handed over is stored."""
        if rank != 0:
            yield
            return
        self._say_who(step)
        self.trackers = open_trackers(self.run, self.config.train.trackers)
        with Uploads() as self.uploads:
            yield
        for tracker in self.trackers:
            tracker.close()

    def _say_who(self, step: int) -> None:
        attempt = {
            "step": step,
            "world_size": self.world_size,
            "node": ray.util.get_node_ip_address(),
            "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        key = f"attempts/step-{step:09d}-{uuid.uuid4().hex[:8]}.json"
        self._patiently(lambda: self.run.put(key, json.dumps(attempt).encode()), key)

    def commit(self, step: int, place: DataPosition, tensors: Tensors, rows: list[dict[str, Any]]) -> None:
        """Copy what is to be stored and go on; an error of the upload before ends the run here."""
        assert self.uploads is not None, "only inside `working`"
        self.uploads.wait()  # so that there is one copy at most
        copy = snapshot(tensors)
        self._submit(lambda: self._store(step, place, copy, rows))

    def _store(self, step: int, place: DataPosition, tensors: Tensors, rows: list[dict[str, Any]]) -> None:
        """The lease, then the tensors, the metrics and the manifest. Raises Restart when the step is committed.

        That was a worker of this driver that everybody took for dead: going on from its checkpoint is right.
        """
        where = f"checkpoint {step}"
        if not self._patiently(lambda: held_by(self.run, LEASE, self.lease), LEASE):
            raise PipelineError(f"{self.run.uri} was taken over by another driver: this one ends without a checkpoint")
        try:
            self._write(step, place, tensors, rows)
        except AlreadyExists as error:
            raise Restart(f"{error}; going on from it") from error
        self._patiently(self._retire, where)
        for tracker in self.trackers:
            tracker.scalars(rows)

    def _write(self, step: int, place: DataPosition, tensors: Tensors, rows: list[dict[str, Any]]) -> None:
        where = f"checkpoint {step}"
        files = self._patiently(lambda: write_tensors(self.run, step, tensors), where)
        if rows:
            part = self._patiently(lambda: write_metrics(self.run, rows), where)
            self.metric_parts = (*self.metric_parts, part)
        manifest = CheckpointManifest(
            step=step,
            images=step * self.config.train.global_batch,
            epoch=place.epoch,
            batches=place.batches,
            world_size=self.world_size,
            dataset_digest=self.dataset_digest,
            image_size=self.dataset.image_size,
            channels=self.dataset.channels,
            classes=self.dataset.classes,
            config=self.config.model_dump(mode="json"),
            config_digest=self.config.digest(),
            lane_digests=place.lane_digests,
            metric_parts=self.metric_parts,
            ema=("ema", *self.config.train.more_ema),
            loss=sum(row["loss"] for row in rows) / len(rows) if rows else None,
            files=files,
        )
        self._patiently(lambda: write_checkpoint(self.run, manifest), where)

    def _retire(self) -> None:
        settings = self.config.train
        remove_old_checkpoints(self.run, settings.keep_checkpoints, settings.keep_every, settings.keep_best)

    def picture(self, step: int, png: bytes) -> None:
        """A grid of samples."""
        self._submit(lambda: self._store_picture(step, png))

    def _store_picture(self, step: int, png: bytes) -> None:
        key = f"grids/step-{step:09d}.png"
        self._patiently(lambda: self.run.put(key, png), key)
        for tracker in self.trackers:
            tracker.image("samples", png, step)

    def _submit(self, job: Callable[[], None]) -> None:
        assert self.uploads is not None, "only inside `working`"
        self.uploads.submit(job)

    def _patiently(self, action: Callable[[], T], what: str) -> T:
        return patiently(action, self.config.storage.outage_seconds, self.run.location(what))
