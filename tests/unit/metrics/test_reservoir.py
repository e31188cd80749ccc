"""The bounded sample of features: chosen by id alone, nearly uniform, repeated rows count once."""

from dataclasses import replace

import numpy as np
import pytest

from pipeline.errors import DataError
from pipeline.metrics.protocol import Fingerprint
from pipeline.metrics.reservoir import Reservoir

pytestmark = pytest.mark.unit
FINGERPRINT = Fingerprint("class-cnn", "00", "none", 2, "r")


def features_of(ids: np.ndarray) -> np.ndarray:
    return np.stack([ids, -ids], axis=1).astype(np.float32)


def sample(ids, capacity: int = 50, seed: int = 0) -> Reservoir:
    ids = np.asarray(ids, np.int64)
    return Reservoir.empty(FINGERPRINT, capacity, seed).update(ids, features_of(ids))


def test_features_stay_with_their_ids():
    reservoir = sample(range(1000))
    assert len(reservoir.ids) == 50
    np.testing.assert_array_equal(reservoir.features, features_of(reservoir.ids))


def test_everything_is_kept_below_capacity():
    assert sorted(sample(range(20)).ids) == list(range(20))


def test_a_seed_is_another_sample_and_ids_are_drawn_evenly():
    seen = np.concatenate([sample(range(1000), seed=seed).ids for seed in range(40)])
    assert len(np.unique(seen)) > 700  # 2000 draws of 1000: 865 expected
    assert abs(seen.mean() - 499.5) < 4 * 288.7 / np.sqrt(2000)
    assert abs((seen % 2).mean() - 0.5) < 4 * 0.5 / np.sqrt(2000)


def test_repeated_delivery_counts_once_but_must_agree():
    reservoir = sample(range(30))
    assert reservoir.merge(sample(range(10, 40))).to_bytes() == sample(range(40)).to_bytes()
    with pytest.raises(DataError, match="image 5 was given twice"):
        reservoir.update(np.array([5]), np.zeros((1, 2)))


def test_subsets_differ_have_no_repeats_and_do_not_follow_the_order_of_arrival():
    one, other = sample(range(50)), sample(range(49, -1, -1))
    first, second = one.subset(0, 10), one.subset(1, 10)
    assert len(np.unique(first[:, 0])) == 10
    assert set(first[:, 0]) != set(second[:, 0])
    np.testing.assert_array_equal(first, other.subset(0, 10))
    with pytest.raises(DataError, match="at least as many"):
        one.subset(0, 51)


def test_subsets_are_not_the_head_of_the_sample():
    """Were the key reused, every subset of every run would be the same few images."""
    reservoir = sample(range(50))
    assert set(reservoir.subset(0, 10)[:, 0]) != set(reservoir.features[:10, 0])


def test_storage_round_trip():
    reservoir = sample(range(100), seed=3)
    copy = Reservoir.from_bytes(reservoir.to_bytes())
    assert (copy.fingerprint, copy.capacity, copy.seed) == (FINGERPRINT, 50, 3)
    assert copy.to_bytes() == reservoir.to_bytes()
    with pytest.raises(DataError, match="not a"):
        Reservoir.from_bytes(b"12345678")


def test_other_fingerprints_are_refused():
    reservoir = sample(range(5))
    with pytest.raises(DataError, match="seed 1"):
        reservoir.merge(sample(range(5), seed=1))
    with pytest.raises(DataError, match="capacity 9"):
        reservoir.merge(sample(range(5), capacity=9))
    with pytest.raises(DataError, match="reference"):
        reservoir.merge(replace(sample(range(5)), fingerprint=replace(FINGERPRINT, reference="x")))
    with pytest.raises(DataError, match=r"need features \[2, 2\]"):
        reservoir.update(np.array([1, 2]), np.zeros((2, 3)))
