"""Moments: exact on small data, bit-exact through storage and merging, refusal of other fingerprints."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from pipeline.errors import DataError
from pipeline.metrics.moments import Moments, merge_all
from pipeline.metrics.protocol import Fingerprint

pytestmark = pytest.mark.unit
FINGERPRINT = Fingerprint("class-cnn", "ab" * 32, "uint8 8x8x1 / 127.5 - 1", 3, "digits@12ab/train")


def rows(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, 3)).astype(np.float32)


def test_worked_example():
    moments = Moments.empty(replace(FINGERPRINT, feature_dim=2)).update(np.array([[1.0, 0.0], [3.0, 4.0]]))
    assert moments.n == 2
    np.testing.assert_array_equal(moments.mean, [2.0, 2.0])
    np.testing.assert_array_equal(moments.scatter, [[2.0, 4.0], [4.0, 8.0]])
    np.testing.assert_array_equal(moments.covariance, [[2.0, 4.0], [4.0, 8.0]])


def test_updates_give_numpys_mean_and_covariance():
    data = rows(100)
    moments = Moments.empty(FINGERPRINT)
    for part in np.array_split(data, 7):
        moments = moments.update(part)
    np.testing.assert_allclose(moments.mean, data.astype(np.float64).mean(axis=0), rtol=0, atol=2**-27)
    np.testing.assert_allclose(moments.covariance, np.cov(data.astype(np.float64), rowvar=False), rtol=1e-7, atol=1e-9)


def test_a_large_mean_costs_no_digits():
    """Sums of raw squares in float64 would lose eleven of the sixteen."""
    data = np.random.default_rng(0).normal(size=(1000, 3))
    far = Moments.empty(FINGERPRINT).update(data[:300] + 1e5).update(data[300:] + 1e5)
    np.testing.assert_allclose(far.covariance, np.cov(data, rowvar=False), rtol=1e-8, atol=1e-8)
    with pytest.raises(DataError, match="magnitudes below"):
        far.update(data + 2e5)


def test_sums_are_those_of_rational_arithmetic():
    """No rounding beyond that of the rows to multiples of 2^-26, over several blocks and both signs."""
    data = np.concatenate([rows(2500) * scale for scale in (1e-4, 1.0, 3e4)])
    moments = Moments.empty(FINGERPRINT).update(data)
    exact = [[Fraction(round(Fraction(float(x)) * 2**26), 2**26) for x in row] for row in data]
    means = [sum(column) / len(exact) for column in zip(*exact, strict=True)]
    for i, j in ((0, 0), (0, 2), (1, 2)):
        scatter = sum(row[i] * row[j] for row in exact) - len(exact) * means[i] * means[j]
        assert moments.scatter[i, j] == moments.scatter[j, i] == pytest.approx(float(scatter), rel=1e-15)
    assert moments.mean.tolist() == pytest.approx([float(mean) for mean in means], rel=1e-15)


def test_removing_added_rows_restores_the_moments():
    moments = Moments.empty(FINGERPRINT).update(rows(30, 1)).update(rows(20, 2))
    assert moments.without(rows(20, 2)).to_bytes() == Moments.empty(FINGERPRINT).update(rows(30, 1)).to_bytes()


def test_empty_parts_change_nothing():
    moments = Moments.empty(FINGERPRINT).update(rows(5))
    for same in (
        moments.update(rows(0)),
        moments.merge(Moments.empty(FINGERPRINT)),
        Moments.empty(FINGERPRINT).merge(moments),
    ):
        assert same.to_bytes() == moments.to_bytes()


def test_storage_keeps_every_bit():
    moments = Moments.empty(FINGERPRINT).update(rows(10))
    copy = Moments.from_bytes(moments.to_bytes())
    assert copy.fingerprint == FINGERPRINT
    assert copy.n == 10
    np.testing.assert_array_equal(copy.mean, moments.mean)
    np.testing.assert_array_equal(copy.scatter, moments.scatter)
    assert copy.to_bytes() == moments.to_bytes()


def test_damaged_and_foreign_bytes_are_refused():
    data = Moments.empty(FINGERPRINT).update(rows(10)).to_bytes()
    for bad in (b"", b"no", data[:-1], data[:40], data.replace(b"moments", b"nothing")):
        with pytest.raises(DataError, match="moments"):
            Moments.from_bytes(bad)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("extractor", "rotation-cnn"),
        ("weights_sha256", "cd" * 32),
        ("preprocessing", "other"),
        ("feature_dim", 4),
        ("reference", "digits@12ab/heldout"),
    ],
)
def test_other_fingerprints_are_refused_by_field(field, value):
    ours = Moments.empty(FINGERPRINT)
    theirs = Moments.empty(replace(FINGERPRINT, **{field: value}))
    with pytest.raises(DataError, match=f"{field}: .*{value}"):
        ours.merge(theirs)


@pytest.mark.parametrize("bad", [np.zeros((2, 4)), np.zeros(3), np.full((1, 3), np.nan), np.full((1, 3), np.inf)])
def test_bad_features_are_refused(bad):
    with pytest.raises(DataError, match="features"):
        Moments.empty(FINGERPRINT).update(bad)


def test_a_covariance_needs_two_rows_and_a_merge_one_part():
    with pytest.raises(DataError, match="at least 2"):
        _ = Moments.empty(FINGERPRINT).update(rows(1)).covariance
    with pytest.raises(DataError, match="no parts"):
        merge_all([])


def test_merging_in_another_order_and_tree_gives_the_same_bits():
    parts = [Moments.empty(FINGERPRINT).update(rows(20, seed)) for seed in range(6)]
    a, b = merge_all(parts[3:]), merge_all(parts[2::-1])
    assert merge_all(iter(parts)).to_bytes() == merge_all(reversed(parts)).to_bytes() == a.merge(b).to_bytes()
    assert merge_all(parts).n == 120
