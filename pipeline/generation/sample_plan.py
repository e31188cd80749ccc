"""What every sample of a job is to be: which shard it is in, its label, its seed, how it is drawn. Pure arithmetic.

Ids 0..N-1 are cut into segments, and each segment into shards from its first id on, so no shard spans two segments.
Nothing is ever listed: shard to ids and id to shard are a bisection over the segments' bounds.
"""

import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, lru_cache
from itertools import islice

import numpy as np
import numpy.typing as npt

from pipeline.config.generation import LabelMix
from pipeline.generation.manifest import SamplePlan
from pipeline.generation.requests import Requests

__all__ = ["Assignment", "Assignments", "Layout", "missing_shards", "mix_counts", "mixed_labels"]

Int64Array = npt.NDArray[np.int64]
GOLDEN = (math.sqrt(5.0) - 1.0) / 2.0
PART = 2**16
"""Shard numbers that are held at a time while a listing comes in."""
STRIDES = 64
"""How far from the golden section a step is looked for."""


@dataclass(frozen=True)
class Layout:
    """bounds: int64 [S + 1], ascending: the first id of each of S segments, and the end."""

    bounds: Int64Array
    shard_size: int

    @cached_property
    def first_shards(self) -> Int64Array:
        """The first shard of each segment, and the number of all: int64 [S + 1]."""
        shards = -(-np.diff(self.bounds) // self.shard_size)
        return np.concatenate([[0], np.cumsum(shards)]).astype(np.int64)

    @property
    def num_shards(self) -> int:
        return int(self.first_shards[-1])

    def ids(self, shard: int) -> range:
        """The sample ids of one shard."""
        segment = int(np.searchsorted(self.first_shards, shard, side="right")) - 1
        start = int(self.bounds[segment]) + (shard - int(self.first_shards[segment])) * self.shard_size
        return range(start, min(start + self.shard_size, int(self.bounds[segment + 1])))

    def shard_of(self, sample_id: int) -> int:
        """The shard that holds a sample."""
        segment = int(np.searchsorted(self.bounds, sample_id, side="right")) - 1
        return int(self.first_shards[segment]) + (sample_id - int(self.bounds[segment])) // self.shard_size

    def batches(self, size: int) -> int:
        """How many batches all shards have, the last one of each padded."""
        rows = np.diff(self.bounds)
        whole, rest = rows // self.shard_size, rows % self.shard_size
        return int((whole * -(-self.shard_size // size) - (-rest // size)).sum())

    def rows(self, shards: Int64Array) -> int:
        """How many samples some shards have together."""
        segment = np.searchsorted(self.first_shards, shards, side="right") - 1
        start = self.bounds[segment] + (shards - self.first_shards[segment]) * self.shard_size
        return int(np.minimum(self.shard_size, self.bounds[segment + 1] - start).sum())


def missing_shards(num_shards: int, committed: Iterable[int] | Int64Array) -> Int64Array:
    """Shards that are not committed, ascending: int64. One byte a shard is held, and eight for each that is missing."""
    done = np.zeros(num_shards, dtype=np.bool_)
    for found in [committed] if isinstance(committed, np.ndarray) else _in_parts(committed):
        done[found[found < num_shards]] = True
    return np.flatnonzero(~done).astype(np.int64, copy=False)


def _in_parts(numbers: Iterable[int]) -> Iterator[Int64Array]:
    rest = iter(numbers)
    while len(part := np.fromiter(islice(rest, PART), np.int64)):
        yield part


def mix_counts(count: int, weights: Sequence[float]) -> list[int]:
    """`count` in proportion to weights, by largest remainder; equal remainders go to the earlier one first."""
    exact = [Fraction(weight) for weight in weights]
    total = sum(exact)
    shares = [count * weight / total for weight in exact]
    counts = [math.floor(share) for share in shares]
    order = sorted(range(len(shares)), key=lambda i: (counts[i] - shares[i], i))
    for i in order[: count - sum(counts)]:
        counts[i] += 1
    return counts


def mixed_labels(ids: range, first: int, count: int, mix: LabelMix) -> Int64Array:
    """Labels of `ids` among the `count` samples from `first` on, which follow the mix exactly: int64 [len(ids)].

    Sample first + k takes place k * step mod count of the classes laid side by side, so every place is taken once, and
    any few consecutive ids already follow the mix.
    """
    step = _stride(count)
    ends = np.cumsum(mix_counts(count, [weight for _, weight in mix]))
    places = np.array([(i - first) * step % count for i in ids], dtype=np.int64)
    return np.array([label for label, _ in mix], np.int64)[np.searchsorted(ends, places, side="right")]


@lru_cache(maxsize=1024)
def _stride(count: int) -> int:
    """A step without common divisor with `count`, whose multiples are spread evenly: of those near the golden section
    the one whose continued fraction step / count has the smallest largest quotient."""
    near = max(1, int(count * GOLDEN))
    candidates = range(max(1, near - STRIDES), near + STRIDES)
    return min((step for step in candidates if math.gcd(step, count) == 1), key=lambda step: _roughness(step, count))


def _roughness(a: int, b: int) -> int:
    largest = 0
    while a:
        largest, a, b = max(largest, b // a), b % a, a
    return largest


@dataclass(frozen=True)
class Assignment:
    """Samples of one shard. labels: int64 [N], None for a network without classes.

    request_ids, extras: of the request of each sample, None for a job without a request table.
    """

    ids: range
    labels: Int64Array | None
    seeds: Int64Array  # [N]
    sampler: str
    steps: int
    guidance: float | None
    request_ids: tuple[str, ...] | None = None
    extras: tuple[str | None, ...] | None = None


@dataclass(frozen=True)
class Assignments:
    """All samples of a plan. requests: the plan's table, which a plan that names one cannot do without."""

    plan: SamplePlan
    requests: Requests | None = None

    def __post_init__(self) -> None:
        if (self.requests is None) != (self.plan.requests is None):
            raise ValueError("a plan of requests needs its table, and no other plan does")

    @cached_property
    def layout(self) -> Layout:
        bounds = np.array([0, *self.plan.ends], np.int64)
        return Layout(bounds if self.requests is None else self.requests.bounds, self.plan.shard_size)

    def of(self, ids: range) -> Assignment:
        """What samples of one shard are to be."""
        if self.requests is not None:
            return self._requested(ids, self.requests)
        plan = self.plan
        seeds = np.full(len(ids), plan.seed, np.int64)
        return Assignment(ids, self._labels(ids), seeds, plan.sampler, plan.steps, plan.guidance)

    def _requested(self, ids: range, requests: Requests) -> Assignment:
        rows = requests.of(ids)
        told = requests.table.take(rows)
        first = told.slice(0, 1).to_pylist()[0]  # sampler, steps and guidance are those of the whole shard
        labels, turns = requests.labels[rows], self._labels(ids)
        return Assignment(
            ids=ids,
            labels=None if turns is None else np.where(labels < 0, turns, labels),
            seeds=requests.seeds[rows],
            sampler=first["sampler"],
            steps=first["steps"],
            guidance=first["guidance"],
            request_ids=tuple(told["request_id"].to_pylist()),
            extras=tuple(told["extra"].to_pylist()),
        )

    def _labels(self, ids: range) -> Int64Array | None:
        plan = self.plan
        if plan.num_classes is None:
            return None
        if plan.labels is None:
            return np.arange(ids.start, ids.stop, dtype=np.int64) % plan.num_classes
        starts = (0, *plan.ends)
        part = bisect_right(plan.ends, ids.start)
        return mixed_labels(ids, starts[part], plan.ends[part] - starts[part], plan.labels)
