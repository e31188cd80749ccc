"""Sample ids to shards and labels: exact at any size, without a list."""

import math
import time
import tracemalloc
from fractions import Fraction

import numpy as np
import pytest
from tiny_samples import sample_plan

from pipeline.generation.sample_plan import PlannedSamples, ShardLayout, missing_shards, mix_counts, mixed_labels

pytestmark = pytest.mark.unit


def layout(*bounds, size=4):
    return ShardLayout(np.array(bounds, np.int64), size)


def test_a_shard_never_spans_two_segments():
    cut = layout(0, 10, 11, 19)
    assert [list(cut.ids(shard)) for shard in range(cut.num_shards)] == [
        [0, 1, 2, 3],
        [4, 5, 6, 7],
        [8, 9],
        [10],
        [11, 12, 13, 14],
        [15, 16, 17, 18],
    ]
    assert [cut.shard_of(i) for i in range(19)] == [shard for shard in range(6) for _ in cut.ids(shard)]
    assert cut.rows(np.array([0, 2, 3, 5])) == 4 + 2 + 1 + 4
    assert cut.rows(np.arange(6)) == 19
    assert [cut.batches(size) for size in (1, 2, 3, 4)] == [19, 2 + 2 + 1 + 1 + 2 + 2, 2 + 2 + 1 + 1 + 2 + 2, 6]


def test_ids_have_64_bits():
    cut = layout(0, 3 * 10**18, 3 * 10**18 + 5)
    last = cut.num_shards - 1
    assert list(cut.ids(last)) == [3 * 10**18 + 4]
    assert cut.shard_of(3 * 10**18 + 4) == last
    assert cut.shard_of(3 * 10**18 - 1) == last - 2


def test_a_plan_of_a_billion_and_its_pending_set_take_seconds_and_little_memory():
    """The bar is 5 s and 500 MB; half of the shards have a marker, at random."""
    tracemalloc.start()
    began = time.process_time()
    cut = PlannedSamples(sample_plan(num_samples=10**9, shard_size=1024)).layout
    committed = np.random.default_rng(0).permutation(cut.num_shards)[: cut.num_shards // 2]
    missing = missing_shards(cut.num_shards, committed)
    left = cut.rows(missing)
    assert time.process_time() - began < 5
    assert tracemalloc.get_traced_memory()[1] < 500e6
    tracemalloc.stop()
    assert len(missing) == cut.num_shards - len(committed) == 488_282
    assert not set(missing[:1000].tolist()) & set(committed.tolist())
    assert left + cut.rows(committed) == 10**9


def test_missing_is_what_has_no_marker_whatever_the_order():
    assert missing_shards(5, iter([3, 0])).tolist() == [1, 2, 4]
    assert missing_shards(3, [0, 1, 2]).tolist() == []
    many = 2**17 + 5
    assert missing_shards(many, iter(range(0, many, 2))).tolist() == list(range(1, many, 2))
    assert missing_shards(2, iter([1, 7])).tolist() == [0]  # a shard of a later part of the job is no business of this


@pytest.mark.parametrize("count", [1, 2, 7, 10, 99, 1000])
@pytest.mark.parametrize("weights", [(0.5, 0.5), (1, 1, 1), (0.7, 0.2, 0.1), (1e-9, 5.0), (3, 1)])
def test_counts_follow_the_mix_to_less_than_one(count, weights):
    counts = mix_counts(count, weights)
    assert sum(counts) == count
    total = sum(map(Fraction, weights))
    shares = [count * Fraction(w) / total for w in weights]
    assert all(abs(c - share) < 1 for c, share in zip(counts, shares, strict=True))
    # Largest remainder: whoever was rounded up had no smaller remainder than whoever was rounded down.
    up = [s - math.floor(s) for c, s in zip(counts, shares, strict=True) if c > s]
    down = [s - math.floor(s) for c, s in zip(counts, shares, strict=True) if c < s]
    assert not up or not down or min(up) >= max(down)


def test_equal_remainders_go_to_the_first():
    assert mix_counts(1, (0.5, 0.5)) == [1, 0]
    assert mix_counts(5, (1, 1)) == [3, 2]


@pytest.mark.parametrize("count", [1, 2, 3, 10, 89, 1000, 1024])
def test_labels_of_a_mix_are_exact_and_well_stirred(count):
    mix = ((0, 0.5), (3, 0.3), (4, 0.2))
    labels = mixed_labels(range(100, 100 + count), 100, count, mix)
    assert [int((labels == label).sum()) for label, _ in mix] == mix_counts(count, [0.5, 0.3, 0.2])
    for n in range(10, count):
        for label, share in mix:
            assert abs(int((labels[:n] == label).sum()) - share * n) < 4, (n, label)
    # A label is a function of its id: any part of the range gives the same.
    assert mixed_labels(range(101, 100 + count), 100, count, mix).tolist() == labels[1:].tolist()


def test_labels_of_a_huge_mix_are_found_without_a_list():
    last = 10**18 - 1
    assert mixed_labels(range(last, last + 1), 0, 10**18, ((2, 1.0),)).tolist() == [2]


def test_what_a_sample_is_to_be():
    plain = PlannedSamples(sample_plan()).specs(range(4, 8))
    assert (plain.labels, plain.guidance, plain.sampler, plain.steps) == (None, None, "ddim", 5)
    assert plain.seeds.tolist() == [3] * 4
    assert PlannedSamples(sample_plan(num_classes=3)).specs(range(4, 8)).labels.tolist() == [1, 2, 0, 1]
    mixed = PlannedSamples(sample_plan(num_classes=3, labels=((2, 1.0),), guidance=2.5)).specs(range(4, 8))
    assert mixed.labels.tolist() == [2] * 4
    assert mixed.guidance == 2.5


def test_a_plan_without_the_newer_settings_keeps_its_fingerprint():
    """Markers at rest carry it."""
    assert sample_plan().fingerprint == "3f77908ff317f03e2cf4523641103689428ca7768fb12f9950a469bac3ae374f"
    changes = [{"guidance": 1.0}, {"guidance": 2.0, "guidance_interval": (0, 9)}, {"labels": ((0, 1.0),)}]
    assert len({sample_plan(**change).fingerprint for change in [{}, *changes]}) == 4
