"""Mergeable statistics of a set of images, from which all scores are computed.

`FeatureStats` holds the moments of the feature vectors, a bounded random sample of the vectors, sums of class
probabilities (if the extractor has classes), and counts of pixel levels. The stored bytes depend only on the set of
images, not on how the set was split into parts or in which order the parts were merged.
"""

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.config.base import Section
from pipeline.errors import DataError
from pipeline.metrics.features import ExtractorOutput
from pipeline.metrics.inception_score import SPLITS, ClassSums
from pipeline.metrics.moments import Moments
from pipeline.metrics.pixels import PixelCounts
from pipeline.metrics.protocol import Fingerprint
from pipeline.metrics.reservoir import Reservoir
from pipeline.metrics.serialization import pack, unpack

Kind = Literal["samples", "floor", "blurred", "noise", "heldout"]
"""Scored images: `samples` of the model, `floor` held-out real images, `blurred` and `noise` the ceilings; `heldout`
marks a score of the model itself on held-out images, such as bits/dim."""

LAYOUT: Final = 2
"""Layout of the stored file. Layout 1 had moments in floating point, and neither classes nor pixels."""
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
"""Constants that affect the scores; evaluations with other values have another protocol and are not comparable."""


class Score(Section):
    """One score of `n` images of a kind against `reference_n` real images (0: the score has no reference).

    spread: standard deviation between subsets, splits or images. low, high: 95 % interval. None: not defined.
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
    """Statistics of a set of images, immutable; methods return new statistics."""

    moments: Moments
    reservoir: Reservoir
    pixels: PixelCounts
    classes: ClassSums | None

    @classmethod
    def of(
        cls,
        fingerprint: Fingerprint,
        seed: int,
        ids: NDArray[np.int64],
        images: NDArray[np.uint8],
        output: ExtractorOutput,
    ) -> "FeatureStats":
        """Statistics of images uint8 [B, H, W, C] with `ids` [B]; `output` is the extractor's, `seed` picks samples."""
        probabilities = output.probabilities
        return cls(
            Moments.empty(fingerprint).update(output.features),
            Reservoir.empty(fingerprint, _RESERVOIR_ROWS, seed).update(ids, output.features),
            PixelCounts.of(images),
            None if probabilities is None else ClassSums.of(seed, ids, probabilities),
        )

    def merge(self, other: "FeatureStats") -> "FeatureStats":
        """The statistics of both sets of images. Raises DataError when the protocols differ."""
        if (self.classes is None) != (other.classes is None):
            raise DataError("feature statistics with and without class probabilities come from different extractors")
        return FeatureStats(
            self.moments.merge(other.moments),
            self.reservoir.merge(other.reservoir),
            self.pixels.merge(other.pixels),
            self.classes.merge(other.classes) if self.classes and other.classes else None,
        )

    def to_bytes(self) -> bytes:
        """A safetensors file; equal statistics give equal bytes."""
        parts = {"moments": self.moments.to_bytes(), "reservoir": self.reservoir.to_bytes()}
        arrays = {name: np.frombuffer(data, np.uint8) for name, data in parts.items()}
        classes = {} if self.classes is None else {f"{_CLASSES}{k}": v for k, v in vars(self.classes).items()}
        return pack("sketch", {"layout": LAYOUT}, {**arrays, "pixels": self.pixels.counts, **classes})

    @classmethod
    def from_bytes(cls, data: bytes) -> "FeatureStats":
        """Inverse of `to_bytes`, bit for bit. Raises DataError on damaged bytes or another layout."""
        header, parts = unpack("sketch", data)
        layout = header.get("layout", 1)
        if layout != LAYOUT:
            raise DataError(f"feature statistics have layout {layout}, not {LAYOUT}: delete it and evaluate again")
        classes = {name.removeprefix(_CLASSES): a for name, a in parts.items() if name.startswith(_CLASSES)}
        return cls(
            Moments.from_bytes(parts["moments"].tobytes()),
            Reservoir.from_bytes(parts["reservoir"].tobytes()),
            PixelCounts(parts["pixels"]),
            ClassSums(**classes) if classes else None,
        )
