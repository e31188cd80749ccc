"""The near-copy rule: flagged and unflagged samples, the held-out baseline, and the reported quantiles."""

import numpy as np
import pytest

from pipeline.metrics.memorisation import QUANTILES, Share, find_near_copies, relative_distances
from pipeline.metrics.nearest import Nearest, add_rows

pytestmark = pytest.mark.unit

NUM_ROWS, WIDTH, K = 400, 48, 20


def found(queries: np.ndarray, rows: np.ndarray) -> Nearest:
    return add_rows(Nearest.none(len(queries), K), queries, rows, np.arange(len(rows)))


@pytest.fixture
def rows() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (NUM_ROWS, WIDTH), dtype=np.uint8)


def unseen(seed: int, count: int = 100) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, WIDTH), dtype=np.uint8)


def test_copies_are_flagged_and_unrelated_images_are_not(rows: np.ndarray):
    samples = unseen(1)
    samples[5] = rows[77]
    samples[60] = np.clip(rows[300].astype(int) + np.random.default_rng(9).integers(-9, 10, WIDTH), 0, 255)
    result, relative, flags = find_near_copies(
        "pixel", "levels", 1.0, 0.5, found(samples, rows), found(unseen(2), rows)
    )
    assert list(np.flatnonzero(flags)) == [5, 60]
    assert (result.near_copies.count, result.exact_copies, result.baseline.count) == (2, 1, 0)
    assert relative[5] == 0 < relative[60] <= result.threshold < 0.5
    assert result.samples.relative[0] == 0 < result.heldout.relative[0]


def test_held_out_images_much_alike_to_training_images_show_in_the_baseline(rows: np.ndarray):
    """A dataset with near-duplicates across its splits: the same share of samples shows no memorisation."""
    heldout = unseen(2)
    heldout[:10] = rows[:10] ^ 1
    result, _, flags = find_near_copies("pixel", "levels", 1.0, 0.5, found(unseen(1), rows), found(heldout, rows))
    assert result.baseline.count == 10
    assert not flags.any()


def test_a_copy_of_an_image_that_training_holds_twice_is_flagged(rows: np.ndarray):
    """The ratio of the two nearest alone is 1 here."""
    rows[8] = rows[7] ^ 1
    samples = unseen(1)
    samples[0] = rows[7] ^ 2
    nearest = found(samples, rows)
    assert nearest.squared[0, 0] / nearest.squared[0, 1] > 0.2
    assert find_near_copies("pixel", "levels", 1.0, 0.5, nearest, found(unseen(2), rows))[2][0]


def test_the_scale_changes_distances_but_no_flag(rows: np.ndarray):
    samples, heldout = found(unseen(1), rows), found(unseen(2), rows)
    one, other = (find_near_copies("pixel", "u", scale, 0.95, samples, heldout)[0] for scale in (1.0, 0.25))
    assert other.samples.distance == pytest.approx([value / 4 for value in one.samples.distance])
    assert (one.near_copies, one.baseline) == (other.near_copies, other.baseline)


def test_relative_distances_by_hand():
    distances = np.array([[1.0, 2.0, 4.0], [0.0, 0.0, 0.0], [0.0, 3.0, 3.0], [2.0, 2.0, 2.0]])
    assert list(relative_distances(distances)) == [1 / 3, 0, 0, 1]


def test_where_all_held_out_images_are_copies_only_copies_are_flagged(rows: np.ndarray):
    samples = unseen(1)
    samples[3] = rows[4]
    result, _, flags = find_near_copies("pixel", "levels", 1.0, 0.5, found(samples, rows), found(rows[:50], rows))
    assert result.threshold == 0
    assert list(np.flatnonzero(flags)) == [3]
    assert result.baseline.value == 1


def test_quantiles_are_of_the_nearest_distance(rows: np.ndarray):
    samples = found(unseen(1), rows)
    result, relative, _ = find_near_copies("pixel", "levels", 1.0, 0.5, samples, found(unseen(2), rows))
    nearest = np.sqrt(samples.squared[:, 0])
    assert result.samples.distance[QUANTILES.index(0.5)] == np.median(nearest)
    assert (result.samples.distance[0], result.samples.distance[-1]) == (nearest.min(), nearest.max())
    assert result.samples.relative[-1] == relative.max()


@pytest.mark.parametrize(
    ("count", "n", "low", "high"),
    [(0, 10, 0.0, 0.27753), (1, 10, 0.01788, 0.40415), (50, 100, 0.40383, 0.59617), (10, 10, 0.72247, 1.0)],
)
def test_wilson_intervals(count: int, n: int, low: float, high: float):
    """0 of 10 is z^2 / (n + z^2) at most; the others are widely tabulated."""
    share = Share.of(np.arange(n) < count)
    assert (share.count, share.n, share.value) == (count, n, count / n)
    assert (share.low, share.high) == pytest.approx((low, high), abs=2e-5)
