"""How sure a score is at its n, and what it would be at infinite n. Everything is a function of the ids measured.

Frechet distances: the delete-group jackknife (Shao & Wu 1989). G groups of d images each, chosen by id, are taken out
of the n in turn; the variance is (n - d) / (d G) sum_g (F_g - mean F)^2. It tells the scatter at this n, not the bias.
Kernel distances: each group has an unbiased distance of its own; their mean has a Student t interval.
"""

import math
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.metrics.frechet import FrechetTo
from pipeline.metrics.inception_score import ClassScore
from pipeline.metrics.kid import one_sided
from pipeline.metrics.moments import Moments
from pipeline.metrics.paired_difference import student_quantile
from pipeline.metrics.reservoir import Reservoir

__all__ = ["CONFIDENCE", "GROUPS", "Extrapolation", "Interval", "class_interval", "extrapolated", "frechet_interval"]
__all__ += ["kernel_interval", "mean_interval"]

CONFIDENCE: Final = 0.95
GROUPS: Final = 10
_GROUP_ROWS: Final = 4
EXTRAPOLATION_SIZES: Final = 15
_FEWEST_SIZES: Final = 4

Float64 = NDArray[np.float64]


class Interval(NamedTuple):
    """Two-sided, of CONFIDENCE."""

    low: float
    high: float


class Extrapolation(NamedTuple):
    """`value` at infinite n; `error`: standard error of the intercept from the residuals of the line."""

    value: float
    error: float
    sizes: tuple[int, ...]


def _around(value: float, error: float, freedom: int) -> Interval:
    half = student_quantile((1 + CONFIDENCE) / 2, freedom) * error
    return Interval(value - half, value + half)


def frechet_interval(to: FrechetTo, moments: Moments, sample: Reservoir) -> Interval | None:
    """Of the distance of `moments`, a random `sample` of whose rows make the groups. None for too few images.

    The reference counts as fixed.
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
    """Around a kernel distance `value`. None for too few images. The reference counts as fixed."""
    if len(sample.ids) // GROUPS < _GROUP_ROWS:
        return None
    real = reference.features.astype(np.float64)
    parts = np.array_split(sample.features.astype(np.float64), GROUPS)
    values = [one_sided(part, real) for part in parts]
    return _around(value, float(np.std(values, ddof=1)) / math.sqrt(GROUPS), GROUPS - 1)


def class_interval(score: ClassScore) -> Interval | None:
    """Of a mean over splits, each of which counts as one draw. None below two splits."""
    if score.splits < 2:
        return None
    low, high = _around(score.value, score.spread / math.sqrt(score.splits - 1), score.splits - 1)
    return Interval(max(low, 1.0), high)


def mean_interval(values: Float64) -> Interval | None:
    """Of the mean of independent values float64 [n]. None below two."""
    if len(values) < 2:
        return None
    return _around(float(values.mean()), float(values.std(ddof=1)) / math.sqrt(len(values)), len(values) - 1)


def extrapolated(to: FrechetTo, moments: Moments, sample: Reservoir) -> Extrapolation | None:
    """The distance at infinite n: intercept of a line through distances against 1 / n (Chong & Forsyth 2020).

    Nested subsets, the first rows of a random `sample` in sizes equally far apart from a tenth of it upward, and all n.
    Sizes that do not exceed the number of features lie on no line: they are left out, and below four there is None.
    The reference stays at its own n.
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
