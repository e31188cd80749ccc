"""All that the scores need of a set of images, without the images.

A sketch is the moments of every feature vector, a bounded random sample of the vectors, sums of class probabilities
where the extractor has classes, and counts of grey levels. All are functions of the set of images: however it is cut
into parts, and in whatever order and tree they are merged, the bytes are the same.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.config.base import Section
from pipeline.errors import DataError
from pipeline.metrics.features import Answer
from pipeline.metrics.inception_score import SPLITS, ClassSums
from pipeline.metrics.moments import Moments
from pipeline.metrics.pixels import PixelCounts
from pipeline.metrics.protocol import Fingerprint
from pipeline.metrics.reservoir import Reservoir
from pipeline.metrics.serialization import pack, unpack

__all__ = ["CONSTANTS", "LAYOUT", "FeatureStats", "Kind", "Score", "merge_feature_stats"]

Kind = Literal["samples", "floor", "blurred", "noise", "heldout"]
"""`heldout`: of the model itself, on held-out images."""

LAYOUT: Final = 2
"""Of a sketch at rest. 1 had moments in floating point, and neither classes nor pixels."""
_RESERVOIR_ROWS: Final = 5_000
NUM_SUBSETS: Final = 50
SUBSET_ROWS: Final = 1_000
NEIGHBOURS: Final = 5

_CLASSES: Final = "classes."

CONSTANTS: Final = {
    "layout": LAYOUT,
    "splits": SPLITS,
    "reservoir_rows": _RESERVOIR_ROWS,
    "num_subsets": NUM_SUBSETS,
    "subset_rows": SUBSET_ROWS,
    "neighbours": NEIGHBOURS,
}
"""What the figures depend on besides data and settings; another value is another protocol."""


class Score(Section):
    """One figure: `n` images of a kind against `reference_n` real ones (0: against none).

    spread: standard deviation between subsets, splits or images; low, high: 95 % interval, where there is one.
    """

    metric: str
    kind: Kind
    value: float
    spread: float | None = None
    low: float | None = None
    high: float | None = None
    n: int
    reference_n: int


@dataclass(frozen=True, eq=False)
class FeatureStats:
    """A value: methods return a new one."""

    moments: Moments
    reservoir: Reservoir
    pixels: PixelCounts
    classes: ClassSums | None

    @classmethod
    def of(
        cls, fingerprint: Fingerprint, seed: int, ids: NDArray[np.int64], images: NDArray[np.uint8], answer: Answer
    ) -> "FeatureStats":
        """Of images uint8 [B, H, W, C] with their `ids` [B] and the extractor's answer; `seed` chooses samples."""
        probabilities = answer.probabilities
        return cls(
            Moments.empty(fingerprint).update(answer.features),
            Reservoir.empty(fingerprint, _RESERVOIR_ROWS, seed).update(ids, answer.features),
            PixelCounts.of(images),
            None if probabilities is None else ClassSums.of(seed, ids, probabilities),
        )

    def merge(self, other: "FeatureStats") -> "FeatureStats":
        """Of both sets of images. Raises DataError on different protocols."""
        if (self.classes is None) != (other.classes is None):
            raise DataError("a sketch with classes and one without are not of one extractor")
        return FeatureStats(
            self.moments.merge(other.moments),
            self.reservoir.merge(other.reservoir),
            self.pixels.merge(other.pixels),
            self.classes.merge(other.classes) if self.classes and other.classes else None,
        )

    def to_bytes(self) -> bytes:
        """A safetensors file; equal sketches give equal bytes."""
        parts = {"moments": self.moments.to_bytes(), "reservoir": self.reservoir.to_bytes()}
        arrays = {name: np.frombuffer(data, np.uint8) for name, data in parts.items()}
        classes = {} if self.classes is None else {f"{_CLASSES}{k}": v for k, v in vars(self.classes).items()}
        return pack("sketch", {"layout": LAYOUT}, {**arrays, "pixels": self.pixels.counts, **classes})

    @classmethod
    def from_bytes(cls, data: bytes) -> "FeatureStats":
        """Inverse of `to_bytes`, bit for bit. Raises DataError, also on another layout."""
        header, parts = unpack("sketch", data)
        layout = header.get("layout", 1)
        if layout != LAYOUT:
            raise DataError(f"this sketch has layout {layout}, not {LAYOUT}: delete it, and evaluate makes it again")
        classes = {name.removeprefix(_CLASSES): a for name, a in parts.items() if name.startswith(_CLASSES)}
        return cls(
            Moments.from_bytes(parts["moments"].tobytes()),
            Reservoir.from_bytes(parts["reservoir"].tobytes()),
            PixelCounts(parts["pixels"]),
            ClassSums(**classes) if classes else None,
        )


def merge_feature_stats(parts: Iterable[FeatureStats]) -> FeatureStats:
    """All of them, one at a time; in any order the bits are the same. Raises DataError without any."""
    merged: FeatureStats | None = None
    for part in parts:
        merged = part if merged is None else merged.merge(part)
    if merged is None:
        raise DataError("there are no sketches to merge")
    return merged
