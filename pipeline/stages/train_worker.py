"""What one Ray Train worker does: its lanes of every global batch, and on rank 0 also checkpoints and grids."""

import hashlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pipeline.config import Config
from pipeline.diffusion.noise import SampleNoise
from pipeline.diffusion.sampler import make_sampler
from pipeline.engine.images import encode_png, grid, to_uint8
from pipeline.engine.training import EMA, StepResult, Trainer
from pipeline.errors import PipelineError
from pipeline.manifests import CheckpointManifest, DatasetManifest, FileEntry
from pipeline.planning import lanes_of_worker
from pipeline.stages.lanes import LaneStream, lane_name
from pipeline.storage.checkpoints import (
    committed_steps,
    read_checkpoint,
    read_tensors,
    remove_old_checkpoints,
    write_checkpoint,
    write_tensors,
)
from pipeline.storage.metrics import TensorBoard, write_metrics
from pipeline.storage.store import Store

__all__ = ["TrainJob", "train_worker"]

REPORT_SECONDS = 1.0
GRID_PIXELS, GRID_GAP = 64, 2
"""About the side of one image on a grid."""


@dataclass(frozen=True)
class TrainJob:
    """Everything a worker needs, small and without clients or credentials."""

    config: Config
    run: Store
    manifest: DatasetManifest
    dataset_digest: str
    progress: Any  # handle of the driver's progress actor


def train_worker(job: TrainJob) -> None:
    """Train from the latest checkpoint to the end of the run."""
    worker = Worker(job)
    worker.resume()
    while worker.step < job.config.train.steps:
        worker.advance()


@dataclass
class Pending:
    """What happened since the last checkpoint, on this rank."""

    losses: list[Tensor] = field(default_factory=list)
    grad_norms: list[Tensor] = field(default_factory=list)
    rows: list[dict[str, float]] = field(default_factory=list)


def _wrap(world_size: int, device: torch.device) -> Callable[[nn.Module], nn.Module]:
    if world_size == 1:
        return lambda model: model
    ids = [device.index] if device.type == "cuda" else None
    return lambda model: DistributedDataParallel(model, device_ids=ids, gradient_as_bucket_view=True)


