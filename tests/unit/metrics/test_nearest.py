"""The k nearest rows against brute force in exact arithmetic, and rows in any blocks and order."""

import numpy as np
import pytest

from pipeline.metrics import nearest
from pipeline.metrics.nearest import NO_ROW, Nearest, add_rows

pytestmark = pytest.mark.unit


def brute_force(queries: np.ndarray, rows: np.ndarray, ids: np.ndarray, k: int) -> Nearest:
    kind = np.int64 if queries.dtype == np.uint8 else np.float64
    squared = np.stack([np.square(q.astype(kind) - rows.astype(kind)).sum(axis=1) for q in queries])
    order = np.stack([np.lexsort((ids, line))[:k] for line in squared])
    return Nearest(np.take_along_axis(squared, order, 1).astype(np.float64), ids[order])


def same_bits(one: Nearest, other: Nearest) -> bool:
    return one.squared.tobytes() == other.squared.tobytes() and one.ids.tobytes() == other.ids.tobytes()


def vectors(kind: str, count: int, width: int, seed: int) -> np.ndarray:
    draw = np.random.default_rng(seed)
    if kind == "pixel":
        return draw.integers(0, 256, (count, width), dtype=np.uint8)
    return np.maximum(draw.normal(100, 0.01, (count, width)), 0).astype(np.float32)  # far from 0, close to each other


@pytest.mark.parametrize("kind", ["pixel", "feature"])
@pytest.mark.parametrize("width", [3, 1024, 3072])
def test_exactly_those_of_brute_force(kind: str, width: int):
    queries, rows, ids = vectors(kind, 20, width, 0), vectors(kind, 300, width, 1), np.arange(300) * 7 + 5
    rows[17] = queries[3]
    rows[200:203] = queries[4]
    expected = brute_force(queries, rows, ids, 6)
    found = add_rows(Nearest.none(20, 6), queries, rows, ids)
    assert same_bits(found, expected)
    assert found.squared[3, 0] == 0
    assert found.ids[3, 0] == ids[17]
    assert list(found.ids[4, :3]) == list(ids[200:203])


def test_float32_products_alone_find_other_neighbours():
    """The features in this file separate the exact search from one by float32 matrix products."""
    queries, rows = vectors("feature", 20, 1024, 0), vectors("feature", 300, 1024, 1)
    norms = np.square(rows).sum(axis=1)
    plain = (np.square(queries).sum(axis=1)[:, None] + norms - 2 * queries @ rows.T).argmin(axis=1)
    assert (plain != brute_force(queries, rows, np.arange(300), 1).ids[:, 0]).any()


@pytest.mark.parametrize("kind", ["pixel", "feature"])
def test_block_sizes_change_no_bit(kind: str, monkeypatch: pytest.MonkeyPatch):
    queries, rows, ids = vectors(kind, 33, 50, 2), vectors(kind, 257, 50, 3), np.arange(257)
    whole = add_rows(Nearest.none(33, 9), queries, rows, ids)
    for query_block, row_block, pair_bytes in ((1, 257, 1), (7, 5, 8 * 50 * 3), (33, 1, 2**24)):
        monkeypatch.setattr(nearest, "_QUERY_BLOCK", query_block)
        monkeypatch.setattr(nearest, "_ROW_BLOCK", row_block)
        monkeypatch.setattr(nearest, "_PAIR_BYTES", pair_bytes)
        assert same_bits(add_rows(Nearest.none(33, 9), queries, rows, ids), whole)


def test_white_against_black_is_exact():
    """The largest distance of pixels: 255^2 each, at a width that float32 alone could not add."""
    white, black = np.full((1, 12288), 255, np.uint8), np.zeros((1, 12288), np.uint8)
    assert add_rows(Nearest.none(1, 1), white, black, np.array([0])).squared[0, 0] == 12288 * 255**2


def test_ties_are_broken_by_id_and_missing_rows_are_marked():
    queries, rows = np.zeros((1, 4), np.uint8), np.ones((3, 4), np.uint8)
    found = add_rows(Nearest.none(1, 5), queries, rows, np.array([30, 10, 20]))
    assert list(found.ids[0]) == [10, 20, 30, NO_ROW, NO_ROW]
    assert list(found.squared[0]) == [4, 4, 4, np.inf, np.inf]


def test_a_row_under_one_id_counts_once_at_its_smaller_distance():
    queries = np.zeros((1, 4), np.uint8)
    once = add_rows(Nearest.none(1, 3), queries, np.full((2, 4), 3, np.uint8), np.array([1, 2]))
    both = add_rows(once, queries, np.full((1, 4), 1, np.uint8), np.array([2]))
    assert list(both.ids[0]) == [2, 1, NO_ROW]
    assert list(both.squared[0, :2]) == [4, 36]
    assert same_bits(both.merge(both), both)


@pytest.mark.parametrize(
    ("queries", "rows", "ids"),
    [
        (np.zeros((1, 4), np.uint8), np.zeros((1, 4), np.float32), 1),
        (np.zeros((1, 4)), np.zeros((1, 4)), 1),
        (np.zeros((1, 4), np.uint8), np.zeros((1, 5), np.uint8), 1),
        (np.zeros((1, 4), np.uint8), np.zeros((2, 4), np.uint8), 1),
    ],
)
def test_what_does_not_fit_is_refused(queries: np.ndarray, rows: np.ndarray, ids: int):
    with pytest.raises(ValueError, match=r"need uint8|do not fit"):
        add_rows(Nearest.none(1, 1), queries, rows, np.arange(ids))
