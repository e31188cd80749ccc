"""The commit protocol, step by step, on every kind of store."""

import json
from dataclasses import dataclass

import pytest
from tiny_samples import sample_plan, shard_table, write_samples

from pipeline.errors import AlreadyExists, ConfigError, DataError, Transient
from pipeline.generation.commit import (
    collect_garbage,
    commit_shard,
    committed_shards,
    create_plan,
    is_sealed,
    join_plan,
    marker_key,
    read_manifest,
    read_marker,
    read_plan,
    seal,
)
from pipeline.generation.shard_metrics import SHARD_METRICS, ShardMetrics
from pipeline.storage.files import parquet_bytes, read_parquet
from pipeline.storage.store import Store

PLAN = sample_plan()


def keys(store, prefix=""):
    return [entry.key for entry in store.list(prefix)]


def commit(job, shard, attempt="a", variant=0):
    return commit_shard(job, PLAN, shard, shard_table(PLAN, shard, variant), attempt)


@dataclass(frozen=True)
class LostReplies(Store):
    """Every create-once does its work, and then the answer is lost."""

    def create_once(self, key, data):
        try:
            super().create_once(key, data)
        except AlreadyExists:
            raise
        raise Transient("the connection was reset")


@dataclass(frozen=True)
class Unreachable(Store):
    """No create-once gets through."""

    def create_once(self, key, data):
        raise Transient("no route")


def test_an_equal_plan_is_joined_wherever_the_model_lies(store):
    assert create_plan(store, PLAN) == PLAN
    assert create_plan(store, sample_plan(model_uri="moved")) == PLAN
    assert read_plan(store) == PLAN


@pytest.mark.parametrize(
    "change", [{"num_samples": 11}, {"seed": 4}, {"steps": 6}, {"batch_size": 4}, {"model_digest": "e" * 64}]
)
def test_another_plan_is_refused_by_the_name_of_what_differs(store, change):
    create_plan(store, PLAN)
    for refuse in (create_plan, join_plan):
        with pytest.raises(ConfigError, match=next(iter(change))):
            refuse(store, sample_plan(**change))
    assert read_plan(store) == PLAN


def test_without_a_plan_there_are_no_samples(store):
    with pytest.raises(DataError, match=r"plan\.json is missing"):
        read_plan(store)


def test_the_first_marker_owns_the_shard_and_the_later_data_goes(store):
    first = commit(store, 1, "first", variant=0)
    second = commit(store, 1, "second", variant=1)
    assert second == first
    assert keys(store) == [marker_key(1), first.key]
    assert read_parquet(store, first).equals(shard_table(PLAN, 1))
    assert (first.rows, first.first_id, first.last_id, first.failed) == (4, 4, 7, 0)


def test_the_last_shard_is_short_and_failures_are_counted(store):
    marker = commit_shard(store, PLAN, 2, shard_table(PLAN, 2, failed=(9,)), "a")
    assert (marker.rows, marker.first_id, marker.last_id, marker.failed) == (2, 8, 9, 1)


def test_wrong_rows_are_never_written(store):
    for table in (shard_table(PLAN, 0), shard_table(PLAN, 1).slice(1), shard_table(PLAN, 1).take([0, 1, 1, 3])):
        with pytest.raises(DataError, match=r"samples 4\.\.7"):
            commit_shard(store, PLAN, 1, table, "a")
    assert keys(store) == []


def test_a_lost_reply_does_not_lose_the_shard(store):
    marker = commit(LostReplies(store.uri, store.config), 0, "mine")
    assert marker.attempt == "mine"
    assert read_marker(store, 0) == marker
    assert keys(store, "data/") == [marker.key]


def test_an_unknown_outcome_leaves_the_data_for_a_request_that_may_still_land(store):
    with pytest.raises(Transient):
        commit(Unreachable(store.uri, store.config), 0)
    assert keys(store) == ["data/shard-000000000-a.parquet"]


