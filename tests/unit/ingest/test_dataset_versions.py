"""Dataset versions and plans: one of each number, found by digest; no named file is deleted as a leftover."""

import json

import pytest

from pipeline.config.base import FileEntry, digest_of
from pipeline.config.ingest import IngestConfig
from pipeline.errors import AlreadyExists, ConfigError, DataError
from pipeline.ingest.dataset import (
    dataset_version_key,
    finish_commit,
    read_dataset,
    read_dataset_version,
    write_dataset,
)
from pipeline.ingest.journal import (
    IngestPlan,
    PreparedPartition,
    WorkFolder,
    claim,
    delete_leftovers,
    read_plan,
    withdraw_plan,
)
from pipeline.ingest.manifest import DatasetManifest, ShardEntry
from pipeline.storage.documents import parse
from pipeline.storage.files import put_hashed

pytestmark = pytest.mark.unit


def manifest(version=1, parent=None, shards=(), **fields):
    values = {
        "source": "s",
        "source_rows": 0,
        "image_size": 4,
        "channels": 1,
        "classes": None,
        "shards": tuple(shards),
        "rejects": (),
        "reject_counts": {},
        "channel_mean": (0.0,),
        "channel_std": (1.0,),
        "ingest": {},
        "generation": version,
        "parent": parent,
        **fields,
    }
    return DatasetManifest(**values)


def chain(store, length):
    made = [manifest(snapshot="first")]
    for number in range(2, length + 1):
        made.append(manifest(number, made[-1].digest(), snapshot=f"{number}"))
    for one in made:
        write_dataset(store, one)
    return made


def test_a_version_is_found_by_its_digest(store):
    made = chain(store, 4)
    assert read_dataset(store) == made[3]
    for one in made:
        assert read_dataset(store, one.digest()) == one
    with pytest.raises(DataError, match="no version with digest 0000"):
        read_dataset(store, "0" * 64)


def test_one_manifest_a_version(store):
    first = chain(store, 1)[0]
    write_dataset(store, first)  # an equal manifest may be written again
    with pytest.raises(AlreadyExists):
        write_dataset(store, manifest(snapshot="other"))
    assert read_dataset(store) == first


def test_a_late_writer_does_not_replace_a_newer_version(store):
    made = chain(store, 3)
    finish_commit(store, made[1])
    assert read_dataset(store) == made[2]
    store.delete("manifest.json")
    finish_commit(store, made[1])
    finish_commit(store, made[2])
    assert read_dataset(store) == made[2]


def test_digests_of_datasets_made_before_versions_are_kept(store):
    """A training run names its dataset by digest, which newer fields must not change."""
    values = json.loads(manifest(shards=[shard("data/train-00000.parquet")]).model_dump_json())
    newer = ("generation", "parent", "snapshot", "snapshots", "removed_files", "unusable_profiles", "channel_sums")
    for name in (*newer, "label_source", "splits"):
        del values[name]
    del values["shards"][0]["keys"]
    store.put("manifest.json", json.dumps(values).encode())
    old = digest_of(values)
    assert read_dataset(store).digest() == old
    assert read_dataset(store, old).generation == 1
    assert parse(DatasetManifest, json.dumps({**values, "generation": 2}).encode(), "x").digest() != old


def shard(key, first=0):
    return ShardEntry(key=key, bytes=1, sha256="0" * 64, split="train", rows=1, first_id=first)


# Plans


def plan(**fields):
    values = {
        "generation": 1,
        "parent": None,
        "source": "s",
        "settings": IngestConfig().model_dump(mode="json"),
        "snapshot": "a",
        "snapshot_parts": (),
        "partitions": 1,
        "removed_files": 0,
        "train_slots": 16,
        "heldout_slots": 2,
        **fields,
    }
    return IngestPlan(**values)


def settings(**changes):
    return IngestConfig(**changes).model_dump(mode="json")


