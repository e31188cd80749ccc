"""How well the feed shuffles, with bars; and that a resumed lane reads nothing that it has consumed."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from benchmarks.shuffle import Spread, adjacent, any_two, epochs_of, mates, places, plan_of, spread
from pipeline.training.data_plan import Cursor, TrainPlan

pytestmark = pytest.mark.unit

ROWS, LANES, MICRO = 256, 4, 8
BATCH = LANES * MICRO
PLAN = plan_of(64 * ROWS, ROWS, LANES, MICRO)
RAGGED = plan_of(30 * ROWS + 77, ROWS, LANES, MICRO)
EPOCHS = [places(PLAN, epoch) for epoch in range(6)]


def test_places_are_those_of_the_feed():
    """Walked as a lane's reader walks: unit by unit, micro-batch by micro-batch."""
    first = np.cumsum([0, *RAGGED.shard_rows])
    found, batches = places(RAGGED, 2), RAGGED.epoch(2).batches
    walked = np.full(len(found), -1)
    for lane in range(LANES):
        number = 0
        for unit in RAGGED.remaining(lane, Cursor(epoch=2), batches):
            for row in RAGGED.rows(unit):
                batch, slot = divmod(number, MICRO)
                walked[first[unit.shard] + row] = batch * BATCH + lane * MICRO + slot
                number += 1
    np.testing.assert_array_equal(found, walked)