class Worker:
    """One rank of the run."""

    def __init__(self, job: TrainJob) -> None:
        context = ray.train.get_context()
        self.job, self.settings = job, job.config.train
        self.rank, self.world_size = context.get_world_rank(), context.get_world_size()
        self.lanes = lanes_of_worker(self.rank, self.world_size, self.settings.lanes)
        self.device = ray.train.torch.get_device()
        if self.device.type == "cpu":
            torch.set_num_threads(1)
        self.trainer = Trainer(
            job.config,
            job.manifest.image_size,
            job.manifest.channels,
            self.device,
            _wrap(self.world_size, self.device),
            dist.all_reduce if self.world_size > 1 else lambda tensor: None,
        )
        self.streams = [
            LaneStream(ray.train.get_dataset_shard(lane_name(j)), self.settings.micro_batch, self.device)
            for j in self.lanes
        ]
        self.lane_digests = [""] * self.settings.lanes
        self.metric_parts: tuple[FileEntry, ...] = ()
        self.epoch, self.batches = 0, 0
        self.pending = Pending()
        self.tensorboard = TensorBoard(job.run) if self.rank == 0 else None
        self._reported = 0.0

    @property
    def step(self) -> int:
        return self.trainer.steps_done

    # --- resume ------------------------------------------------------------------------------------------------------

    def resume(self) -> None:
        """Load the checkpoint that rank 0 found to be the latest; without one, start afresh."""
        steps = committed_steps(self.job.run) if self.rank == 0 else []
        found = torch.tensor(steps[-1] if steps else -1, device=self.device)
        if self.world_size > 1:
            dist.broadcast(found, src=0)
        if found < 0:
            return
        manifest = read_checkpoint(self.job.run, int(found))
        self.trainer.load(read_tensors(self.job.run, manifest), manifest.step)
        self.lane_digests = list(manifest.lane_digests)
        self.metric_parts = manifest.metric_parts
        self.epoch, self.batches = manifest.epoch, manifest.batches

    # --- one step ----------------------------------------------------------------------------------------------------

    def advance(self) -> None:
        """One global batch, and whatever is due after it."""
        began = time.perf_counter()
        received = [stream.next() for stream in self.streams]
        waited = time.perf_counter() - began
        self._take_position({(batch.epoch, number) for batch, number in received})
        for lane, (batch, _) in zip(self.lanes, received, strict=True):
            digest = hashlib.sha256(self.lane_digests[lane].encode() + batch.ids.cpu().numpy().tobytes())
            self.lane_digests[lane] = digest.hexdigest()
        result = self.trainer.step([batch for batch, _ in received])
        self._record(result, waited, time.perf_counter() - began)
        if self._due(self.settings.checkpoint_every):
            self._checkpoint()
        if self.rank == 0 and self._due(self.settings.grid_every):
            self._grid()

    def _due(self, every: int) -> bool:
        return self.step % every == 0 or self.step == self.settings.steps

    def _take_position(self, positions: set[tuple[int, int]]) -> None:
        """The feed must continue where the weights stand: same epoch and next batch, or the next epoch's first."""
        expected = {(self.epoch, self.batches), (self.epoch + 1, 0)}
        if len(positions) != 1 or not positions <= expected:
            raise PipelineError(
                f"step {self.step + 1} expects batch {self.batches} of epoch {self.epoch}, and was fed "
                f"{sorted(positions)}"
            )
        self.epoch, number = positions.pop()
        self.batches = number + 1

    def _record(self, result: StepResult, waited: float, seconds: float) -> None:
        self.pending.losses.append(result.loss)
        self.pending.grad_norms.append(result.grad_norm)
        self.pending.rows.append(
            {
                "step": self.step,
                "images": self.step * self.settings.global_batch,
                "epoch": self.epoch,
                "lr": result.lr,
                "step_seconds": seconds,
                "data_wait_seconds": waited,
                "world_size": self.world_size,
            }
        )
        now = time.monotonic()
        if self.rank == 0 and (now - self._reported > REPORT_SECONDS or self.step == self.settings.steps):
            self._reported = now
            self.job.progress.show.remote(self.step, self._finite(float(result.loss)))

    def _finite(self, value: float) -> float:
        """A loss or gradient norm, given back: one that is not finite must reach no checkpoint."""
        if not math.isfinite(value):
            raise PipelineError(
                f"loss or gradient is {value} at step {self.step} (epoch {self.epoch}, batch {self.batches - 1}, "
                f"rank {self.rank}): lower train.lr or train.grad_clip, or look at the data; "
                "the last checkpoint is good"
            )
        return value

    # --- checkpoints and grids ---------------------------------------------------------------------------------------

    def _checkpoint(self) -> None:
        losses, grad_norms = self._mean_losses().tolist(), torch.stack(self.pending.grad_norms).tolist()
        mine = {lane: self.lane_digests[lane] for lane in self.lanes}
        digests = [mine] * self.world_size
        if self.world_size > 1:
            dist.all_gather_object(digests, mine)
        for part in digests:
            for lane, digest in part.items():
                self.lane_digests[lane] = digest
        for value in (*losses, *grad_norms):
            self._finite(value)
        if self.rank == 0:
            self._write(losses, grad_norms)
        self.pending = Pending()

    def _mean_losses(self) -> Tensor:
        """Loss of each pending step over the whole global batch: every rank has as many images."""
        losses = torch.stack(self.pending.losses).double()
        if self.world_size > 1:
            dist.all_reduce(losses)
        mean: Tensor = losses / self.world_size
        return mean

    def _write(self, losses: list[float], grad_norms: list[float]) -> None:
        run, config, manifest = self.job.run, self.job.config, self.job.manifest
        rows = [
            {**row, "loss": loss, "grad_norm": norm}
            for row, loss, norm in zip(self.pending.rows, losses, grad_norms, strict=True)
        ]
        # Tensors first: a checkpoint that another driver committed ends this one before it touches the metrics.
        files = write_tensors(run, self.step, self.trainer.tensors())
        self.metric_parts = (*self.metric_parts, write_metrics(run, rows))
        write_checkpoint(
            run,
            CheckpointManifest(
                step=self.step,
                images=self.step * self.settings.global_batch,
                epoch=self.epoch,
                batches=self.batches,
                world_size=self.world_size,
                dataset_digest=self.job.dataset_digest,
                image_size=manifest.image_size,
                channels=manifest.channels,
                classes=manifest.classes,
                config=config.model_dump(mode="json"),
                config_digest=config.digest(),
                lane_digests=tuple(self.lane_digests),
                metric_parts=self.metric_parts,
                ema=(EMA,),
                files=files,
            ),
        )
        remove_old_checkpoints(run, self.settings.keep_checkpoints)
        if self.tensorboard is not None:
            self.tensorboard.scalars(rows)

    def _grid(self) -> None:
        """Samples of the averaged weights from the same noise every time, by DDIM."""
        settings, manifest = self.settings, self.job.manifest
        ids = torch.arange(settings.grid_size, device=self.device)
        noise = SampleNoise(settings.seed, ids, (manifest.channels, manifest.image_size, manifest.image_size))
        steps = min(settings.grid_sampling_steps, self.job.config.diffusion.num_timesteps)
        sampler = make_sampler(self.job.config.diffusion, "ddim", steps, 0.0, None, True)
        model, classes = self.trainer.model, self.job.config.model.num_classes
        labels = None if classes is None else ids % classes
        model.eval()
        with torch.inference_mode(), self.trainer.ema.applied_to(model):
            *_, last = sampler.run(lambda x, t: model(x, t, labels), noise)
        images = to_uint8(last.x_t)
        columns = math.ceil(math.sqrt(len(images)))
        scale = max(1, GRID_PIXELS // manifest.image_size)
        png = encode_png(grid(images, columns, scale, GRID_GAP))
        self.job.run.put(f"grids/step-{self.step:09d}.png", png)
        if self.tensorboard is not None:
            self.tensorboard.image("samples", png, self.step)
