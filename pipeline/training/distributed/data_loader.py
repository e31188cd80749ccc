"""Lanes of training images as Ray Data streams, in the exact order of the plan, decoded ahead of the trainer."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data
import torch
from ray.data import DataContext, Dataset

from pipeline.errors import DataError, PipelineError
from pipeline.images.convert import to_model
from pipeline.ingest.manifest import DatasetManifest
from pipeline.model_store.checkpoint import usable_checkpoint
from pipeline.storage.store import Store
from pipeline.training.data_plan import Cursor, TrainPlan
from pipeline.training.distributed.elastic import remaining_capacity
from pipeline.training.distributed.scheduler_throttle import SchedulerThrottle
from pipeline.training.distributed.shard_reader import UNITS, batches_together, read_units
from pipeline.training.inputs import MicroBatch

TASK_ROWS = 1024
"""One task reads several small shards, up to so many rows, so that the cost of starting a task is small."""
BLOCK_BYTES = 16 * 2**20
"""Ray splits a block of more than 1.5 times its target size."""
LANE_BYTES = 4 * BLOCK_BYTES
"""Decoded images of a lane that may wait for the worker in the object store."""
MOST_TASKS = 2000
"""Limit for a lane of a long run: the driver keeps some state for every task from the start."""
READ_CPUS = 0.25
"""CPUs of a lane's reader, which mostly waits for storage or for the trainer."""
PREFETCH_BATCHES = 2


def lane_name(lane: int) -> str:
    """Name of a lane among the trainer's datasets."""
    return f"lane-{lane}"


@dataclass(frozen=True)
class LaneDataset:
    """Ray Train calls this at each start of workers: the lane from the run's newest checkpoint to the last step."""

    run: Store
    dataset: Store
    manifest: DatasetManifest
    plan: TrainPlan
    lane: int
    total_steps: int
    workers: int
    coordinator: Any = None
    """Handle of a coordinator.Coordinator that takes the readers' warnings."""

    def __call__(self) -> Dataset:
        checkpoint = usable_checkpoint(self.run)
        cursor = Cursor() if checkpoint is None else Cursor(checkpoint.epoch, checkpoint.batches, checkpoint.step)
        units = [asdict(unit) for unit in self.plan.remaining(self.lane, cursor, self.total_steps)]
        rows = self.manifest.split("train")[0].rows
        units_per_task = max(1, TASK_ROWS // rows, -(-len(units) // MOST_TASKS))
        context = DataContext.get_current()
        context.target_max_block_size = self._block_bytes()
        context.enable_progress_bars = False
        context.custom_execution_callback_classes = [SchedulerThrottle]
        table = pa.Table.from_pylist(units, schema=UNITS)
        blocks = [table.slice(start, units_per_task) for start in range(0, len(units), units_per_task)]
        # Not from_arrow: it starts a task of one CPU for each block, and the workers may hold all CPUs.
        return ray.data.from_blocks(blocks or [table]).map_batches(
            read_units,
            fn_kwargs={
                "dataset": self.dataset,
                "manifest": self.manifest,
                "plan": self.plan,
                "coordinator": self.coordinator,
            },
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=self._cpus(),
            compute=ray.data.TaskPoolStrategy(1),
        )

    def _block_bytes(self) -> int:
        """Target size with which each yield of a reader becomes one block, as merging and splitting cost Ray a copy."""
        images = batches_together(self.manifest, self.plan.micro_batch) * self.plan.micro_batch
        yielded = images * math.prod(self.manifest.shape)
        return min(BLOCK_BYTES, yielded * 3 // 4)  # below the yielded size, above two thirds of it

    def _cpus(self) -> float:
        """0 where the workers leave no CPU free: a reader that Ray cannot place would stop all workers."""
        needed = self.workers + self.plan.lanes * READ_CPUS
        return READ_CPUS if sum(remaining_capacity("CPU")) >= needed else 0


Rows = dict[str, np.ndarray]


def rebatch(blocks: Iterable[Rows], size: int) -> Iterator[Rows]:
    """Blocks of any number of rows -> the same rows in the same order, `size` at a time.

    Yields views of the blocks and copies only a micro-batch that spans two blocks; Ray's own rebatching copies each
    one and takes half a millisecond. Raises PipelineError when rows are left over at the end.
    """
    rest: Rows = {}
    for block in blocks:
        rows = {name: np.concatenate([rest[name], column]) for name, column in block.items()} if rest else block
        count = len(next(iter(rows.values())))
        whole = count - count % size
        for start in range(0, whole, size):
            yield {name: column[start : start + size] for name, column in rows.items()}
        rest = {name: column[whole:] for name, column in rows.items()} if whole < count else {}
    if rest:
        raise PipelineError(f"a lane ended inside a micro-batch of {size} images")


class LaneStream:
    """A lane's micro-batches on `device`. needs_labels: the network has no class for an image without a label."""

    def __init__(self, iterator: Any, micro_batch: int, device: torch.device, needs_labels: bool = False) -> None:
        blocks = iterator.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=PREFETCH_BATCHES)
        self._batches = rebatch(blocks, micro_batch)
        self._device = device
        self._needs_labels = needs_labels

    def next(self) -> tuple[MicroBatch, int]:
        """The next micro-batch, and its global batch's number in the epoch.

        Raises PipelineError at the lane's end, DataError for an image without the label that it needs.
        """
        rows = next(self._batches, None)
        if rows is None:
            raise PipelineError("a lane ended before its run: the feed and the plan disagree")
        positions = set(zip(rows["epoch"].tolist(), rows["batch"].tolist(), strict=True))
        if len(positions) != 1:
            raise PipelineError(f"a micro-batch mixes global batches {sorted(positions)}")
        epoch, number = positions.pop()
        if self._needs_labels and (rows["label"] < 0).any():
            bare = rows["sample_id"][rows["label"] < 0][0]
            raise DataError(f"image {bare} has no label: ingest without it, or set model.null_class true")
        labels = torch.from_numpy(rows["label"].copy()).to(self._device)
        batch = MicroBatch(
            x_0=to_model(rows["image"]).to(self._device),
            ids=torch.from_numpy(rows["sample_id"].copy()).to(self._device),
            labels=labels,
            epoch=epoch,
        )
        return batch, number
