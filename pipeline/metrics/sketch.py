"""All that the scores need of a set of images, without the images; and the scores of such sketches.

A sketch is the moments of every feature vector and a bounded random sample of the vectors: mergeable, a few hundred
kilobytes however many images it stands for.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.config import Section
from pipeline.errors import DataError
from pipeline.metrics.coverage import neighbour_scores
from pipeline.metrics.fingerprint import Fingerprint
from pipeline.metrics.frechet import frechet
from pipeline.metrics.kid import kernel_distance
from pipeline.metrics.moments import Moments
from pipeline.metrics.packing import pack, unpack
from pipeline.metrics.reservoir import Reservoir

__all__ = ["CONSTANTS", "Kind", "Score", "Sketch", "merge_all_sketches", "score"]

Kind = Literal["samples", "floor", "blurred", "noise"]

_RESERVOIR_ROWS: Final = 5_000
_NUM_SUBSETS: Final = 50
_SUBSET_ROWS: Final = 1_000
_NEIGHBOURS: Final = 5

CONSTANTS: Final = {
    "reservoir_rows": _RESERVOIR_ROWS,
    "num_subsets": _NUM_SUBSETS,
    "subset_rows": _SUBSET_ROWS,
    "neighbours": _NEIGHBOURS,
}
"""What the figures depend on besides data and settings; another value is another protocol."""


class Score(Section):
    """One figure: `n` images of a kind against `reference_n` real ones; `spread` between subsets, where there are."""

    metric: str
    kind: Kind
    value: float
    spread: float | None = None
    n: int
    reference_n: int


@dataclass(frozen=True, eq=False)
class Sketch:
    """A value: methods return a new one."""

    moments: Moments
    reservoir: Reservoir

    @classmethod
    def of(cls, fingerprint: Fingerprint, seed: int, ids: NDArray[np.int64], features: NDArray[np.float32]) -> "Sketch":
        """Of features [B, D] of images `ids` [B]; `seed` chooses the random sample."""
        return cls(
            Moments.empty(fingerprint).update(features),
            Reservoir.empty(fingerprint, _RESERVOIR_ROWS, seed).update(ids, features),
        )

    def merge(self, other: "Sketch") -> "Sketch":
        """Of both sets of images. Raises DataError on different protocols."""
        return Sketch(self.moments.merge(other.moments), self.reservoir.merge(other.reservoir))

    def to_bytes(self) -> bytes:
        """A safetensors file; equal sketches give equal bytes."""
        parts = {"moments": self.moments.to_bytes(), "reservoir": self.reservoir.to_bytes()}
        return pack("sketch", {}, {name: np.frombuffer(data, np.uint8) for name, data in parts.items()})

    @classmethod
    def from_bytes(cls, data: bytes) -> "Sketch":
        """Inverse of `to_bytes`, bit for bit. Raises DataError."""
        _, parts = unpack("sketch", data)
        return cls(Moments.from_bytes(parts["moments"].tobytes()), Reservoir.from_bytes(parts["reservoir"].tobytes()))


def merge_all_sketches(parts: Iterable[Sketch]) -> Sketch:
    """All of them, in the order given, one at a time: equal parts give equal bits. Raises DataError without any."""
    merged: Sketch | None = None
    for part in parts:
        merged = part if merged is None else merged.merge(part)
    if merged is None:
        raise DataError("there are no sketches to merge")
    return merged


def score(reference: Sketch, measured: Mapping[Kind, Sketch]) -> Iterator[Score]:
    """Every kind against the reference: Frechet distances first, then kernel distances, then neighbour scores.

    Neighbour scores depend on how many points there are, so both sides give their first `n` of the random sample.
    They are left out where there are too few images for them. Raises DataError below 2 images a side.
    """
    for kind, sketch in measured.items():
        distance = frechet(sketch.moments, reference.moments)
        yield Score(metric=distance.name, kind=kind, value=distance.value, n=distance.n_a, reference_n=distance.n_b)
    rows = min(len(sketch.reservoir.ids) for sketch in (reference, *measured.values()))
    for kind, sketch in measured.items():
        kernel = kernel_distance(sketch.reservoir, reference.reservoir, _NUM_SUBSETS, min(_SUBSET_ROWS, rows))
        counts = {"n": len(sketch.reservoir.ids), "reference_n": len(reference.reservoir.ids)}
        yield Score(metric=kernel.name, kind=kind, value=kernel.value, spread=kernel.spread, **counts)
    if rows > _NEIGHBOURS:
        real = _first(reference.reservoir, rows)
        by_kind = {k: _neighbour_scores(real, _first(s.reservoir, rows)) for k, s in measured.items()}
        for name in ("precision", "recall", "density", "coverage"):
            metric = f"{name}-{real.fingerprint.extractor}"
            for kind, values in by_kind.items():
                yield Score(metric=metric, kind=kind, value=values[name], n=rows, reference_n=rows)


def _first(reservoir: Reservoir, rows: int) -> Reservoir:
    """The sample that a reservoir of this capacity would have kept: its rows are in the order of their keys."""
    return Reservoir(reservoir.fingerprint, rows, reservoir.seed, reservoir.ids[:rows], reservoir.features[:rows])


def _neighbour_scores(real: Reservoir, generated: Reservoir) -> dict[str, Any]:
    return vars(neighbour_scores(real, generated, _NEIGHBOURS))
