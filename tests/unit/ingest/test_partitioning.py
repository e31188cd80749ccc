"""Position, split and shard of an image follow from its content, not from tasks, slots or other images."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.ingest.partitioning import (
    Slots,
    is_heldout,
    keep_mask,
    rows_per_shard,
    shard_groups,
    shuffle_key,
    shuffle_order,
)
from pipeline.ingest.sorted_runs import RunFormat

pytestmark = pytest.mark.unit


def sha(number):
    return hashlib.sha256(str(number).encode()).hexdigest()


def records(numbers, seed=0):
    """One record for each image, in this source order."""
    rows = [(shuffle_key(sha(n), seed), bytes.fromhex(sha(n)), 0, i, 0, 0, 0, (0, 0)) for i, n in enumerate(numbers)]
    return np.array(rows, RunFormat(1, 1).record)


def test_the_shuffle_key_is_pinned():
    """Another key would move every image of every dataset at its next version."""
    assert shuffle_key("ab" * 32, 7) == int(hashlib.sha256(("7:" + "ab" * 32).encode()).hexdigest()[:16], 16)
    assert shuffle_key(sha(1), 0) != shuffle_key(sha(1), 1)


@pytest.mark.parametrize("slots", [Slots(16, 0), Slots(16, 2), Slots(1000, 333), Slots(4096, 1)])
def test_slots_and_their_keys_agree(slots):
    following = {}
    for slot in range(slots.count):
        low, high = slots.keys(range(slot, slot + 1))
        split = "train" if slot < slots.train else "heldout"
        assert low == following.get(split, 0)
        following[split] = high + 1
        share = 0.0 if split == "train" else 1.0
        assert slots.of("0" * 64, low, share) == slots.of("0" * 64, high, share) == slot
    assert set(following.values()) == {2**64}
    assert [r for split in ("train", "heldout") for part in slots.ranges(split, 7) for r in part] == list(
        range(slots.count)
    )
    assert slots.keys(range(slots.train)) == (0, 2**64 - 1)


def test_slots_follow_the_split():
    slots = Slots(16, 4)
    for number in range(200):
        slot = slots.of(sha(number), shuffle_key(sha(number), 0), 0.25)
        assert (slot >= 16) == is_heldout(sha(number), 0.25)


def test_slots_grow_with_the_data():
    assert Slots.for_bytes(0, 0.1) == Slots(16, 2)
    assert Slots.for_bytes(400 * 2**20, 0.0) == Slots(100, 0)
    assert Slots.for_bytes(2**60, 0.5).count == 8192


@given(st.lists(st.integers(0, 12), max_size=30), st.sets(st.integers(0, 12), max_size=4))
def test_which_duplicates_stay(numbers, known):
    found = records(numbers)
    order = shuffle_order(found)
    digests = {bytes.fromhex(sha(number)) for number in known}

    def stays(policy):
        return sorted(found["row"][order[keep_mask(found[order], digests, policy)]].tolist())

    first = [i for i, n in enumerate(numbers) if n not in numbers[:i] and n not in known]
    assert stays("keep-first") == first
    assert stays("reject") == [i for i in first if numbers.count(numbers[i]) == 1]
    assert stays("keep-all") == list(range(len(numbers)))


def test_equal_pixels_keep_source_order():
    found = records([3, 1, 3, 2, 3])
    rows = found["row"][shuffle_order(found)].tolist()
    assert [row for row in rows if row in (0, 2, 4)] == [0, 2, 4]
    keys = found["key"][shuffle_order(found)]
    assert (keys[1:] >= keys[:-1]).all()


def test_images_with_colliding_keys_are_distinguished():
    found = records([1, 2, 1])
    found["key"] = 5
    order = shuffle_order(found)
    assert keep_mask(found[order], set(), "keep-first").sum() == 2


@pytest.mark.parametrize(
    ("rows", "image_bytes", "shard_rows", "shard_bytes", "expected"),
    [
        (1000, 100_000, 512, 10**9, 512),  # rows decide
        (1000, 100_000, 512, 20_000, 192),  # 200 fit; a multiple of 64
        (1000, 100_000, 512, 3_000, 30),  # fewer than 64 fit
        (1000, 100_000, 512, 10, 1),  # an image alone is too large
        (0, 0, 512, 10, 1),
    ],
)
def test_rows_per_shard(rows, image_bytes, shard_rows, shard_bytes, expected):
    assert rows_per_shard(rows, image_bytes, shard_rows, shard_bytes) == expected


@settings(max_examples=60)
@given(
    st.integers(0, 400),
    st.sampled_from([Slots(16, 0), Slots(16, 3), Slots(40, 17)]),
    st.integers(1, 70),
    st.integers(1, 5),
)
def test_groups_give_every_image_the_id_of_one_global_sort(count, slots, shard_rows, together):
    """For any number of slots and of shards that a task writes."""
    share = 0.3 if slots.heldout else 0.0
    images = [(is_heldout(sha(n), share), shuffle_key(sha(n), 0), n) for n in range(count)]
    in_slots = np.zeros(slots.count, np.int64)
    by_slot = {}
    for heldout, key, number in sorted(images):
        slot = slots.of(sha(number), key, share)
        assert heldout == (slot >= slots.train)
        in_slots[slot] += 1
        by_slot.setdefault(slot, []).append(number)
    made, shards = [], {"train": [], "heldout": []}
    for group in shard_groups(in_slots, slots, shard_rows, together):
        found = [number for slot in group.slots for number in by_slot.get(slot, [])]
        chosen = found[group.skip : group.skip + group.stop - group.first]
        assert len(chosen) == group.stop - group.first > 0
        assert group.before + group.first == len(made)
        assert group.shard * shard_rows == group.first
        made += chosen
        shards[group.split] += [len(chosen[i : i + shard_rows]) for i in range(0, len(chosen), shard_rows)]
    assert made == [number for *_, number in sorted(images)]
    for sizes in shards.values():
        assert all(size == shard_rows for size in sizes[:-1])
