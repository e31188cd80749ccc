"""Sketches of parts are sketches of the whole, however the images were split and whoever came first."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.metrics.feature_stats import FeatureStats
from pipeline.metrics.features import ExtractorOutput
from pipeline.metrics.frechet import frechet
from pipeline.metrics.moments import Moments, merge_all
from pipeline.metrics.protocol import Fingerprint
from pipeline.metrics.reservoir import Reservoir
from pipeline.metrics.scoring import score

pytestmark = pytest.mark.property
DIM = 4
FINGERPRINT = Fingerprint("class-cnn", "00", "none", DIM, "r")


@st.composite
def split_rows(draw):
    """(rows [n, DIM], list of row-index arrays: a partition in random order)."""
    n = draw(st.integers(2, 60))
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    rows = (rng.normal(size=(n, DIM)) * 10.0 ** draw(st.integers(-3, 3)) + draw(st.integers(-1000, 1000))).astype("f4")
    owners = rng.integers(0, draw(st.integers(1, 8)), n)
    parts = [np.flatnonzero(owners == owner) for owner in rng.permutation(8)]
    return rows, parts


@settings(max_examples=80)
@given(split_rows())
def test_moments_merge_in_any_order(case):
    rows, parts = case
    sketches = [Moments.empty(FINGERPRINT).update(rows[part]) for part in parts]
    merged = merge_all(sketches)
    assert merge_all(sketches[::-1]).to_bytes() == merged.to_bytes()
    exact = rows.astype(np.float64)
    scale = np.abs(exact - exact.mean(axis=0)).max() + 1e-12
    assert merged.n == len(rows)
    np.testing.assert_allclose(merged.mean, exact.mean(axis=0), rtol=1e-12, atol=1e-12 * scale + 2**-27)
    centred = exact - exact.mean(axis=0)
    np.testing.assert_allclose(
        merged.scatter, centred.T @ centred, rtol=1e-9, atol=(1e-9 * scale + 2**-26) * scale * len(rows)
    )


@settings(max_examples=60)
@given(split_rows(), st.integers(1, 70), st.integers(0, 2**40))
def test_a_reservoir_is_the_same_bits_for_any_split(case, capacity, seed):
    rows, parts = case
    ids = np.arange(len(rows)) * 7919 + seed
    whole = Reservoir.empty(FINGERPRINT, capacity, 5).update(ids, rows)
    merged = Reservoir.empty(FINGERPRINT, capacity, 5)
    for part in parts:
        merged = merged.merge(Reservoir.empty(FINGERPRINT, capacity, 5).update(ids[part], rows[part]))
    assert merged.to_bytes() == whole.to_bytes()


def sketched(rows: np.ndarray, ids: np.ndarray) -> FeatureStats:
    """Of the images `ids`, whose pixels and class probabilities follow from their features."""
    some = rows[ids]
    images = (some.view(np.uint8).reshape(len(ids), 4, DIM, 1)).copy()
    weights = 1 / (1 + np.abs(some.astype(np.float64)))
    answer = ExtractorOutput(some, (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32))
    return FeatureStats.of(FINGERPRINT, 5, ids, images, answer)


@settings(max_examples=40)
@given(split_rows(), st.randoms(use_true_random=False))
def test_a_sketch_is_the_same_bits_for_any_split_order_and_tree(case, random):
    """And so is every score that is made of it, down to the last bit."""
    rows, parts = case
    whole = sketched(rows, np.arange(len(rows)))
    sketches = [sketched(rows, part) for part in parts]
    random.shuffle(sketches)
    assert merge_all(sketches).to_bytes() == whole.to_bytes()
    while len(sketches) > 1:
        a, b = (sketches.pop(random.randrange(len(sketches))) for _ in range(2))
        sketches.append(FeatureStats.from_bytes(a.merge(b).to_bytes()))
    assert sketches[0].to_bytes() == whole.to_bytes()
    assert list(score(whole, {"samples": sketches[0]})) == list(score(whole, {"samples": whole}))


@settings(max_examples=60)
@given(split_rows(), split_rows())
def test_frechet_is_symmetric_and_not_negative(one, other):
    a = Moments.empty(FINGERPRINT).update(one[0])
    b = Moments.empty(FINGERPRINT).update(other[0])
    forward, backward = frechet(a, b).value, frechet(b, a).value
    scale = np.trace(a.covariance) + np.trace(b.covariance) + 1e-12
    assert forward >= 0
    # Square roots of eigenvalues that should be 0 turn rounding of 1e-16 into 1e-8.
    assert forward == pytest.approx(backward, rel=1e-6, abs=1e-6 * scale)
