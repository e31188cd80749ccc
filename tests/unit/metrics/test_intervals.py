"""Intervals match the scatter of scores; the distance at infinite n has no bias of finite n."""

from dataclasses import dataclass

import numpy as np
import pytest

from pipeline.metrics.frechet import FrechetReference
from pipeline.metrics.inception_score import ClassScore
from pipeline.metrics.intervals import (
    class_interval,
    extrapolate_frechet,
    frechet_interval,
    kernel_interval,
    mean_interval,
)
from pipeline.metrics.kid import kernel_distance
from pipeline.metrics.moments import Moments
from pipeline.metrics.paired_difference import student_quantile
from pipeline.metrics.protocol import Fingerprint
from pipeline.metrics.reservoir import Reservoir

pytestmark = pytest.mark.unit
DIM = 8
FINGERPRINT = Fingerprint("class-cnn", "00", "none", DIM, "r")
HALF_IN_ERRORS = student_quantile(0.975, 9)


@dataclass(frozen=True)
class Normal:
    """The reference itself, without a sample of it."""

    fingerprint: Fingerprint = FINGERPRINT
    n: int = 10**9

    @property
    def mean(self):
        return np.zeros(DIM)

    @property
    def covariance(self):
        return np.eye(DIM)


def sides(n: int, seed: int, shift: float = 0.0, capacity: int = 5000) -> tuple[Moments, Reservoir]:
    rows = (np.random.default_rng(seed).normal(size=(n, DIM)) + shift).astype(np.float32)
    sample = Reservoir.empty(FINGERPRINT, capacity, 0).update(np.arange(n), rows)
    return Moments.empty(FINGERPRINT).update(rows), sample


@pytest.mark.parametrize("capacity", [5000, 100])
def test_an_interval_of_a_distance_is_as_wide_as_distances_scatter(capacity):
    """Also when the sample whose groups are taken out is a quarter of the images."""
    to, values, errors = FrechetReference(Normal()), [], []
    for seed in range(60):
        moments, sample = sides(400, seed, 0.3, capacity)
        interval = frechet_interval(to, moments, sample)
        values.append(to.distance(moments).value)
        errors.append((interval.high - interval.low) / 2 / HALF_IN_ERRORS)
        assert (interval.low + interval.high) / 2 == pytest.approx(values[-1])
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(np.std(values), rel=0.3)


def test_an_interval_of_a_kernel_distance_is_as_wide_as_distances_scatter():
    _, real = sides(1000, 999)
    values, errors = [], []
    for seed in range(60):
        _, sample = sides(200, seed, 0.3)
        values.append(kernel_distance(sample, sides(1000, 999)[1], 1, 200).value)
        interval = kernel_interval(values[-1], sample, real)
        errors.append((interval.high - interval.low) / 2 / HALF_IN_ERRORS)
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(np.std(values), rel=0.35)


def test_intervals_follow_from_the_ids_alone():
    moments, sample = sides(300, 1)
    to = FrechetReference(Normal())
    turned = Reservoir.empty(FINGERPRINT, 5000, 0)
    for rows in (slice(200, 300), slice(0, 200)):
        order = np.argsort(sample.ids)
        turned = turned.update(sample.ids[order][rows], sample.features[order][rows])
    assert frechet_interval(to, moments, turned) == frechet_interval(to, moments, sample)


def test_too_few_images_have_no_interval():
    moments, sample = sides(39, 0)
    assert frechet_interval(FrechetReference(Normal()), moments, sample) is None
    assert kernel_interval(0.0, sample, sample) is None
    assert class_interval(ClassScore(2.0, 0.0, 1)) is None
    assert mean_interval(np.array([1.0])) is None


def test_of_a_class_score_and_of_a_mean():
    low, high = class_interval(ClassScore(3.0, 0.6, 10))
    assert (high - low) / 2 == pytest.approx(HALF_IN_ERRORS * 0.6 / 3)  # ddof 0 over ten: 0.6 / sqrt(9)
    low, high = mean_interval(np.array([1.0, 2.0, 3.0]))
    assert (low + high) / 2 == pytest.approx(2.0)
    assert (high - low) / 2 == pytest.approx(4.302653 / np.sqrt(3), rel=1e-6)


def test_at_infinite_n_the_bias_is_gone():
    """Equal distributions are at distance 0; at n = 200 the bias of 8 features is about 0.13."""
    to = FrechetReference(Normal())
    found = [(to.distance(m).value, extrapolate_frechet(to, m, s)) for m, s in (sides(200, seed) for seed in range(20))]
    biased, infinite = np.mean([value for value, _ in found]), np.mean([of.value for _, of in found])
    assert biased > 0.1
    assert abs(infinite) < 0.2 * biased
    sizes = found[0][1].sizes
    assert (sizes[0], sizes[-1], len(sizes)) == (20, 200, 15)


def test_more_images_than_the_sample_has_are_one_more_point():
    moments, sample = sides(400, 0, capacity=100)
    assert extrapolate_frechet(FrechetReference(Normal()), moments, sample).sizes[-2:] == (100, 400)
    assert extrapolate_frechet(FrechetReference(Normal()), *sides(DIM + 1, 0)) is None
