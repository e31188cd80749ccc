"""Lanes of training images as Ray Data streams: planned reads, decoded ahead of the trainer, in exact order."""

import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.data
import torch
from ray.data import DataContext, Dataset

from pipeline.engine.images import decode_batch, to_model
from pipeline.engine.training import MicroBatch
from pipeline.errors import PipelineError
from pipeline.manifests import DatasetManifest
from pipeline.planning import Cursor, TrainPlan, Unit
from pipeline.storage.checkpoints import usable_checkpoint
from pipeline.storage.patience import patiently
from pipeline.storage.shards import read_parquet
from pipeline.storage.store import Store

__all__ = ["LANE_BYTES", "LaneDataset", "LaneStream", "lane_name", "micro_batches"]

TASK_ROWS = 1024
"""Small shards are read several to a task, so that a task is worth its start."""
BLOCK_BYTES = 16 * 2**20
YIELD_BYTES = 2 * 2**20
"""Decoded images that a reader hands over at a time."""
LANE_BYTES = 4 * BLOCK_BYTES
"""Decoded images that a lane may hold ahead of its worker, in the object store."""
MOST_TASKS = 2000
"""A lane of a long run: the driver keeps a little of every task from the start."""
READ_CPUS = 0.25
"""A lane's reader mostly waits: for storage, and for the trainer to take what it decoded."""
PREFETCH_BATCHES = 2
STEP_SECONDS = 0.02


def lane_name(lane: int) -> str:
    """Name of a lane among the trainer's datasets."""
    return f"lane-{lane}"


@dataclass(frozen=True)
class LaneDataset:
    """Called by Ray Train whenever its workers start: the lane from the run's latest checkpoint to its end."""

    run: Store
    dataset: Store
    manifest: DatasetManifest
    plan: TrainPlan
    lane: int
    total_steps: int
    workers: int

    def __call__(self) -> Dataset:
        checkpoint = usable_checkpoint(self.run)
        cursor = Cursor() if checkpoint is None else Cursor(checkpoint.epoch, checkpoint.batches, checkpoint.step)
        units = [asdict(unit) for unit in self.plan.remaining(self.lane, cursor, self.total_steps)]
        rows = self.manifest.split("train")[0].rows
        units_per_task = max(1, TASK_ROWS // rows, -(-len(units) // MOST_TASKS))
        context = DataContext.get_current()
        context.target_max_block_size = BLOCK_BYTES
        context.enable_progress_bars = False
        context.custom_execution_callback_classes = [Unhurried]
        table = pa.Table.from_pylist(units, schema=UNITS)
        blocks = [table.slice(start, units_per_task) for start in range(0, len(units), units_per_task)]
        # Not from_arrow: that starts a task of one CPU a block, and the workers may hold all CPUs there are.
        return ray.data.from_blocks(blocks or [table]).map_batches(
            read_units,
            fn_kwargs={"dataset": self.dataset, "manifest": self.manifest, "plan": self.plan},
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=self._cpus(),
            compute=ray.data.TaskPoolStrategy(1),
        )

    def _cpus(self) -> float:
        """None where the cluster has no room beside the workers: a reader that is never started stops them all."""
        needed = self.workers + self.plan.lanes * READ_CPUS
        return READ_CPUS if ray.cluster_resources().get("CPU", 0) >= needed else 0


class Unhurried:
    """Rests between the steps of a lane's scheduler.

    Ray Data's loop waits only while it has tasks under way. A lane that is read ahead has none, and then the loop runs
    as fast as it can inside the training process: two lanes took half of a worker's core.
    """

    def before_execution_starts(self, executor: Any) -> None:
        pass

    def on_execution_step(self, executor: Any) -> None:
        time.sleep(STEP_SECONDS)

    def after_execution_succeeds(self, executor: Any) -> None:
        pass

    def after_execution_fails(self, executor: Any, error: Exception) -> None:
        pass


UNITS = pa.schema([pa.field(name, pa.int64()) for name in ("epoch", "shard", "first_batch", "skip", "take")])


def read_units(batch: pa.Table, dataset: Store, manifest: DatasetManifest, plan: TrainPlan) -> Iterator[dict[str, Any]]:
    """Units (UNITS) -> rows in the plan's order: image uint8 [H, W, C], sample_id, label (-1: none), epoch, batch.

    Some micro-batches at a time: Ray takes about a millisecond for each thing that it is given.
    """
    shards = manifest.split("train")
    shape = (manifest.image_size, manifest.image_size, manifest.channels)
    together = max(1, YIELD_BYTES // (plan.micro_batch * math.prod(shape)))
    for row in batch.to_pylist():
        unit = Unit(**row)
        table = patiently(
            partial(read_parquet, dataset, shards[unit.shard], ["sample_id", "image", "label"]),
            dataset.config.outage_seconds,
            dataset.location(shards[unit.shard].key),
        )
        table = table.take(pa.array(plan.rows(unit)))
        for number in range(0, unit.take - unit.skip, together):
            part = table.slice(number * plan.micro_batch, together * plan.micro_batch)
            pixels = decode_batch(pc.struct_field(part["image"], "bytes").to_pylist(), shape)
            first = unit.first_batch + unit.skip + number
            yield {
                "image": pixels,
                "sample_id": part["sample_id"].to_numpy(),
                "label": part["label"].fill_null(-1).to_numpy().astype(np.int64),
                "epoch": np.full(len(pixels), unit.epoch),
                "batch": first + np.arange(len(pixels)) // plan.micro_batch,
            }


Rows = dict[str, np.ndarray]


def micro_batches(blocks: Iterable[Rows], size: int) -> Iterator[Rows]:
    """Blocks of any number of rows -> the same rows in the same order, `size` at a time; what is left over is an error.

    Views of the blocks, where Ray's own cutting takes half a millisecond a micro-batch and copies it. Only the rows
    of a micro-batch that lies in two blocks are copied.
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
    """A lane's micro-batches on `device`, each checked to be the one that the plan has next."""

    def __init__(self, iterator: Any, micro_batch: int, device: torch.device) -> None:
        blocks = iterator.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=PREFETCH_BATCHES)
        self._batches = micro_batches(blocks, micro_batch)
        self._device = device

    def next(self) -> tuple[MicroBatch, int]:
        """The next micro-batch and the number of its global batch in its epoch."""
        rows = next(self._batches, None)
        if rows is None:
            raise PipelineError("a lane ended before its run: the feed and the plan disagree")
        positions = np.unique(np.stack([rows["epoch"], rows["batch"]]), axis=1)
        if positions.shape[1] != 1:
            raise PipelineError(f"a micro-batch mixes global batches {positions.T.tolist()}")
        epoch, number = map(int, positions[:, 0])
        labels = torch.from_numpy(rows["label"].copy()).to(self._device)
        batch = MicroBatch(
            x_0=to_model(rows["image"]).to(self._device),
            ids=torch.from_numpy(rows["sample_id"].copy()).to(self._device),
            labels=labels,
            epoch=epoch,
        )
        return batch, number
