"""Merging copies samples folders byte for byte, has each sample once, and is atomic."""

import json
from dataclasses import dataclass

import pytest
from tiny_samples import sample_plan, write_samples

from pipeline.config.root import Config
from pipeline.errors import ConfigError, DataError, VerificationFailed
from pipeline.generation.commit import read_manifest
from pipeline.generation.merge import MERGED, copy_part, merge, part_store, plan_merge, read_merged
from pipeline.operations.verify import verify
from pipeline.storage.store import Store, resolve


def jobs(store, **second):
    """Two sealed jobs, of 10 and of 6 samples, and a place for both."""
    first = write_samples(store.child("a"))
    other = write_samples(store.child("b"), sample_plan(**{"seed": 4, "num_samples": 6, **second}))
    return first, other, store.child("both")


def contents(store):
    return {entry.key: store.read(entry.key) for entry in store.list()}


def test_every_part_is_its_job_byte_by_byte(store):
    first, other, both = jobs(store)
    first.put("data/shard-000000001-zombie.parquet", b"left over")
    result = merge(Config(), both.uri, [first.uri, other.uri])
    assert (result["samples"], result["failed"]) == (16, 0)
    for uri, source in zip(result["parts"], (first, other), strict=True):
        left_out = {"data/shard-000000001-zombie.parquet"} if source == first else set()
        expected = {key: data for key, data in contents(source).items() if key not in left_out}
        assert contents(resolve(uri, store.config)) == expected
        assert verify(Config(), uri)["counts"]["samples"] == read_manifest(source).rows
    counts = verify(Config(), both.uri)["counts"]
    assert (counts["samples"], counts["parts"], counts["shards"]) == (16, 2, 5)
    assert merge(Config(), both.uri, [first.uri, other.uri])["digest"] == result["digest"]
    assert both.read("README.md").count(b"path: parts/") == 2


@dataclass(frozen=True)
class Dying(Store):
    """The process is gone at the third shard."""

    def put(self, key, data):
        if key.startswith("data/shard-000000002"):
            raise KeyboardInterrupt
        super().put(key, data)


@pytest.mark.unit
def test_half_a_merge_is_none_and_the_same_command_finishes_it(tmp_path):
    store = resolve(str(tmp_path), Config().storage)
    first, other, both = jobs(store)
    plan = plan_merge(both, [first, other])
    target = part_store(both, plan.parts[0])
    with pytest.raises(KeyboardInterrupt):
        copy_part(first, Dying(target.uri, target.config), lambda rows: None)
    assert not both.exists(MERGED)
    with pytest.raises(VerificationFailed, match="not sealed"):
        verify(Config(), target.uri)
    merge(Config(), both.uri, [first.uri, other.uri])
    assert contents(target) == contents(first)
    assert verify(Config(), both.uri)["counts"]["samples"] == 16


def test_what_cannot_be_merged_is_refused_before_anything_is_copied(store):
    first, other, both = jobs(store)
    unsealed = write_samples(store.child("c"), sample_plan(seed=5), sealed=False)
    extended = store.child("d")
    for key, data in contents(first).items():
        extended.put(key, data)
    cases = [
        ([first.uri], ConfigError, "at least two samples folders"),
        ([first.uri, first.uri], ConfigError, "share samples"),
        ([first.uri, other.uri, extended.uri], ConfigError, "share samples"),
        ([first.uri, unsealed.uri], DataError, "not sealed"),
        ([first.uri, store.child("nothing").uri], DataError, "no samples at"),
        ([first.uri, write_samples(store.child("e"), sample_plan(seed=6, channels=3)).uri], ConfigError, "4x4x3"),
    ]
    for uris, error, reason in cases:
        with pytest.raises(error, match=reason):
            merge(Config(), both.uri, uris)
    assert contents(both) == {}
    assert "16 samples of 2 folders" in merge(Config(), both.uri, [first.uri, other.uri], dry_run=True)["summary"]
    assert contents(both) == {}


def test_a_folder_of_something_else_is_left_alone(store):
    first, other, both = jobs(store)
    merge(Config(), both.uri, [first.uri, other.uri])
    third = write_samples(store.child("c"), sample_plan(seed=5))
    before = contents(both)
    for uris in ([first.uri, third.uri], [other.uri, first.uri]):
        with pytest.raises(ConfigError, match="choose another --out"):
            merge(Config(), both.uri, uris)
    with pytest.raises(ConfigError, match="which is not part of this merge"):
        merge(Config(), first.uri, [other.uri, third.uri])
    assert contents(both) == before


@pytest.mark.parametrize("damage", ["data", "count", "part"])
def test_damage_is_found(store, damage):
    first, other, both = jobs(store)
    merge(Config(), both.uri, [first.uri, other.uri])
    merged = read_merged(both)
    part = part_store(both, merged.parts[1])
    if damage == "data":
        key = read_manifest(part).shards[0].key
        part.put(key, part.read(key)[:-1])
    elif damage == "count":
        both.put(MERGED, json.dumps({**json.loads(both.read(MERGED)), "rows": 17}).encode())
    else:  # another job in the place of one, whole in itself
        for key in contents(part):
            part.delete(key)
        write_samples(part, sample_plan(seed=9, num_samples=6))
    with pytest.raises(VerificationFailed):
        verify(Config(), both.uri)
