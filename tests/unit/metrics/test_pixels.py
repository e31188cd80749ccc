"""Pixel histograms and sums of class probabilities equal numpy's results, in any merging order."""

import numpy as np
import pytest

from pipeline.errors import DataError
from pipeline.metrics.inception_score import SPLITS, ClassSums, split_of
from pipeline.metrics.pixels import PixelCounts, histogram_distance

pytestmark = pytest.mark.unit


def test_counts_give_numpys_statistics():
    images = np.random.default_rng(0).integers(0, 256, (9, 5, 4, 3), np.uint8)
    images[..., 1] //= 2
    counts = PixelCounts.of(images[:4]).merge(PixelCounts.of(images[4:]))
    np.testing.assert_array_equal(counts.counts, PixelCounts.of(images).counts)
    np.testing.assert_allclose(counts.mean, images.mean(axis=(0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(counts.std, images.std(axis=(0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(counts.saturated, ((images == 0) | (images == 255)).mean(axis=(0, 1, 2)), rtol=1e-12)


def test_histograms_are_apart_by_how_far_levels_must_move():
    black, grey = np.zeros((2, 3, 3, 1), np.uint8), np.full((5, 2, 2, 1), 40, np.uint8)
    assert histogram_distance(PixelCounts.of(black), PixelCounts.of(black)) == 0
    assert histogram_distance(PixelCounts.of(black), PixelCounts.of(grey)) == pytest.approx(40)
    with pytest.raises(DataError, match="1 and 3 channels"):
        histogram_distance(PixelCounts.of(black), PixelCounts.of(black.repeat(3, axis=3)))


def test_a_sure_and_varied_classifier_has_as_many_classes_as_it_knows():
    ids = np.arange(4000)
    sure = np.eye(4, dtype=np.float32)[ids % 4]
    score = ClassSums.of(0, ids, sure).score()
    assert score.value == pytest.approx(4, rel=0.01)
    assert score.splits == SPLITS
    assert ClassSums.of(0, ids, np.full((4000, 4), 0.25, np.float32)).score().value == pytest.approx(1)
    assert ClassSums.of(0, ids, sure[[0] * 4000]).score().value == pytest.approx(1)


def test_a_split_follows_from_id_and_seed():
    ids = np.arange(10_000)
    counts = np.bincount(split_of(ids, 0), minlength=SPLITS)
    assert counts.min() > 850
    np.testing.assert_array_equal(split_of(ids[::-1], 0)[::-1], split_of(ids, 0))
    assert (split_of(ids, 0) != split_of(ids, 1)).mean() > 0.8


def test_other_classes_do_not_merge_and_nothing_has_no_score():
    of = [ClassSums.of(0, np.arange(3), np.full((3, k), 1 / k, np.float32)) for k in (2, 3)]
    with pytest.raises(DataError, match="2 and 3 classes"):
        of[0].merge(of[1])
    with pytest.raises(DataError, match="at least one image"):
        ClassSums.of(0, np.arange(0), np.zeros((0, 2), np.float32)).score()
