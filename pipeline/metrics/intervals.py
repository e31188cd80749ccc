"""Confidence intervals of scores, and extrapolation of Frechet distances to infinitely many images.

Frechet distances: the delete-group jackknife (Shao & Wu 1989). G groups of d images each, chosen by id, are left out of
the n images in turn; the variance is (n - d) / (d G) sum_g (F_g - mean F)^2. The interval covers the scatter at this n,
not the bias. Kernel distances: each group gives an unbiased distance; their mean has a Student t interval. All results
depend on the set of ids only, not on their order.
"""

import math
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.metrics.frechet import FrechetReference
from pipeline.metrics.inception_score import ClassScore
from pipeline.metrics.kid import one_sided_mmd
from pipeline.metrics.moments import Moments
from pipeline.metrics.paired_difference import student_quantile
from pipeline.metrics.reservoir import Reservoir

CONFIDENCE: Final = 0.95
GROUPS: Final = 10
_GROUP_ROWS: Final = 4
EXTRAPOLATION_SIZES: Final = 15
_FEWEST_SIZES: Final = 4

Float64 = NDArray[np.float64]


class Interval(NamedTuple):
    """Two-sided confidence interval at level CONFIDENCE."""

    low: float
    high: float


class Extrapolation(NamedTuple):
    """`value` at infinite n; `error`: standard error of the line's intercept; `sizes`: numbers of images used."""

    value: float
    error: float
    sizes: tuple[int, ...]


def _around(value: float, error: float, freedom: int) -> Interval:
    half = student_quantile((1 + CONFIDENCE) / 2, freedom) * error
    return Interval(value - half, value + half)


def frechet_interval(to: FrechetReference, moments: Moments, sample: Reservoir) -> Interval | None:
    """Interval of the distance of `moments`; the groups come from `sample`, a random sample of the same images.

    The reference is taken as fixed. None for too few images.
    """
    size = len(sample.ids) // GROUPS
    if size < _GROUP_ROWS:
        return None
    groups = sample.features[: size * GROUPS].reshape(GROUPS, size, -1)
    without = np.array([to.distance(moments.without(group)).value for group in groups])
    variance = (moments.n - size) / (size * GROUPS) * ((without - without.mean()) ** 2).sum()
    low, high = _around(to.distance(moments).value, math.sqrt(variance), GROUPS - 1)
    return Interval(max(low, 0.0), high)


def kernel_interval(value: float, sample: Reservoir, reference: Reservoir) -> Interval | None:
    """Interval around a kernel distance `value`; the reference is taken as fixed. None for too few images."""
    if len(sample.ids) // GROUPS < _GROUP_ROWS:
        return None
    real = reference.features.astype(np.float64)
    parts = np.array_split(sample.features.astype(np.float64), GROUPS)
    values = [one_sided_mmd(part, real) for part in parts]
    return _around(value, float(np.std(values, ddof=1)) / math.sqrt(GROUPS), GROUPS - 1)


def class_interval(score: ClassScore) -> Interval | None:
    """Interval of a mean over splits, with each split as one independent draw. None for fewer than two splits."""
    if score.splits < 2:
        return None
    low, high = _around(score.value, score.spread / math.sqrt(score.splits - 1), score.splits - 1)
    return Interval(max(low, 1.0), high)


def mean_interval(values: Float64) -> Interval | None:
    """Interval of the mean of independent values float64 [n]. None for fewer than two values."""
    if len(values) < 2:
        return None
    return _around(float(values.mean()), float(values.std(ddof=1)) / math.sqrt(len(values)), len(values) - 1)


def extrapolate_frechet(to: FrechetReference, moments: Moments, sample: Reservoir) -> Extrapolation | None:
    """The distance at infinite n: intercept of a line through distance against 1 / n (Chong & Forsyth 2020).

    The points are nested subsets of the random `sample`, equally spaced from a tenth of its size upward, and all n
    images. Subsets with no more images than features do not follow the line and are left out. None for fewer than four
    points. The reference keeps its own n.
    """
    rows, least = len(sample.ids), moments.fingerprint.feature_dim + 2
    sizes = (
        {int(size) for size in np.linspace(max(rows / 10, least), rows, EXTRAPOLATION_SIZES)}
        if rows >= least
        else set()
    )
    points: dict[int, float] = {}
    part, done = Moments.empty(moments.fingerprint), 0
    for size in sorted(sizes):
        part, done = part.update(sample.features[done:size]), size
        points[size] = to.distance(part).value
    points[moments.n] = to.distance(moments).value
    if len(points) < _FEWEST_SIZES:
        return None
    x, y = 1.0 / np.array(list(points)), np.array(list(points.values()))
    spread = ((x - x.mean()) ** 2).sum()
    slope = ((x - x.mean()) * (y - y.mean())).sum() / spread
    intercept = y.mean() - slope * x.mean()
    residual = ((y - intercept - slope * x) ** 2).sum() / (len(x) - 2)
    error = math.sqrt(residual * (1 / len(x) + x.mean() ** 2 / spread))
    return Extrapolation(float(intercept), error, tuple(points))