def test_an_equal_plan_joins_and_the_first_one_counts(store):
    first = claim(store, plan())
    later = plan(snapshot="b", partitions=2, settings=settings(partition_rows=9, max_reject_share=0.5))
    assert claim(store, later) == first == read_plan(store, 1)
    assert read_plan(store, 2) is None


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"settings": settings(image_size=64)}, "image_size 32 stored, 64 requested"),
        (
            {"settings": settings(duplicates="reject", seed=1)},
            "duplicates 'keep-first' stored, 'reject' requested, seed",
        ),
        ({"source": "t"}, "source 's' stored, 't' requested"),
        ({"parent": "p"}, "parent None stored, 'p' requested"),
    ],
)
def test_a_different_plan_is_an_error_that_names_the_difference(store, fields, what):
    claim(store, plan())
    with pytest.raises(ConfigError) as caught:
        claim(store, plan(**fields))
    assert what in str(caught.value)
    assert "plans/000001.json" in str(caught.value)


@pytest.mark.parametrize("colour", ["convert", "keep"])
def test_plans_from_before_colours_were_converted_continue_with_either(store, colour):
    claim(store, plan(settings={name: value for name, value in settings().items() if name != "colour"}))
    claim(store, plan(settings=settings(colour=colour)))


def test_plans_with_another_conversion_of_colours_are_refused(store):
    claim(store, plan(settings=settings(colour="keep")))
    with pytest.raises(ConfigError, match="colour 'keep' stored, 'convert' requested"):
        claim(store, plan(settings=settings()))


def test_a_setting_newer_than_the_plan_counts_as_its_default(store):
    old = {name: value for name, value in settings().items() if name not in ("duplicates", "shard_bytes")}
    claim(store, plan(settings=old))
    claim(store, plan())
    with pytest.raises(ConfigError, match="duplicates None stored"):
        claim(store, plan(settings=settings(duplicates="reject")))


def prepared(rows):
    return PreparedPartition(partition=0, rows=rows, image_bytes=1, runs=(), labels=(), reject_counts={}, rejects=None)


def test_the_first_marker_counts(store):
    work = WorkFolder(store, plan())
    assert work.read(PreparedPartition, "prepared", "0") is None
    assert work.mark(prepared(1), "prepared", "0") == prepared(1)
    assert work.mark(prepared(2), "prepared", "0") == prepared(1) == work.read(PreparedPartition, "prepared", "0")
    assert work.done("prepared") == {"0"}
    assert work.done("written") == set()
    assert WorkFolder(store, plan(snapshot="b")).done("prepared") == set()


def test_a_refused_plan_is_withdrawn_with_its_work(store):
    work = WorkFolder(store, claim(store, plan()))
    work.mark(prepared(1), "prepared", "0")
    assert not work.is_refused
    work.mark_refused()
    assert work.is_refused
    withdraw_plan(work)
    assert read_plan(store, 1) is None
    assert [entry.key for entry in store.list()] == []


def test_only_leftovers_of_committed_versions_are_deleted(store):
    kept = [put_hashed(store, f"data/train-000001-{n:06d}", b"%d" % n) for n in range(2)]
    listed = put_hashed(store, "snapshots/000001-00000", b"files")
    rejects = put_hashed(store, "rejects/000001-000000", b"rejects")
    for key in ("data/train-000001-000000-other.parquet", "rejects/000001-duplicates-0-x.parquet"):
        store.put(key, b"left by an attempt")
    store.put("work/000001-abc/data/0.run", b"temporary")
    later = ["data/heldout-000002-000000-x.parquet", "work/000002-abc/prepared/0.json", "snapshots/000002-0-x.parquet"]
    for key in (*later, "extractors/class-cnn/000001-x", "plans/000001.json"):
        store.put(key, b"another's")
    entries = [ShardEntry(**e.model_dump(), split="train", rows=1, first_id=n) for n, e in enumerate(kept)]
    head = manifest(shards=entries, rejects=(rejects,), snapshots=(listed,))
    write_dataset(store, head)
    assert delete_leftovers(store, head) == 3
    assert {entry.key for entry in store.list()} == {
        *later,
        *(entry.key for entry in (*kept, listed, rejects)),
        "extractors/class-cnn/000001-x",
        "plans/000001.json",
        "manifest.json",
        dataset_version_key(1),
    }
    assert delete_leftovers(store, head) == 0
    assert read_dataset_version(store, 1) == head
    assert isinstance(listed, FileEntry)
