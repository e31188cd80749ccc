"""The training loop of one Ray Train worker: its lanes of every global batch; on rank 0 also checkpoints and grids."""

import hashlib
import logging
import math
import time
from dataclasses import dataclass
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.config.root import Config
from pipeline.diffusion.noise import SampleNoise
from pipeline.diffusion.sampler import make_sampler
from pipeline.errors import PipelineError, Transient
from pipeline.images.convert import grid, to_uint8
from pipeline.images.png import encode_png
from pipeline.ingest.manifest import DatasetManifest
from pipeline.log import collect
from pipeline.models.cpu import compute_on_one_core
from pipeline.storage.store import Store
from pipeline.training.data_plan import lanes_of_worker
from pipeline.training.distributed.checkpointer import Checkpointer, DataPosition, StaleWorkerGroup
from pipeline.training.distributed.coordinator import StopReason
from pipeline.training.distributed.data_loader import LaneStream, lane_name
from pipeline.training.distributed.metrics import MetricsRecorder, StepInfo
from pipeline.training.distributed.stop_decision import StopDecision
from pipeline.training.sanity_checks import check_average_moved, check_finite, check_replicas, weights_digest
from pipeline.training.trainer import Trainer

logger = logging.getLogger("ddpm.training")

GRID_PIXELS, GRID_GAP = 64, 2
"""Target side of one image on a grid, and the gap between images."""


@dataclass(frozen=True)
class WorkerContext:
    """Arguments of a worker: small, without storage clients and credentials."""

    config: Config
    run: Store
    manifest: DatasetManifest
    dataset_digest: str
    lease: str
    coordinator: Any  # handle of a coordinator.Coordinator


def train_worker(context: WorkerContext) -> str:
    """Train from the newest checkpoint to the last step, or until all ranks decide to stop; a StopReason's value.

    An error that a restart would repeat goes to the coordinator, and restarted workers then end at once.
    """
    if ray.get(context.coordinator.failed.remote()) is not None:
        return StopReason.FAILED.value
    collect(context.coordinator.warn.remote, rank=ray.train.get_context().get_world_rank())
    try:
        worker = Worker(context)
        worker.resume()
        return worker.work().value
    except PipelineError as error:
        if isinstance(error, Transient | StaleWorkerGroup):
            logger.warning("%s", error)
        else:
            ray.get(context.coordinator.fail.remote(error))
        raise


