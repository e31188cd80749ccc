"""Sample id -> shard, label, seed, sampler settings. Pure arithmetic.

Ids 0..N-1 are cut into segments, and each segment into shards, so no shard spans two segments. Nothing is listed:
shard to ids and id to shard are bisections over the segments' bounds.
"""

import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from pipeline.config.generation import LabelMix
from pipeline.generation.manifest import SamplePlan
from pipeline.generation.requests import Int64Array, Requests

GOLDEN = (math.sqrt(5.0) - 1.0) / 2.0
STRIDES = 64
"""Half-width of the search for a step near the golden section."""


@dataclass(frozen=True)
class ShardLayout:
    """Shards of S segments. bounds: int64 [S + 1], ascending: the first id of each segment, and the end."""

    bounds: Int64Array
    shard_size: int

    @cached_property
    def first_shards(self) -> Int64Array:
        """The first shard of each segment, and the number of shards: int64 [S + 1]."""
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
        """The number of batches of all shards, padded ones included."""
        rows = np.diff(self.bounds)
        whole, rest = rows // self.shard_size, rows % self.shard_size
        return int((whole * -(-self.shard_size // size) - (-rest // size)).sum())

    def rows(self, shards: Int64Array) -> int:
        """The number of samples in the given shards."""
        segment = np.searchsorted(self.first_shards, shards, side="right") - 1
        start = self.bounds[segment] + (shards - self.first_shards[segment]) * self.shard_size
        return int(np.minimum(self.shard_size, self.bounds[segment + 1] - start).sum())


def missing_shards(num_shards: int, committed: Iterable[int]) -> Int64Array:
    """Shards without a marker, ascending: int64. Takes one byte per shard and eight per missing shard."""
    missing = bytearray(b"\x01") * num_shards
    for shard in committed:
        if shard < num_shards:
            missing[shard] = False
    return np.flatnonzero(np.frombuffer(missing, np.bool_)).astype(np.int64, copy=False)


def mix_counts(count: int, weights: Sequence[float]) -> list[int]:
    """Split `count` in proportion to weights by largest remainder; of equal remainders the earlier class wins."""
    exact = [Fraction(weight) for weight in weights]
    total = sum(exact)
    shares = [count * weight / total for weight in exact]
    counts = [math.floor(share) for share in shares]
    order = sorted(range(len(shares)), key=lambda i: (counts[i] - shares[i], i))
    for i in order[: count - sum(counts)]:
        counts[i] += 1
    return counts


def mixed_labels(ids: range, first: int, count: int, mix: LabelMix) -> Int64Array:
    """Labels of `ids`: int64 [len(ids)]. The `count` samples from `first` on follow the mix exactly.

    The classes are laid side by side; sample first + k takes place k * step mod count. So every place is used once, and
    even a few consecutive ids follow the mix.
    """
    step = _stride(count)
    ends = np.cumsum(mix_counts(count, [weight for _, weight in mix]))
    places = np.array([(i - first) * step % count for i in ids], dtype=np.int64)
    return np.array([label for label, _ in mix], np.int64)[np.searchsorted(ends, places, side="right")]


@lru_cache(maxsize=1024)
def _stride(count: int) -> int:
    """A step coprime to `count` whose multiples spread evenly: near the golden section, the step whose continued
    fraction step / count has the smallest maximum quotient."""
    near = max(1, int(count * GOLDEN))
    candidates = range(max(1, near - STRIDES), near + STRIDES)
    return min((step for step in candidates if math.gcd(step, count) == 1), key=lambda step: _roughness(step, count))


def _roughness(a: int, b: int) -> int:
    """The largest quotient of the continued fraction a / b."""
    largest = 0
    while a:
        largest, a, b = max(largest, b // a), b % a, a
    return largest


@dataclass(frozen=True)
class SampleSpecs:
    """How to make some samples of one shard. labels: int64 [N], None for a network without classes.

    request_ids, extras: of each sample's request, None without a request table.
    """

    ids: range
    labels: Int64Array | None
    seeds: Int64Array  # [N]
    sampler: str
    steps: int
    guidance: float | None
    request_ids: tuple[str, ...] | None = None
    extras: tuple[str | None, ...] | None = None

    def columns(self, plan: SamplePlan) -> dict[str, list[Any]]:
        """The columns of the stored rows (SAMPLES or REQUESTED_SAMPLES) that `plan` decides, besides the ids."""
        count = len(self.ids)
        same = {
            "model_digest": plan.model_digest,
            "ema": plan.weights,
            "sampler": self.sampler,
            "steps": self.steps,
            "eta": plan.eta if self.sampler == "ddim" else 0.0,
            "guidance": self.guidance,
            "width": plan.image_size,
            "height": plan.image_size,
        }
        columns: dict[str, list[Any]] = {name: [value] * count for name, value in same.items()}
        columns["label"] = [None] * count if self.labels is None else self.labels.tolist()
        columns["seed"] = self.seeds.tolist()
        if self.request_ids is not None:
            columns |= {"request_id": list(self.request_ids), "extra": list(self.extras or ())}
        return columns


@dataclass(frozen=True)
class PlannedSamples:
    """All samples of a plan. requests: the table that plan.requests names, None if it names none."""

    plan: SamplePlan
    requests: Requests | None = None

    def __post_init__(self) -> None:
        if (self.requests is None) != (self.plan.requests is None):
            raise ValueError("give the request table exactly when the plan names one")

    @cached_property
    def layout(self) -> ShardLayout:
        bounds = np.array([0, *self.plan.ends], np.int64)
        return ShardLayout(bounds if self.requests is None else self.requests.bounds, self.plan.shard_size)

    def specs(self, ids: range) -> SampleSpecs:
        """How to make samples `ids`, all of one shard."""
        if self.requests is not None:
            return self._requested(ids, self.requests)
        plan = self.plan
        seeds = np.full(len(ids), plan.seed, np.int64)
        return SampleSpecs(ids, self._labels(ids), seeds, plan.sampler, plan.steps, plan.guidance)

    def _requested(self, ids: range, requests: Requests) -> SampleSpecs:
        rows = requests.indices(ids)
        table = requests.table.take(rows)
        first = table.slice(0, 1).to_pylist()[0]  # sampler, steps and guidance are equal within a shard
        labels, defaults = requests.labels[rows], self._labels(ids)
        return SampleSpecs(
            ids=ids,
            labels=None if defaults is None else np.where(labels < 0, defaults, labels),
            seeds=requests.seeds[rows],
            sampler=first["sampler"],
            steps=first["steps"],
            guidance=first["guidance"],
            request_ids=tuple(table["request_id"].to_pylist()),
            extras=tuple(table["extra"].to_pylist()),
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
