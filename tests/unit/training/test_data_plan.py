"""The order of training data does not depend on workers or restarts."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import ConfigError, DataError
from pipeline.training.data_plan import Cursor, TrainPlan, keyed_permutation, lanes_of_worker

pytestmark = pytest.mark.unit


def plan(shard_rows=(32,) * 9 + (20,), lanes=4, micro_batch=8, seed=0):
    return TrainPlan("digest", tuple(shard_rows), lanes, micro_batch, seed)


def batches(p, lane, cursor, steps):
    """(epoch, batch, row names) of a lane, as the feed delivers them."""
    for unit in p.remaining(lane, cursor, steps):
        rows = p.rows(unit)
        for number in range(unit.take - unit.skip):
            names = [(unit.shard, int(r)) for r in rows[number * p.micro_batch : (number + 1) * p.micro_batch]]
            yield unit.epoch, unit.first_batch + unit.skip + number, names


@given(
    rows=st.lists(st.integers(1, 50), min_size=1, max_size=30),
    lanes=st.sampled_from([1, 2, 3, 4]),
    micro_batch=st.integers(1, 12),
    epoch=st.integers(0, 5),
)
@settings(max_examples=150)
def test_an_epoch_gives_every_lane_as_much_and_no_row_twice(rows, lanes, micro_batch, epoch):
    if sum(r >= micro_batch for r in rows) < lanes:
        with pytest.raises(DataError, match=r"train\.lanes"):
            plan(rows, lanes, micro_batch)
        return
    p = plan(rows, lanes, micro_batch)
    e = p.epoch(epoch)
    seen = []
    for lane in range(lanes):
        numbers = []
        for unit in e.lanes[lane]:
            numbers += range(unit.first_batch + unit.skip, unit.first_batch + unit.take)
            seen += [(unit.shard, int(row)) for row in p.rows(unit)]
        assert numbers == list(range(e.batches))
    assert len(seen) == len(set(seen)) == e.batches * lanes * micro_batch
    assert e.leftover_rows == sum(rows) - len(seen)


@given(done=st.integers(0, 40), steps=st.integers(41, 60), lane=st.integers(0, 3))
@settings(max_examples=60)
def test_resuming_at_any_step_goes_on_where_the_whole_run_was(done, steps, lane):
    p = plan()
    whole = list(batches(p, lane, Cursor(), steps))
    assert len(whole) == steps
    epoch, number, _ = whole[done - 1] if done else (0, -1, None)
    resumed = list(batches(p, lane, Cursor(epoch, number + 1, done), steps))
    assert resumed == whole[done:]


def test_resume_does_not_read_consumed_shards():
    p = plan()
    units = p.epoch(0).lanes[0]
    assert [u.shard for u in p.remaining(0, Cursor(0, units[0].take, 4), p.epoch(0).batches)] == [
        u.shard for u in units[1:]
    ]


def test_epochs_and_seeds_differ_in_order():
    assert [u.shard for u in plan().epoch(0).lanes[0]] != [u.shard for u in plan().epoch(1).lanes[0]]
    one, other = plan(seed=0).epoch(0), plan(seed=1).epoch(0)
    assert one != other
    unit = one.lanes[0][0]
    assert not np.array_equal(plan(seed=0).rows(unit), plan(seed=1).rows(unit))


def test_left_out_rows_are_other_ones_each_epoch():
    p = plan(shard_rows=(20,) * 4, micro_batch=8)
    used = [{(u.shard, int(r)) for lane in p.epoch(e).lanes for u in lane for r in p.rows(u)} for e in range(4)]
    assert len(set().union(*used)) > max(map(len, used))


def test_workers_partition_the_lanes():
    for world_size in (1, 2, 3, 4):
        owned = [lanes_of_worker(rank, world_size, 4) for rank in range(world_size)]
        assert sorted(lane for lanes in owned for lane in lanes) == [0, 1, 2, 3]
        assert max(map(len, owned)) - min(map(len, owned)) <= 1
    with pytest.raises(ConfigError, match=r"5 workers are more than train\.lanes = 4"):
        lanes_of_worker(0, 5, 4)


def split_mix_64(count, key):
    """SplitMix64 in Python's own integers, after Steele, Lea and Flood 2014."""
    state = int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:8], "little")
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        z = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
        yield z ^ (z >> 31)


def test_keyed_permutation_is_the_rank_of_split_mix_words():
    words = list(split_mix_64(1000, ("golden", 1)))
    assert keyed_permutation(1000, "golden", 1).tolist() == sorted(range(1000), key=words.__getitem__)
    assert keyed_permutation(0, "a").tolist() == []


def test_permutations_are_uniform():
    """Each value is at each place about equally often: chi-squared of 5 x 5 counts, 16 degrees of freedom."""
    counts = np.zeros((5, 5))
    for key in range(5000):
        counts[np.arange(5), keyed_permutation(5, key)] += 1
    assert ((counts - 1000) ** 2 / 1000).sum() < 45
