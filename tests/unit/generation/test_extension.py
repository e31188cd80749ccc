"""Extending a sealed folder adds new ids only, rewrites nothing, and is atomic for readers."""

import json

import pytest
from tiny_samples import sample_plan, shard_table, write_samples

from pipeline.config.root import Config
from pipeline.errors import ConfigError, DataError, VerificationFailed
from pipeline.generation.commit import (
    collect_garbage,
    commit_shard,
    create_plan,
    is_sealed,
    join_plan,
    read_manifest,
    read_marker,
    read_plan,
    read_sealed,
    seal,
)
from pipeline.generation.sample_plan import PlannedSamples
from pipeline.operations.verify import verify
from pipeline.storage.files import read_parquet

SMALL, LARGE, HUGE = sample_plan(), sample_plan(num_samples=15), sample_plan(num_samples=16)


def contents(store):
    return {entry.key: store.read(entry.key) for entry in store.list()}


def commit_new(job, plan, attempt="new"):
    shards = range(plan.first_new_shard, plan.num_shards)
    return [commit_shard(job, plan, shard, shard_table(plan, shard), attempt) for shard in shards]


def extend(job, wanted):
    plan = create_plan(job, wanted)
    commit_new(job, plan)
    seal(job, plan)
    return plan


def ids(job):
    return [i for m in read_manifest(job).shards for i in read_parquet(job, m, ["sample_id"])["sample_id"].to_pylist()]


def test_new_ids_begin_a_new_shard_and_nothing_old_is_touched(store):
    write_samples(store)
    before = contents(store)
    plan = extend(store, LARGE)
    assert [list(PlannedSamples(plan).layout.ids(s)) for s in range(2, 5)] == [[8, 9], [10, 11, 12, 13], [14]]
    assert before.items() <= contents(store).items()
    assert (plan.num_extensions, plan.num_shards, plan.first_new_shard) == (1, 5, 3)
    assert ids(store) == list(range(15))
    manifest = read_manifest(store)
    assert manifest.shards[:3] == read_manifest(store, 0).shards
    assert [marker.plan for marker in manifest.shards] == [SMALL.fingerprint] * 3 + [plan.fingerprint] * 2
    assert verify(Config(), store.uri)["counts"]["samples"] == 15


def test_and_again(store):
    write_samples(store)
    extend(store, LARGE)
    plan = extend(store, HUGE)
    assert (plan.num_extensions, plan.num_shards) == (2, 6)
    assert ids(store) == list(range(16))
    assert verify(Config(), store.uri)["counts"]["samples"] == 16


def test_readers_have_the_old_set_until_the_new_one_is_sealed(store):
    write_samples(store)
    plan = create_plan(store, LARGE)
    old = read_manifest(store)
    for marker in commit_new(store, plan):
        assert read_manifest(store) == old
        assert read_sealed(store)[0] == SMALL
        assert marker not in old.shards
    assert not is_sealed(store)
    assert is_sealed(store, SMALL)
    seal(store, plan)
    assert read_sealed(store) == (plan, read_manifest(store, 1))
    assert is_sealed(store)


def test_the_same_command_joins_and_the_old_one_is_already_done(store):
    write_samples(store)
    plan = create_plan(store, LARGE)
    assert create_plan(store, LARGE) == join_plan(store, LARGE) == read_plan(store) == plan
    assert join_plan(store, SMALL) == SMALL
    commit_new(store, plan)
    seal(store, plan)
    assert create_plan(store, SMALL) == SMALL
    assert is_sealed(store, SMALL)


def test_what_cannot_be_an_extension_is_refused(store):
    write_samples(store, sealed=False)
    with pytest.raises(ConfigError, match=r"before it is sealed \(num_samples 10 stored, 15 requested\)"):
        create_plan(store, LARGE)
    seal(store, SMALL)
    for change in ({"num_samples": 9}, {"num_samples": 15, "seed": 4}, {"num_samples": 15, "batch_size": 4}):
        with pytest.raises(ConfigError, match="other samples"):
            create_plan(store, sample_plan(**change))
    create_plan(store, LARGE)
    with pytest.raises(ConfigError, match="before it is sealed"):
        create_plan(store, HUGE)
    with pytest.raises(ConfigError, match="num_samples 15 stored, 12 requested"):
        create_plan(store, sample_plan(num_samples=12))


