"""Inception Score: confidence of a classifier on each image and diversity of its classes (Salimans et al. 2016).

    score = exp(E KL(p(y|x) || p(y))) = exp(mean_x sum_y p log p - sum_y m log m),   m = mean_x p(y|x)

The published score is the mean over ten splits of the images, with the standard deviation between splits. Here the
split of an image follows from its id, and the sums of a split are exact, so merging order does not change the bits.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DataError
from pipeline.metrics.exact_sum import SCORE_UNIT, fixed_sum
from pipeline.metrics.reservoir import mixed_keys

SPLITS: Final = 10
_STREAM: Final = 1 << 32  # differs from all streams of reservoir subsets
_TINY: Final = 1e-30

Int64 = NDArray[np.int64]


@dataclass(frozen=True)
class ClassScore:
    """Mean over `splits` non-empty splits; `spread` is their standard deviation (ddof 0, as published)."""

    value: float
    spread: float
    splits: int


def split_of(ids: Int64, seed: int) -> Int64:
    """Split of each image, int64 [n] in 0..SPLITS-1, a function of (id, seed)."""
    return (mixed_keys(ids, seed, _STREAM) % np.uint64(SPLITS)).astype(np.int64)


@dataclass(frozen=True, eq=False)
class ClassSums:
    """For each split: images int64 [S]; sums of p int64 [S, K] and of sum_y p log p int64 [S], in units of 2^-36."""

    images: Int64
    probabilities: Int64
    negative_entropy: Int64

    @classmethod
    def of(cls, seed: int, ids: Int64, probabilities: NDArray[np.float32]) -> "ClassSums":
        """The sums of class probabilities float32 [B, K] of images `ids` [B]."""
        p, splits = probabilities.astype(np.float64), split_of(ids, seed)
        entropy = (p * np.log(np.maximum(p, _TINY))).sum(axis=1)
        groups = [splits == split for split in range(SPLITS)]
        return cls(
            np.array([group.sum() for group in groups], np.int64),
            np.stack([fixed_sum(p[group]) for group in groups]),
            np.stack([fixed_sum(entropy[group]) for group in groups]),
        )

    def merge(self, other: "ClassSums") -> "ClassSums":
        """The sums of both sets. Raises DataError when the numbers of classes differ."""
        if self.probabilities.shape != other.probabilities.shape:
            shapes = self.probabilities.shape[1], other.probabilities.shape[1]
            raise DataError(f"probabilities of {shapes[0]} and {shapes[1]} classes come from different networks")
        return ClassSums(
            self.images + other.images,
            self.probabilities + other.probabilities,
            self.negative_entropy + other.negative_entropy,
        )

    def score(self) -> ClassScore:
        """The score of the images so far. Raises DataError if there are none."""
        there = self.images > 0
        if not there.any():
            raise DataError("a class score needs at least one image")
        n = self.images[there]
        mean = self.probabilities[there] * SCORE_UNIT / n[:, None]
        marginal = (mean * np.log(np.maximum(mean, _TINY))).sum(axis=1)
        scores = np.exp(self.negative_entropy[there] * SCORE_UNIT / n - marginal)
        return ClassScore(float(scores.mean()), float(scores.std()), len(scores))
