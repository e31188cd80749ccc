"""For any segments, sizes and mixes: every id has one shard, and every class its exact share."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.generation.requests import RequestRules, Requests, normalise_requests
from pipeline.generation.sample_plan import ShardLayout, missing_shards, mix_counts, mixed_labels

pytestmark = pytest.mark.property

COUNTS = st.lists(st.integers(1, 50), min_size=1, max_size=12)
RULES = RequestRules(3, 100, None, "ddim", 10, 7, None)


@settings(max_examples=150, derandomize=True)
@given(COUNTS, st.integers(1, 20), st.integers(1, 20), st.integers(0, 2**62))
def test_shards_are_a_partition_of_the_ids(counts, size, batch, offset):
    cut = ShardLayout(np.concatenate([[offset], offset + np.cumsum(counts)]).astype(np.int64), size)
    shards = [cut.ids(shard) for shard in range(cut.num_shards)]
    assert [i for ids in shards for i in ids] == list(range(offset, offset + sum(counts)))
    assert all(1 <= len(ids) <= size for ids in shards)
    assert {ids.stop for ids in shards} >= {offset + int(end) for end in np.cumsum(counts)}
    assert all(cut.shard_of(i) == shard for shard, ids in enumerate(shards) for i in ids)
    assert cut.rows(np.arange(cut.num_shards)) == sum(counts)
    assert cut.batches(batch) == sum(-(-len(ids) // batch) for ids in shards)


@settings(max_examples=100, derandomize=True)
@given(st.integers(1, 200), st.sets(st.integers(0, 199)))
def test_missing_and_committed_are_all_shards(num_shards, committed):
    missing = set(missing_shards(num_shards, iter(sorted(committed))).tolist())
    assert missing == set(range(num_shards)) - committed


@settings(max_examples=150, derandomize=True)
@given(
    st.integers(1, 3000),
    st.dictionaries(st.integers(0, 9), st.floats(1e-3, 1e3), min_size=1, max_size=6),
    st.integers(0, 10**12),
)
def test_a_mix_is_exact_for_any_count(count, weights, first):
    mix = tuple(sorted(weights.items()))
    labels = mixed_labels(range(first, first + count), first, count, mix)
    assert [int((labels == label).sum()) for label, _ in mix] == mix_counts(count, [w for _, w in mix])


@settings(max_examples=100, derandomize=True)
@given(
    st.lists(st.tuples(st.integers(1, 9), st.sampled_from(["ddim", "heun"]), st.sampled_from([None, 2.0]))), st.data()
)
def test_a_shard_has_one_kind_of_request(asked, data):
    asked = asked or [(1, "ddim", None)]
    rows = [
        {"request_id": i, "count": count, "sampler": sampler, "guidance": guidance}
        for i, (count, sampler, guidance) in enumerate(asked)
    ]
    requests = Requests(normalise_requests(enumerate(rows, 1), "row", RULES))
    cut = ShardLayout(requests.bounds, data.draw(st.integers(1, 8)))
    owner = [i for i, (count, *_) in enumerate(asked) for _ in range(count)]
    assert requests.indices(range(len(owner))).tolist() == owner
    for shard in range(cut.num_shards):
        assert len({asked[owner[i]][1:] for i in cut.ids(shard)}) == 1
