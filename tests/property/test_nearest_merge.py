"""Nearest rows of parts are nearest rows of the whole, however the rows were split and whoever came first."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.metrics.nearest import Nearest, add_rows

pytestmark = pytest.mark.property


@st.composite
def split_rows(draw):
    """(queries, rows, ids, k, row indices of parts in random order); few levels, so that many distances are equal."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n, width, levels = draw(st.integers(1, 60)), draw(st.integers(1, 5)), draw(st.integers(1, 4))
    kind = draw(st.sampled_from([np.uint8, np.float32]))
    queries, rows = (rng.integers(0, levels + 1, (count, width)).astype(kind) for count in (7, n))
    if kind == np.float32 and draw(st.booleans()):
        rows *= np.float32(1e-3)
    ids = rng.permutation(10 * n)[:n]
    owners = rng.integers(0, draw(st.integers(1, 6)), n)
    parts = [np.flatnonzero(owners == owner) for owner in rng.permutation(6)]
    return queries, rows, ids, draw(st.integers(1, 12)), parts


@settings(max_examples=150)
@given(split_rows(), st.booleans())
def test_the_same_bits_for_any_split_and_order(case, one_after_the_other):
    queries, rows, ids, k, parts = case
    whole = add_rows(Nearest.none(len(queries), k), queries, rows, ids)
    merged = Nearest.none(len(queries), k)
    for part in parts:
        if one_after_the_other:
            merged = add_rows(merged, queries, rows[part], ids[part])
        else:
            merged = merged.merge(add_rows(Nearest.none(len(queries), k), queries, rows[part], ids[part]))
    assert merged.squared.tobytes() == whole.squared.tobytes()
    assert merged.ids.tobytes() == whole.ids.tobytes()
    twice = merged.merge(whole)
    assert (twice.squared.tobytes(), twice.ids.tobytes()) == (whole.squared.tobytes(), whole.ids.tobytes())