class Worker:
    """One rank of the run."""

    def __init__(self, context: WorkerContext) -> None:
        ranks = ray.train.get_context()
        self.context, self.settings = context, context.config.train
        self.rank, self.world_size = ranks.get_world_rank(), ranks.get_world_size()
        self.lanes = lanes_of_worker(self.rank, self.world_size, self.settings.lanes)
        self.device = ray.train.torch.get_device()
        if self.device.type == "cpu":
            compute_on_one_core()
        self.trainer = Trainer(
            context.config,
            context.manifest.image_size,
            context.manifest.channels,
            self.device,
            world_size=self.world_size,
            all_reduce=dist.all_reduce if self.world_size > 1 else lambda tensor: None,
        )
        needs_labels = not context.config.model.null_class
        self.streams = [
            LaneStream(ray.train.get_dataset_shard(lane_name(j)), self.settings.micro_batch, self.device, needs_labels)
            for j in self.lanes
        ]
        self.position = DataPosition(0, 0, ("",) * self.settings.lanes)
        self.metrics = MetricsRecorder(self.settings, self.rank, self.world_size, self.device)
        self.checkpointer = Checkpointer(
            context.config, context.run, context.manifest, context.dataset_digest, context.lease, self.world_size
        )

    @property
    def step(self) -> int:
        return self.trainer.steps_done

    def resume(self) -> None:
        """Load the newest intact checkpoint, chosen by rank 0; without one, start from the initial weights."""
        found = torch.tensor(self.checkpointer.newest_step() if self.rank == 0 else 0, device=self.device)
        if self.world_size > 1:
            dist.broadcast(found, src=0)
        if found >= 0:
            manifest, tensors = self.checkpointer.read(int(found))
            self.trainer.load(tensors, manifest.step)
            self.position = DataPosition(manifest.epoch, manifest.batches, manifest.lane_digests)
        elif self.settings.init_from is not None:
            self.trainer.start_from(self.checkpointer.initial_weights())
        self.averages = self._average_digests()

    def work(self) -> StopReason:
        """Run steps until the last one or a common decision to stop; a checkpoint is committed in either case."""
        stop_decision = StopDecision(self.context.coordinator, self.rank, self.world_size, self.device, self.step)
        with self.checkpointer.uploading(self.rank, self.step):
            while self.step < self.settings.steps:
                self.advance()
                if stop_decision.due(self.step) or self.step == self.settings.steps:
                    self.metrics.check_finite()
                    reason = stop_decision.decide(self.metrics.status())
                    if reason is not None and self.step < self.settings.steps:
                        self._checkpoint()
                        return reason
                self._run_due_work()
        return StopReason.DONE

    # --- one step ----------------------------------------------------------------------------------------------------

    def advance(self) -> None:
        """Train on one global batch."""
        began = time.perf_counter()
        received = [stream.next() for stream in self.streams]
        waited = time.perf_counter() - began
        batches = [batch for batch, _ in received]
        self._take_position({(batch.epoch, number) for batch, number in received})
        self._update_lane_digests([batch.ids for batch in batches])
        result = self.trainer.step(batches)
        seconds = time.perf_counter() - began
        ids = torch.cat([batch.ids for batch in batches])
        info = StepInfo(self.step, self.position.epoch, self.position.batches - 1, ids, waited, seconds)
        self.metrics.add(info, result)

    def _take_position(self, positions: set[tuple[int, int]]) -> None:
        """Check that the data continues where the weights stand: the epoch's next batch, or the next epoch's first."""
        epoch, batches = self.position.epoch, self.position.batches
        if len(positions) != 1 or not positions <= {(epoch, batches), (epoch + 1, 0)}:
            raise PipelineError(
                f"step {self.step + 1} expects batch {batches} of epoch {epoch}, "
                f"and the lanes delivered {sorted(positions)}"
            )
        epoch, number = positions.pop()
        self.position = DataPosition(epoch, number + 1, self.position.lane_digests)

    def _update_lane_digests(self, ids: list[Tensor]) -> None:
        digests = list(self.position.lane_digests)
        for lane, part in zip(self.lanes, ids, strict=True):
            digests[lane] = hashlib.sha256(digests[lane].encode() + part.cpu().numpy().tobytes()).hexdigest()
        self.position = DataPosition(self.position.epoch, self.position.batches, tuple(digests))

    # --- what is due after a step ------------------------------------------------------------------------------------

    def _run_due_work(self) -> None:
        if self._due(self.settings.check_every):
            self._check()
        if self._due(self.settings.checkpoint_every):
            self._checkpoint()
        if self._due(self.settings.grid_every):
            self._grid()

    def _due(self, every: int) -> bool:
        return self.step % every == 0 or self.step == self.settings.steps

    def _check(self) -> None:
        """Find failures that a loss curve hides: diverged replicas, values that are not finite, a constant average."""
        shadows = {name: ema.shadow for name, ema in self.trainer.averages.items()}
        check_finite({"model": self.trainer.replica(), **shadows}, self.step)
        check_replicas(self._gather(weights_digest(self.trainer.replica())), self.step)
        before, self.averages = self.averages, self._average_digests()
        check_average_moved(before, self.averages, self.step)

    def _average_digests(self) -> dict[str, str]:
        return {name: weights_digest(ema.shadow) for name, ema in self.trainer.averages.items()}

    def _gather(self, value: Any) -> list[Any]:
        values = [value] * self.world_size
        if self.world_size > 1:
            dist.all_gather_object(values, value)
        return values

    def _checkpoint(self) -> None:
        """Gather lane digests and metrics of all ranks; rank 0 commits in the background."""
        mine = {lane: self.position.lane_digests[lane] for lane in self.lanes}
        digests = {lane: digest for part in self._gather(mine) for lane, digest in part.items()}
        self.position = DataPosition(
            self.position.epoch, self.position.batches, tuple(digests[j] for j in range(len(digests)))
        )
        rows, tensors = self.metrics.rows(), self.trainer.tensors()
        if self.rank == 0:
            self.checkpointer.commit(self.step, self.position, tensors, rows)

    def _grid(self) -> None:
        """DDIM samples of the averaged weights, from the same noise at every call."""
        if self.rank != 0 and self.settings.sharding == "ddp":
            return  # fsdp needs all ranks to run the network
        settings, manifest = self.settings, self.context.manifest
        ids = torch.arange(settings.grid_size, device=self.device)
        noise = SampleNoise(settings.seed, ids, (manifest.channels, manifest.image_size, manifest.image_size))
        steps = min(settings.grid_sampling_steps, self.context.config.diffusion.num_timesteps)
        sampler = make_sampler(self.context.config.diffusion, "ddim", steps, 0.0, None, True)
        classes = self.context.config.model.num_classes
        labels = None if classes is None else ids % classes
        with torch.inference_mode(), self.trainer.averaged() as model:
            *_, last = sampler.run(lambda x, t: model(x, t, labels), noise)
        images = to_uint8(last.x_t)
        scale = max(1, GRID_PIXELS // manifest.image_size)
        if self.rank == 0:
            self.checkpointer.store_grid(
                self.step, encode_png(grid(images, math.ceil(math.sqrt(len(images))), scale, GRID_GAP))
            )
