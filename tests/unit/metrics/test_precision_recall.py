"""Neighbour scores on points with balls known by hand. tests/oracle compares the scores with prdc."""

from dataclasses import replace

import numpy as np
import pytest

from pipeline.errors import DataError
from pipeline.metrics.precision_recall import neighbour_scores, scores_of_features
from pipeline.metrics.protocol import Fingerprint
from pipeline.metrics.reservoir import Reservoir

pytestmark = pytest.mark.unit


def line(*positions: float) -> np.ndarray:
    return np.array(positions)[:, None]


def test_worked_example():
    """Real 0, 1, 3, 10 (k=1) has radii 1, 1, 2, 7; generated 0.5, 2.5, 30 has radii 2, 2, 27.5."""
    scores = scores_of_features(line(0, 1, 3, 10), line(0.5, 2.5, 30), k=1)
    assert scores.precision == pytest.approx(2 / 3)
    assert scores.recall == pytest.approx(1.0)  # 10 lies in the wide ball around 30
    assert scores.density == pytest.approx((2 + 1) / 3)  # 0.5 in balls of 0 and 1; 2.5 in the ball of 3; 30 in none
    assert scores.coverage == pytest.approx(3 / 4)  # the ball of 10 starts at 3


def test_collapse_is_seen_by_recall_and_coverage_only():
    rng = np.random.default_rng(0)
    real = np.concatenate([rng.normal(size=(200, 2)), rng.normal(size=(200, 2)) + 50])
    collapsed = rng.normal(size=(400, 2))
    scores = scores_of_features(real, collapsed, k=5)
    assert scores.precision > 0.9
    assert scores.recall < 0.55
    assert scores.coverage < 0.55


def test_a_shift_of_all_points_changes_nothing():
    rng = np.random.default_rng(0)
    real, generated = rng.normal(size=(100, 3)), rng.normal(size=(80, 3)) * 1.5
    assert scores_of_features(real, generated, 3) == scores_of_features(real + 1e4, generated + 1e4, 3)


def test_refusals():
    fingerprint = Fingerprint("class-cnn", "00", "none", 2, "r")
    sample = Reservoir.empty(fingerprint, 9, 0).update(np.arange(5), np.random.default_rng(0).normal(size=(5, 2)))
    assert neighbour_scores(sample, sample, k=4).num_real == 5
    with pytest.raises(DataError, match="5 neighbours need more points"):
        neighbour_scores(sample, sample, k=5)
    with pytest.raises(DataError, match="extractor"):
        neighbour_scores(sample, replace(sample, fingerprint=replace(fingerprint, extractor="x")), k=1)
