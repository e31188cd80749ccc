"""Frechet distances of Gaussians with a closed-form distance."""

from dataclasses import dataclass, replace

import numpy as np
import pytest

from pipeline.errors import DataError
from pipeline.metrics.frechet import frechet
from pipeline.metrics.moments import Moments
from pipeline.metrics.protocol import Fingerprint

pytestmark = pytest.mark.unit


@dataclass(frozen=True)
class Fitted:
    fingerprint: Fingerprint
    n: int
    mean: np.ndarray
    covariance: np.ndarray


def gaussian(mean, covariance, n: int = 100, extractor: str = "class-cnn") -> Fitted:
    """A Gaussian with exactly this mean and covariance."""
    mean = np.asarray(mean, float)
    return Fitted(Fingerprint(extractor, "00", "none", len(mean), "r"), n, mean, np.asarray(covariance, float))


def test_diagonal_gaussians():
    """Commuting covariances: |mu_a - mu_b|^2 + sum (sigma_a - sigma_b)^2."""
    a = gaussian([0.0, 1.0, -2.0], np.diag([1.0, 4.0, 9.0]))
    b = gaussian([0.5, 1.0, 0.0], np.diag([4.0, 1.0, 0.25]))
    expected = 0.25 + 4.0 + (1 - 2) ** 2 + (2 - 1) ** 2 + (3 - 0.5) ** 2
    assert frechet(a, b).value == pytest.approx(expected, rel=1e-12)
    assert frechet(b, a).value == pytest.approx(expected, rel=1e-12)


def test_rotating_both_sides_changes_nothing():
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    cov_a, cov_b = np.diag([1.0, 4.0, 9.0]), np.array([[2.0, 1.0, 0.0], [1.0, 2.0, 0.0], [0.0, 0.0, 1.0]])
    plain = frechet(gaussian(np.zeros(3), cov_a), gaussian(np.ones(3), cov_b)).value
    turned = frechet(
        gaussian(np.zeros(3), rotation @ cov_a @ rotation.T),
        gaussian(rotation @ np.ones(3), rotation @ cov_b @ rotation.T),
    ).value
    assert turned == pytest.approx(plain, rel=1e-11)


def test_two_by_two_that_do_not_commute():
    """tr sqrt(M) = sqrt(tr M + 2 sqrt(det M)) for any 2x2 product M of covariances."""
    cov_a, cov_b = np.array([[2.0, 0.9], [0.9, 1.0]]), np.array([[1.0, -0.4], [-0.4, 3.0]])
    product = cov_a @ cov_b
    cross = np.sqrt(np.trace(product) + 2 * np.sqrt(np.linalg.det(product)))
    expected = np.trace(cov_a) + np.trace(cov_b) - 2 * cross
    assert frechet(gaussian(np.zeros(2), cov_a), gaussian(np.zeros(2), cov_b)).value == pytest.approx(expected)


def test_a_singular_side_is_exact():
    a, b = gaussian([0.0, 0.0], np.diag([4.0, 0.0])), gaussian([0.0, 0.0], np.diag([1.0, 9.0]))
    assert frechet(a, b).value == pytest.approx(1.0 + 9.0, rel=1e-12)


def test_a_set_is_at_distance_zero_from_itself():
    data = np.random.default_rng(0).normal(size=(500, 3)) * 7
    moments = Moments.empty(Fingerprint("class-cnn", "00", "none", 3, "r")).update(data)
    assert 0 <= frechet(moments, moments).value < 1e-10


def test_names_and_counts():
    result = frechet(gaussian([0.0], [[1.0]], n=7), gaussian([0.0], [[1.0]], n=9))
    assert (result.name, result.n_a, result.n_b, result.feature_dim) == ("FD-class-cnn", 7, 9, 1)
    inception = [gaussian([0.0], [[1.0]], extractor="inception-v3") for _ in range(2)]
    assert frechet(*inception).name == "FID"


def test_too_few_images_are_flagged():
    enough, few = gaussian(np.zeros(5), np.eye(5), n=6), gaussian(np.zeros(5), np.eye(5), n=5)
    assert not frechet(enough, enough).rank_deficient
    assert frechet(enough, few).rank_deficient
    assert frechet(few, enough).rank_deficient


def test_other_fingerprints_are_refused():
    a = gaussian([0.0], [[1.0]])
    b = replace(a, fingerprint=replace(a.fingerprint, weights_sha256="11"))
    with pytest.raises(DataError, match="weights_sha256"):
        frechet(a, b)