def test_spread_by_hand():
    place = np.array([0, 1, 4, 9, -1, 11])
    pairs = np.array([0, 0, 0, 0]), np.array([1, 2, 3, 4])  # the last pair has one that is left out
    assert spread(place, pairs, 4) == Spread(low=0.1, median=1.0, high=1.9, images=4.0, together=1 / 3)
    assert [rows.tolist() for rows in adjacent(plan_of(4, 2, 1, 1))] == [[0, 1, 2], [1, 2, 3]]
    a, b = mates(RAGGED, 0)
    assert np.array_equal(a // ROWS, b // ROWS)
    assert len(np.unique([a, b])) == 30 * ROWS + 76
    assert len(np.unique(any_two(RAGGED, 0))) == 30 * ROWS + 76


@pytest.mark.parametrize("pairs", ["adjacent", "mates"])
def test_what_lies_together_in_storage_is_spread_over_the_unit(pairs):
    """32 micro-batches a shard: distances of two random ones have median 9, and 7 of 255 mates share a batch."""
    found = [spread(p, adjacent(PLAN) if pairs == "adjacent" else mates(PLAN, e), BATCH) for e, p in enumerate(EPOCHS)]
    assert min(s.median for s in found) >= 8
    assert np.mean([s.together for s in found]) == pytest.approx(7 / 255, rel=0.1)
    if pairs == "mates":
        assert max(s.high for s in found) < ROWS / MICRO, "a shard is not spread beyond its own micro-batches"


def test_the_plan_of_the_documentation_keeps_its_bars():
    plan = plan_of(60_000)
    place = places(plan, 0)
    for pairs in (adjacent(plan), mates(plan, 0)):
        found = spread(place, pairs, 128)
        assert found.median >= 15
        assert found.images >= 2000
        assert found.together <= 0.02
    a, b = any_two(plan, 0)
    assert spread(place, (a, b), 128).median > 100


def test_a_global_batch_has_as_many_images_of_each_of_its_lanes_shards():
    place = EPOCHS[0]
    shard = np.repeat(np.arange(64), ROWS)
    for batch in range(0, place.max() // BATCH, 37):
        _, counts = np.unique(shard[place // BATCH == batch], return_counts=True)
        assert counts.tolist() == [MICRO] * LANES


def test_every_row_at_most_once_an_epoch_and_no_place_empty():
    for plan in (PLAN, RAGGED):
        for epoch in range(4):
            place = places(plan, epoch)
            used = np.sort(place[place >= 0])
            assert used.tolist() == list(range(plan.epoch(epoch).batches * BATCH))
            assert (place < 0).sum() == plan.epoch(epoch).leftover_rows


def test_epochs_are_in_orders_that_know_nothing_of_each_other():
    """Of shards as of rows inside a shard: correlations are within what independent orders have by chance."""
    shards = [place.reshape(64, ROWS).min(axis=1).argsort().argsort() for place in EPOCHS]
    inside = [place.reshape(64, ROWS).argsort(axis=1).argsort(axis=1) for place in EPOCHS]
    for one in range(len(EPOCHS)):
        for other in range(one):
            assert abs(np.corrcoef(shards[one], shards[other])[0, 1]) < 4 / 64**0.5
            assert abs(np.corrcoef(inside[one].ravel(), inside[other].ravel())[0, 1]) < 4 / (64 * ROWS) ** 0.5
    assert all(len({tuple(order) for order in np.array(inside)[:, shard]}) == len(EPOCHS) for shard in range(64))
    assert epochs_of(EPOCHS, BATCH).correlation < 4 / 64**0.5


def test_companions_of_a_batch_are_mostly_other_ones_in_the_next_epoch():
    """7 of a row's 31 companions are shard-mates, and 7 / 255 of those meet it again; the others as chance has it."""
    chance = 31 / (64 * ROWS - 1)
    again = epochs_of(EPOCHS, BATCH).together_again
    assert again == pytest.approx(7 / 31 * 7 / 255 + 24 / 31 * chance, rel=0.15)


def test_left_out_rows_differ_and_come_back():
    """30 full shards and one of 77 rows on 4 lanes: 3 shards wait each epoch, other ones."""
    out = [set(np.flatnonzero(places(RAGGED, epoch) < 0)) for epoch in range(6)]
    assert all(0 < len(one) <= 0.25 * len(places(RAGGED, 0)) for one in out)
    assert all(one != other for one, other in pairwise(out))
    over = epochs_of([places(RAGGED, epoch) for epoch in range(6)], BATCH)
    assert over.unseen[0] == pytest.approx(len(out[0]) / len(places(RAGGED, 0)))
    assert over.unseen[-1] == 0
    assert over.left_out == pytest.approx(np.mean([len(one) for one in out]) / len(places(RAGGED, 0)))


def consumed(plan: TrainPlan, lane: int, cursor: Cursor, steps: int):
    """(epoch, batch, shard, rows) of a lane's micro-batches from a cursor on."""
    for unit in plan.remaining(lane, cursor, steps):
        rows = plan.rows(unit).reshape(-1, plan.micro_batch)
        assert len(rows) == unit.take - unit.skip > 0, "a unit of nothing would be read for nothing"
        for number, names in enumerate(rows.tolist(), start=unit.first_batch + unit.skip):
            yield unit.epoch, number, unit.shard, tuple(names)


@given(
    rows=st.lists(st.integers(1, 40), min_size=1, max_size=16),
    lanes=st.integers(1, 4),
    micro_batch=st.integers(1, 8),
    seed=st.integers(0, 3),
    steps=st.integers(1, 60),
    share=st.floats(0, 1),
)
@settings(max_examples=150)
def test_a_resumed_lane_reads_no_consumed_unit_again_and_goes_on_in_step(rows, lanes, micro_batch, seed, steps, share):
    assume(sum(r >= micro_batch for r in rows) >= lanes)
    plan = TrainPlan("digest", tuple(rows), lanes, micro_batch, seed)
    done = round(share * steps)
    for lane in range(lanes):
        whole = list(consumed(plan, lane, Cursor(), steps))
        assert len(whole) == steps
        epoch, number, *_ = whole[done - 1] if done else (0, -1)
        cursor = Cursor(epoch, number + 1, done)
        assert whole[:done] + list(consumed(plan, lane, cursor, steps)) == whole
        for unit in plan.remaining(lane, cursor, steps):
            assert (unit.epoch, unit.first_batch + unit.take) > (cursor.epoch, cursor.batches)
            assert (unit.epoch, unit.first_batch + unit.skip) >= (cursor.epoch, cursor.batches)
