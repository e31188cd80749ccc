"""Kernel distance by hand, and refused inputs. tests/oracle compares it with torchmetrics."""

from dataclasses import replace

import numpy as np
import pytest

from pipeline.errors import DataError
from pipeline.metrics.kid import kernel_distance, polynomial_mmd
from pipeline.metrics.protocol import Fingerprint
from pipeline.metrics.reservoir import Reservoir

pytestmark = pytest.mark.unit
FINGERPRINT = Fingerprint("class-cnn", "00", "none", 4, "r")


def sample(seed: int, n: int = 300, shift: float = 0.0) -> Reservoir:
    rows = np.random.default_rng(seed).normal(size=(n, 4)) + shift
    return Reservoir.empty(FINGERPRINT, n, 0).update(np.arange(n), rows)


def test_worked_example():
    """D = 1, x = {0, 1}, y = {2, 2}: k(0,1) = 1, k(2,2) = 125, k(0,2) = 1, k(1,2) = 27."""
    x, y = np.array([[0.0], [1.0]]), np.array([[2.0], [2.0]])
    assert polynomial_mmd(x, y) == pytest.approx(1 + 125 - 2 * 14)


def test_unbiased_around_zero_for_equal_sources_and_positive_for_others():
    same = [kernel_distance(sample(i), sample(i + 100), 5, 100).value for i in range(20)]
    assert abs(np.mean(same)) < 4 * np.std(same) / np.sqrt(20)
    assert min(same) < 0
    assert kernel_distance(sample(0), sample(1, shift=1.0), 5, 100).value > 10 * np.std(same)


def test_spread_is_between_subsets():
    a, b = sample(0), sample(1)
    values = [polynomial_mmd(a.subset(j, 50), b.subset(j, 50)) for j in range(7)]
    result = kernel_distance(a, b, 7, 50)
    assert result.value == pytest.approx(np.mean(values))
    assert result.spread == pytest.approx(np.std(values))
    assert (result.name, result.num_subsets, result.subset_size) == ("KD-class-cnn", 7, 50)


def test_refusals():
    a = sample(0)
    with pytest.raises(DataError, match="preprocessing"):
        kernel_distance(a, replace(a, fingerprint=replace(FINGERPRINT, preprocessing="x")), 1, 10)
    with pytest.raises(DataError, match="at least 1 subset"):
        kernel_distance(a, a, 1, 1)
    with pytest.raises(DataError, match="at least as many"):
        kernel_distance(a, a, 1, 301)
