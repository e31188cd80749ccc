"""Histograms of pixel levels per channel: mean, standard deviation, saturation, and the distance of two histograms."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DataError

_LEVELS = 256

Float64 = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class PixelCounts:
    """counts int64 [C, 256]: number of pixels of each level; integers, so merging order does not change the bits."""

    counts: NDArray[np.int64]

    @classmethod
    def of(cls, images: NDArray[np.uint8]) -> "PixelCounts":
        """The counts of images uint8 [N, H, W, C]."""
        channels = np.moveaxis(images, 3, 0)
        return cls(np.stack([np.bincount(c.reshape(-1), minlength=_LEVELS) for c in channels]).astype(np.int64))

    def merge(self, other: "PixelCounts") -> "PixelCounts":
        """The counts of both sets. Raises DataError when the numbers of channels differ."""
        if self.counts.shape != other.counts.shape:
            raise DataError(f"pixels of {len(self.counts)} and {len(other.counts)} channels cannot be merged")
        return PixelCounts(self.counts + other.counts)

    @property
    def mean(self) -> Float64:
        """float64 [C], in levels 0..255."""
        return self._shares() @ np.arange(_LEVELS)

    @property
    def std(self) -> Float64:
        """float64 [C], in levels."""
        distance = np.arange(_LEVELS) - self.mean[:, None]
        return np.asarray(np.sqrt((self._shares() * distance**2).sum(axis=1)))

    @property
    def saturated(self) -> Float64:
        """float64 [C]: share of pixels at level 0 or 255."""
        return np.asarray(self._shares()[:, [0, -1]].sum(axis=1))

    def _shares(self) -> Float64:
        return np.asarray(self.counts / np.maximum(self.counts.sum(axis=1, keepdims=True), 1))


def histogram_distance(a: PixelCounts, b: PixelCounts) -> float:
    """Wasserstein-1 distance of two histograms, in levels, mean over channels: 0 for equal histograms."""
    if a.counts.shape != b.counts.shape:
        raise DataError(f"pixels of {len(a.counts)} and {len(b.counts)} channels cannot be compared")
    return float(np.abs(np.cumsum(a._shares() - b._shares(), axis=1)).sum(axis=1).mean())
