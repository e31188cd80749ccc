"""How sure the difference of two models' kernel distances is, when both drew the same sample ids.

    d = MMD^2(a, real) - MMD^2(b, real) = [mean k(a, a') - 2 mean k(a, real)] - [mean k(b, b') - 2 mean k(b, real)]

The ids are cut into disjoint groups at random (by their keys). Each group gives an unbiased d of its own; what a
noise or a label does to both models alike falls out of it. Their mean has a Student t interval.
"""

import math
from statistics import NormalDist
from typing import Final, NamedTuple

import numpy as np

from pipeline.errors import DataError
from pipeline.metrics.kid import one_sided
from pipeline.metrics.reservoir import Reservoir

__all__ = ["PairedDifference", "paired_difference", "student_quantile"]

MOST_GROUPS: Final = 20
GROUP_ROWS: Final = 8


class PairedDifference(NamedTuple):
    """value: mean over groups; low, high: its two-sided interval."""

    value: float
    low: float
    high: float
    groups: int


def paired_difference(a: Reservoir, b: Reservoir, real: Reservoir, confidence: float) -> PairedDifference:
    """Kernel distance of `a` minus that of `b`, both from `real`; below 0, `a` is the better one.

    Raises DataError on different protocols, other ids in a than in b, or fewer than 2 groups of 8 images.
    """
    a.fingerprint.require_same(real.fingerprint)
    b.fingerprint.require_same(real.fingerprint)
    if not np.array_equal(a.ids, b.ids):
        raise DataError("the two models' samples have other ids: generate both with the same seed and number")
    groups = min(MOST_GROUPS, len(a.ids) // GROUP_ROWS)
    if groups < 2:
        raise DataError(f"{len(a.ids)} samples are too few for an interval: {2 * GROUP_ROWS} are needed")
    reference = real.features.astype(np.float64)
    values = [
        one_sided(a.features[rows].astype(np.float64), reference)
        - one_sided(b.features[rows].astype(np.float64), reference)
        for rows in np.array_split(np.arange(len(a.ids)), groups)
    ]
    mean, error = float(np.mean(values)), float(np.std(values, ddof=1)) / math.sqrt(groups)
    half = student_quantile((1 + confidence) / 2, groups - 1) * error
    return PairedDifference(mean, mean - half, mean + half, groups)


def student_quantile(share: float, freedom: int) -> float:
    """Of Student's t, 0.5 < share < 1: by bisection of its distribution, so exact for every number of groups."""
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
