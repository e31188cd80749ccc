"""The order of training data, as pure arithmetic. (`pipeline.generation.sample_plan` is its counterpart for samples.)

A run fixes L lanes. Epoch e permutes the shards; lane j owns shards j, j+L, ... of that list, with equal numbers for
all lanes. Rows are permuted inside a shard and cut into micro-batches of fixed size. Global
batch k of the epoch is micro-batch k of every lane, so the sequence of global batches is a function of
(dataset digest, seed, epoch) alone, for any number of workers and restarts.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.errors import ConfigError, DataError

Int64Array = npt.NDArray[np.int64]


def keyed_permutation(count: int, *key: str | int) -> Int64Array:
    """A permutation of 0..count-1 that is a function of `key` only: int64 [count].

    The ranks of SplitMix64 words (Steele et al. 2014) whose state starts at sha256(key). Written out here, because
    NumPy guarantees no stable stream across releases.
    """
    start = int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:8], "little")
    z = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(start)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.argsort(z ^ (z >> np.uint64(31)), kind="stable").astype(np.int64)


@dataclass(frozen=True)
class Cursor:
    """A position in training: `batches` global batches of `epoch` and `step` steps of the run are done."""

    epoch: int = 0
    batches: int = 0
    step: int = 0


@dataclass(frozen=True)
class Unit:
    """One shard in one epoch: micro-batches `skip`..`take`-1 of its permuted rows.

    Micro-batch 0 of the shard, even when skipped, belongs to the epoch's global batch `first_batch`.
    """

    epoch: int
    shard: int
    first_batch: int
    skip: int
    take: int


@dataclass(frozen=True)
class EpochPlan:
    """`lanes[j]` holds lane j's units in order; every lane has `batches` micro-batches."""

    batches: int
    lanes: tuple[tuple[Unit, ...], ...]
    leftover_rows: int


@dataclass(frozen=True)
class TrainPlan:
    """The data order of a run. Raises DataError when an epoch has less than one micro-batch for each lane."""

    dataset_digest: str
    shard_rows: tuple[int, ...]
    lanes: int
    micro_batch: int
    seed: int

    def __post_init__(self) -> None:
        shards, rows = len(self.shard_rows), sum(self.shard_rows)
        if self.epoch(0).batches == 0:
            raise DataError(
                f"{rows} training images in {shards} shards do not give each of {self.lanes} lanes a micro-batch of "
                f"{self.micro_batch}: lower train.lanes or train.micro_batch, or ingest with smaller shards "
                "(ingest.shard_rows)"
            )

    def epoch(self, epoch: int) -> EpochPlan:
        """The plan of one epoch. Rows beyond the last full global batch are left out, different ones each epoch."""
        order = keyed_permutation(len(self.shard_rows), self.dataset_digest, self.seed, "shards", epoch)
        # A shard too short for one micro-batch would make its lane shorter than the others.
        usable = [int(s) for s in order if self.shard_rows[s] >= self.micro_batch]
        each = len(usable) // self.lanes
        owned = [usable[lane : each * self.lanes : self.lanes] for lane in range(self.lanes)]
        batches = min(sum(self.shard_rows[s] // self.micro_batch for s in shards) for shards in owned)
        lanes = tuple(tuple(self._cut(epoch, shards, batches)) for shards in owned)
        return EpochPlan(batches, lanes, sum(self.shard_rows) - batches * self.lanes * self.micro_batch)

    def _cut(self, epoch: int, shards: list[int], batches: int) -> Iterator[Unit]:
        first = 0
        for shard in shards:
            take = min(self.shard_rows[shard] // self.micro_batch, batches - first)
            if take > 0:
                yield Unit(epoch, shard, first, 0, take)
            first += take

    def rows(self, unit: Unit) -> Int64Array:
        """Row numbers inside the unit's shard, in training order: int64 [(take - skip) * micro_batch]."""
        order = keyed_permutation(
            self.shard_rows[unit.shard], self.dataset_digest, self.seed, "rows", unit.epoch, unit.shard
        )
        return order[unit.skip * self.micro_batch : unit.take * self.micro_batch]

    def remaining(self, lane: int, cursor: Cursor, total_steps: int) -> Iterator[Unit]:
        """Units of `lane` from the cursor to the end of the run; the first unit may start in the middle of a shard."""
        left = total_steps - cursor.step
        epoch, done = cursor.epoch, cursor.batches
        while left > 0:
            plan = self.epoch(epoch)
            stop = min(plan.batches, done + left)
            yield from (cut for unit in plan.lanes[lane] if (cut := _between(unit, done, stop)) is not None)
            left -= stop - done
            epoch, done = epoch + 1, 0


def _between(unit: Unit, start: int, stop: int) -> Unit | None:
    """The part of a unit that belongs to global batches start..stop-1 of its epoch."""
    skip = max(unit.skip, start - unit.first_batch)
    take = min(unit.take, stop - unit.first_batch)
    return Unit(unit.epoch, unit.shard, unit.first_batch, skip, take) if skip < take else None


def lanes_of_worker(rank: int, world_size: int, lanes: int) -> list[int]:
    """Lanes rank, rank + W, ... of W workers. Raises ConfigError when there are more workers than lanes.

    Where W does not divide the lanes, some workers have one lane more, and the others wait for those.
    """
    if world_size > lanes:
        raise ConfigError(f"{world_size} workers are more than train.lanes = {lanes}: use at most {lanes}")
    return list(range(rank, lanes, world_size))
