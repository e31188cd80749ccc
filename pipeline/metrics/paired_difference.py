"""Confidence interval of the difference of two models' kernel distances, for samples with equal ids.

    d = MMD^2(a, real) - MMD^2(b, real) = [mean k(a, a') - 2 mean k(a, real)] - [mean k(b, b') - 2 mean k(b, real)]

over all pairs of different ids, so the estimate is unbiased. Equal ids have equal noise and labels, so their common
effect on both models cancels. The ids are split into disjoint random groups (by their keys), and each group is left out
in turn: the delete-group jackknife (Shao & Wu 1989) of d, with a Student t interval. If both models are as good as real
images, the interval is too wide rather than too narrow. Real images are taken as fixed.
"""

import math
from itertools import pairwise
from statistics import NormalDist
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DataError
from pipeline.metrics.kid import kernel
from pipeline.metrics.reservoir import Reservoir

MOST_GROUPS: Final = 20
GROUP_ROWS: Final = 8

Float64 = NDArray[np.float64]


class PairedDifference(NamedTuple):
    """value: difference over all ids; low, high: its two-sided interval from leaving out each of `groups` groups."""

    value: float
    low: float
    high: float
    groups: int


def paired_difference(a: Reservoir, b: Reservoir, real: Reservoir, confidence: float) -> PairedDifference:
    """Kernel distance of `a` to `real` minus that of `b`; negative if `a` is better. `confidence` in (0, 1).

    Raises DataError on different protocols, different ids in a and b, or fewer than 2 groups of 8 images.
    """
    a.fingerprint.require_same(real.fingerprint)
    b.fingerprint.require_same(real.fingerprint)
    if not np.array_equal(a.ids, b.ids):
        raise DataError("the samples of the two models have different ids: generate both with equal seed and number")
    groups = min(MOST_GROUPS, len(a.ids) // GROUP_ROWS)
    if groups < 2:
        raise DataError(f"{len(a.ids)} samples are too few for an interval: {2 * GROUP_ROWS} are needed")
    starts = np.cumsum([0, *(len(part) for part in np.array_split(a.ids, groups))])
    sizes = np.diff(starts).astype(np.float64)
    reference = real.features.astype(np.float64)
    (pairs_a, cross_a), (pairs_b, cross_b) = (_sums(side, reference, starts) for side in (a, b))
    pairs, cross = pairs_a - pairs_b, cross_a - cross_b
    left = pairs.sum() - 2 * pairs.sum(axis=0) + pairs.diagonal()  # pairs with no image in the group
    without = _difference(left, cross.sum() - cross, sizes.sum() - sizes)
    error = math.sqrt((groups - 1) / groups * ((without - without.mean()) ** 2).sum())
    value = float(_difference(pairs.sum(), cross.sum(), sizes.sum()))
    half = student_quantile((1 + confidence) / 2, groups - 1) * error
    return PairedDifference(value, value - half, value + half, groups)


def _sums(side: Reservoir, real: Float64, starts: NDArray[np.int64]) -> tuple[Float64, Float64]:
    """[G, G]: sums of kernels of different images by group; [G]: mean kernels with real images, summed by group.

    starts: int [G + 1], the first row of every group, then the number of rows.
    """
    features = side.features.astype(np.float64)
    pairs, cross = [], []
    for start, stop in pairwise(starts):
        group = features[start:stop]
        among = kernel(group, features)
        among[np.arange(stop - start), np.arange(start, stop)] = 0.0  # an image with itself
        pairs.append(np.add.reduceat(among.sum(axis=0), starts[:-1]))
        cross.append(kernel(group, real).mean(axis=1).sum())
    return np.array(pairs), np.array(cross)


def _difference(pairs: Float64, cross: Float64, n: Float64) -> Float64:
    """The difference from sums over `n` images, elementwise."""
    return np.asarray(pairs / (n * (n - 1)) - 2 * cross / n)


def student_quantile(share: float, freedom: int) -> float:
    """Quantile of Student's t with `freedom` degrees of freedom, 0.5 < share < 1, by bisection of its distribution."""
    low, high = 0.0, NormalDist().inv_cdf(share) + 1.0
    while _student_share(high, freedom) < share:
        low, high = high, 2 * high
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if _student_share(middle, freedom) < share else (low, middle)
    return (low + high) / 2


def _student_share(t: float, freedom: int) -> float:
    """P(T <= t) for t >= 0 by its finite series in theta = atan(t / sqrt(v)) (Abramowitz & Stegun 26.7.3-4)."""
    theta = math.atan(t / math.sqrt(freedom))
    cosine, term, total = math.cos(theta), 1.0, 0.0
    if freedom % 2:
        term = cosine
        for k in range(1, (freedom - 1) // 2 + 1):
            total += term
            term *= cosine**2 * (2 * k) / (2 * k + 1)
        return 0.5 + (theta + math.sin(theta) * total) / math.pi
    for k in range(freedom // 2):
        total += term
        term *= cosine**2 * (2 * k + 1) / (2 * k + 2)
    return 0.5 + math.sin(theta) * total / 2