def test_only_a_complete_extension_is_sealed(store):
    write_samples(store)
    plan = create_plan(store, LARGE)
    commit_shard(store, plan, 4, shard_table(plan, 4), "a")
    with pytest.raises(DataError, match="shard 3 has no marker"):
        seal(store, plan)
    # A shard of an equal job that was made whole from the start is another shard.
    whole = sample_plan(num_samples=15)
    assert whole.num_shards == 4
    with pytest.raises(DataError, match=r"samples 12\.\.14"):
        commit_shard(store, whole, 3, shard_table(plan, 3), "a")
    commit_shard(store, plan, 3, shard_table(plan, 3), "a")
    seal(store, plan)


def test_an_unfinished_extension_is_a_finding_and_the_old_set_is_proven_all_the_same(store):
    write_samples(store)
    plan = create_plan(store, LARGE)
    commit_shard(store, plan, 4, shard_table(plan, 4), "a")
    with pytest.raises(VerificationFailed) as caught:
        verify(Config(), store.uri)
    lines = str(caught.value).splitlines()
    assert len(lines) == 2
    assert "not sealed: 4 of 5 shards" in lines[1]
    assert "10 samples" in lines[0]


def test_garbage_of_old_and_new_shards_goes_and_a_zombie_changes_nothing(store):
    write_samples(store)
    plan = extend(store, LARGE)
    before = contents(store)
    for shard in (1, 4):
        store.put(f"data/shard-{shard:09d}-zombie.parquet", b"late")
    assert collect_garbage(store, read_manifest(store)) == 2
    assert commit_shard(store, SMALL, 1, shard_table(SMALL, 1, variant=1), "zombie") == read_marker(store, 1)
    assert commit_shard(store, plan, 4, shard_table(plan, 4), "zombie") == read_marker(store, 4)
    assert contents(store) == before


def test_the_old_collector_leaves_what_an_extension_is_writing(store):
    write_samples(store)
    old, plan = read_manifest(store), create_plan(store, LARGE)
    store.put("data/shard-000000003-working.parquet", b"not yet committed")
    assert collect_garbage(store, old) == 0
    assert plan.num_shards == 5


def edit(store, key, **changes):
    store.put(key, json.dumps({**json.loads(store.read(key)), **changes}).encode())


@pytest.mark.parametrize(
    ("key", "changes", "finding"),
    [
        ("plan.json", {"seed": 4}, "is not the one that was extended"),
        ("manifest.json", {"shards": []}, "counts 10 rows|has other shards"),
        ("plan-000001.json", {"earlier": [{"plan": "0" * 64, "num_samples": 10}]}, "not the one that was extended"),
    ],
)
def test_a_broken_chain_is_found(store, key, changes, finding):
    write_samples(store)
    extend(store, LARGE)
    edit(store, key, **changes)
    if key == "manifest.json":  # a prefix that lost its shards is a prefix still; one with another shard is not
        markers = [m.model_dump() for m in read_manifest(store, 1).shards]
        edit(store, key, shards=[{**markers[0], "attempt": "other"}, *markers[1:3]])
    with pytest.raises(VerificationFailed, match=finding):
        verify(Config(), store.uri)


def test_a_mix_of_labels_is_exact_in_each_part(store):
    small = sample_plan(num_classes=3, labels=((0, 1.0), (2, 1.0)))
    plan = small.extended(16)
    old, new = PlannedSamples(small).specs(range(10)).labels, PlannedSamples(plan).specs(range(10, 16)).labels
    assert PlannedSamples(plan).specs(range(10)).labels.tolist() == old.tolist()
    assert sorted(old.tolist()) == [0] * 5 + [2] * 5
    assert sorted(new.tolist()) == [0] * 3 + [2] * 3
