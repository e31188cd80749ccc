"""The interval of a paired difference: value, width, coverage, and refusal of unpaired samples."""

import numpy as np
import pytest

from pipeline.errors import DataError
from pipeline.metrics.kid import polynomial_mmd
from pipeline.metrics.paired_difference import paired_difference, student_quantile
from pipeline.metrics.protocol import Fingerprint
from pipeline.metrics.reservoir import Reservoir

pytestmark = pytest.mark.unit

DIM = 6


def reservoir(features: np.ndarray, first: int = 0, fingerprint: Fingerprint | None = None) -> Reservoir:
    fingerprint = fingerprint or Fingerprint("cnn", "w" * 64, "none", DIM, "train")
    ids = np.arange(first, first + len(features))
    return Reservoir.empty(fingerprint, 5000, 0).update(ids, features)


def normal(seed: int, rows: int, shift: float = 0.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal((rows, DIM)) + shift).astype(np.float32)


@pytest.mark.parametrize(
    ("share", "freedom", "expected"),
    [(0.975, 1, 12.7062), (0.975, 2, 4.30265), (0.975, 9, 2.26216), (0.975, 19, 2.09302), (0.95, 4, 2.13185)],
)
def test_quantiles_are_those_of_the_tables(share, freedom, expected):
    assert student_quantile(share, freedom) == pytest.approx(expected, rel=1e-5)


def distance(rows: np.ndarray, real: Reservoir) -> float:
    return polynomial_mmd(rows.astype(float), real.features.astype(float))


@pytest.mark.parametrize("rows", [16, 19])
def test_it_is_the_difference_of_two_kernel_distances_and_its_jackknife(rows):
    one, other, real = reservoir(normal(1, rows, 0.1)), reservoir(normal(2, rows, 0.5)), reservoir(normal(0, 300))
    found = paired_difference(one, other, real, 0.95)
    assert found.groups == 2
    assert found.value == pytest.approx(distance(one.features, real) - distance(other.features, real), rel=1e-9)
    kept = [np.delete(np.arange(rows), group) for group in np.array_split(np.arange(rows), 2)]
    without = [distance(one.features[rest], real) - distance(other.features[rest], real) for rest in kept]
    half = 12.7062 * np.sqrt(1 / 2 * ((without - np.mean(without)) ** 2).sum())
    assert (found.low, found.high) == pytest.approx((found.value - half, found.value + half), rel=1e-4)


def test_equal_models_are_equal_without_doubt_and_a_worse_one_is_worse():
    real, noise = reservoir(normal(0, 400)), normal(1, 200)
    same = paired_difference(reservoir(noise), reservoir(noise), real, 0.95)
    assert (same.value, same.low, same.high) == (0, 0, 0)
    worse = paired_difference(reservoir(noise + 0.7), reservoir(noise), real, 0.95)
    better = paired_difference(reservoir(noise), reservoir(noise + 0.7), real, 0.95)
    assert worse.low > 0
    assert better.high < 0


def covered(shift: float) -> tuple[float, float]:
    """How often intervals of 80 % hold the truth, 0, for two equal models; and their mean half width."""
    real = reservoir(normal(0, 200))
    runs = [
        paired_difference(reservoir(normal(2 * k + 1, 80, shift)), reservoir(normal(2 * k + 2, 80, shift)), real, 0.8)
        for k in range(150)
    ]
    return np.mean([run.low <= 0 <= run.high for run in runs]), np.mean([(run.high - run.low) / 2 for run in runs])


def test_the_interval_covers_as_often_as_it_says():
    share, _ = covered(0.7)
    assert 0.7 < share < 0.9


def test_it_is_too_wide_rather_than_too_narrow_for_models_as_good_as_real_images():
    share, half = covered(0.0)
    assert 0.75 < share <= 1
    assert half < 0.13  # the mean of groups that each have a distance of their own: 0.19


def test_unpaired_samples_are_refused():
    real, a = reservoir(normal(0, 50)), normal(1, 32)
    with pytest.raises(DataError, match="different ids"):
        paired_difference(reservoir(a), reservoir(a, first=1), real, 0.95)
    with pytest.raises(DataError, match="too few"):
        paired_difference(reservoir(a[:15]), reservoir(a[:15]), real, 0.95)
    other = Fingerprint("cnn", "v" * 64, "none", DIM, "train")
    with pytest.raises(DataError):
        paired_difference(reservoir(a), reservoir(a, fingerprint=other), real, 0.95)