def test_only_complete_jobs_are_sealed_and_only_once(store):
    create_plan(store, PLAN)
    for shard in (0, 2):
        commit(store, shard)
    with pytest.raises(DataError, match="shard 1 has no marker"):
        seal(store, PLAN)
    assert not is_sealed(store)
    with pytest.raises(DataError, match="not sealed"):
        read_manifest(store)
    commit(store, 1)
    manifest = seal(store, PLAN)
    assert is_sealed(store)
    assert (manifest.rows, manifest.failed, manifest.plan) == (10, 0, PLAN.fingerprint)
    assert [marker.shard for marker in manifest.shards] == list(committed_shards(store)) == [0, 1, 2]
    before = store.read("manifest.json")
    assert seal(store, PLAN) == manifest == read_manifest(store)
    assert store.read("manifest.json") == before


def test_a_marker_of_another_plan_is_not_sealed(store):
    create_plan(store, PLAN)
    for shard in range(3):
        commit(store, shard)
    text = json.loads(store.read(marker_key(1)))
    store.put(marker_key(1), json.dumps({**text, "plan": "0" * 64}).encode())
    with pytest.raises(DataError, match="another plan"):
        seal(store, PLAN)


def test_the_seal_is_not_moved_by_markers_that_changed_after_it(store):
    write_samples(store)
    text = json.loads(store.read(marker_key(1)))
    store.put(marker_key(1), json.dumps({**text, "attempt": "other"}).encode())
    with pytest.raises(DataError, match="other shards than its markers"):
        seal(store, PLAN)


def test_an_interrupted_seal_is_finished(store):
    write_samples(store)
    store.delete("_SUCCESS")
    assert not is_sealed(store)
    seal(store, PLAN)
    assert is_sealed(store)


def test_garbage_is_what_sealed_shards_do_not_name(store):
    write_samples(store)
    named = keys(store, "data/")
    store.put("data/shard-000000001-zombie.parquet", b"late")
    store.put("data/shard-000000007-other.parquet", b"a shard that this manifest does not know")
    store.put("data/notes.txt", b"not ours")
    assert collect_garbage(store, read_manifest(store)) == 1
    assert set(keys(store, "data/")) == {*named, "data/notes.txt", "data/shard-000000007-other.parquet"}


def test_a_zombie_that_wakes_after_the_collection_changes_nothing(store):
    write_samples(store)
    manifest = read_manifest(store)
    before = keys(store)
    assert commit(store, 1, "zombie", variant=1) == manifest.shards[1]
    assert keys(store) == before
    assert seal(store, PLAN) == manifest


def test_the_log_of_shards_survives_several_invocations(store):
    row = {"rows": 4, "failed": 0, "started": 1.5, "seconds": 2.0, "img_s": 2.0, "node": "n", "state": "ignored"}
    first = ShardMetrics(store)
    first.flush()
    assert keys(store) == []
    first.add({**row, "shard": 2})
    first.flush()
    second = ShardMetrics(store)
    second.add({**row, "shard": 0})
    second.flush()
    third = ShardMetrics(store)
    third.add({**row, "shard": 1})
    third.flush()
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(pa.BufferReader(store.read("metrics/shards.parquet")))
    assert table.schema.equals(SHARD_METRICS)
    assert table["shard"].to_pylist() == [0, 1, 2]


def test_a_log_of_an_older_program_goes_on(store):
    """It has no figures of pixels."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    old = SHARD_METRICS.empty_table().select(
        [name for name in SHARD_METRICS.names if "pixel" not in name and "satur" not in name]
    )
    row = {"shard": 4, "rows": 4, "failed": 0, "started": 1.5, "seconds": 2.0, "img_s": 2.0, "node": "n"}
    store.put("metrics/shards.parquet", parquet_bytes(pa.Table.from_pylist([row], schema=old.schema), 10))
    log = ShardMetrics(store)
    log.add({**row, "shard": 5, "pixel_mean": 3.0})
    log.flush()
    table = pq.read_table(pa.BufferReader(store.read("metrics/shards.parquet")))
    assert table.schema.equals(SHARD_METRICS)
    assert table["shard"].to_pylist() == [4, 5]
    assert table["pixel_mean"].to_pylist() == [None, 3.0]
