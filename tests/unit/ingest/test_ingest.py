"""Dataset versions, duplicates, errors and limits of an ingest, without Ray."""

import corpus
import pyarrow.parquet as pq
import pytest
from tiny_ingest import pixels_of, put_images, rejects_of, rows_of, sha256_of, without_ray

from pipeline.config.storage import StorageConfig
from pipeline.errors import ConfigError, DataError
from pipeline.images.png import encode_png
from pipeline.ingest import map_tasks, phases, reduce_tasks
from pipeline.ingest.dataset import dataset_version_key, read_dataset
from pipeline.ingest.driver import ingest
from pipeline.ingest.partitioning import is_heldout
from pipeline.operations.verify import verify
from pipeline.storage.files import read_parquet
from pipeline.storage.store import resolve
from tiny import config

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch):
    without_ray(monkeypatch)


@pytest.fixture
def place(tmp_path):
    """A store for a source and a dataset."""
    return resolve(str(tmp_path), StorageConfig())


def made(place, settings=None, **ingest_settings):
    return ingest(settings or config(ingest=ingest_settings), place.location("source"), place.location("dataset"))


def listed(place):
    return {entry.key for entry in place.child("dataset").list()}


def test_a_grown_source_adds_a_dataset_version(store):
    put_images(store.location("source"), range(40), "b/")
    first = made(store)
    old, old_rows = rows_of(first["uri"])
    versions = {shard.key: store.child("dataset").read(shard.key) for shard in old.shards}
    put_images(store.location("source"), range(100, 130), "a/")
    put_images(store.location("source"), range(40, 50), "b/")
    second = made(store)
    assert (first["state"], second["state"], second["generation"]) == ("ingested", "grown", 2)
    manifest, rows = rows_of(second["uri"])
    assert manifest.parent == old.digest() == first["digest"]
    assert rows[:40] == old_rows
    assert [row["sample_id"] for row in rows] == list(range(80))
    assert {row["sha256"] for row in rows} == {sha256_of(n) for n in [*range(50), *range(100, 130)]}
    assert {key: store.child("dataset").read(key) for key in versions} == versions
    assert (manifest.source_rows, manifest.removed_files) == (80, 0)
    assert rows_of(second["uri"], first["digest"]) == (old, old_rows)
    counts = verify(config(), second["uri"])["counts"]
    assert (counts["images"], counts["generations"], counts["unnamed"]) == (80, 2, 0)
    assert made(store)["state"] == "already done"
    assert made(store)["digest"] == second["digest"]


def test_new_classes_are_appended(place):
    put_images(place.location("source"), range(10), "m/")
    put_images(place.location("source"), range(10, 20), "z/")
    assert rows_of(made(place)["uri"])[0].classes == ("m", "z")
    put_images(place.location("source"), range(20, 30), "a/")
    put_images(place.location("source"), range(30, 40), "m/")
    manifest, rows = rows_of(made(place)["uri"])
    assert manifest.classes == ("m", "z", "a")
    assert all(row["image"]["path"].startswith(manifest.classes[row["label"]]) for row in rows)


def test_deleted_or_changed_files_are_counted_and_their_images_stay(place):
    source = put_images(place.location("source"), range(20))
    made(place)
    source.delete("0003.png")
    source.delete("0004.png")
    gone = made(place)
    assert (gone["state"], gone["removed_files"], gone["generation"]) == ("already done", 2, 1)
    assert "2 files are gone" in gone["summary"]
    source.put("0005.png", encode_png(pixels_of(500)))
    grown = made(place)
    manifest, rows = rows_of(grown["uri"])
    assert (grown["state"], manifest.removed_files, grown["removed_files"]) == ("grown", 3, 3)
    assert {row["sha256"] for row in rows} == {sha256_of(n) for n in [*range(20), 500]}


def test_an_image_stays_in_its_split(place):
    """When other images are added, when it is added again, and whatever else the dataset holds."""
    put_images(place.location("source"), range(60))
    first, rows = rows_of(made(place, duplicates="keep-all")["uri"])
    sides = {row["sha256"]: row["sample_id"] >= first.rows("train") for row in rows}
    assert 0 < sum(sides.values()) < 60
    put_images(place.location("source"), range(120), name=lambda n: f"again-{n}.png")
    second = made(place, duplicates="keep-all")
    assert second["rejects"] == {}
    store = resolve(second["uri"], StorageConfig())
    for shard in read_dataset(store).shards:
        for sha256 in read_parquet(store, shard)["sha256"].to_pylist():
            assert (shard.split == "heldout") == is_heldout(sha256, 0.25) == sides.get(sha256, shard.split == "heldout")
    assert second["train"] + second["heldout"] == 180


@pytest.mark.parametrize(
    ("policy", "stays", "dropped"),
    [
        ("keep-first", {"a-1", "a-2", "a-3", "b-4"}, {"b-1", "b-2", "c-1"}),
        ("keep-all", {"a-1", "a-2", "a-3", "b-1", "b-2", "b-4", "c-1"}, set()),
        ("reject", {"a-3", "b-4"}, {"a-1", "a-2", "b-1", "b-2", "c-1"}),
    ],
)
def test_the_policy_decides_which_duplicates_stay(place, policy, stays, dropped):
    for folder, numbers in (("a", (1, 2, 3)), ("b", (1, 2, 4)), ("c", (1,))):
        put_images(place.location("source"), numbers, name=lambda n, folder=folder: f"{folder}-{n}")
    result = made(place, duplicates=policy, partition_rows=2)
    _, rows = rows_of(result["uri"])
    assert {row["image"]["path"] for row in rows} == stays
    assert rejects_of(result["uri"]) == sorted((name, "duplicate") for name in dropped)
    verify(config(), result["uri"])


@pytest.mark.parametrize(("policy", "total"), [("keep-first", 4), ("keep-all", 6), ("reject", 4)])
def test_equal_pixels_of_an_earlier_version(place, policy, total):
    put_images(place.location("source"), (1, 2, 3))
    made(place, duplicates=policy)
    put_images(place.location("source"), (2, 3, 4), name=lambda n: f"new-{n}.png")
    result = made(place, duplicates=policy)
    manifest, rows = rows_of(result["uri"])
    assert len(rows) == total
    assert manifest.source_rows == 6
    verify(config(), result["uri"])


def test_a_version_without_new_images_is_still_committed(place):
    """Else the same files would be read again every night."""
    put_images(place.location("source"), (1, 2, 3))
    made(place)
    put_images(place.location("source"), (1, 2), name=lambda n: f"again-{n}.png")
    place.child("source").put("bad.png", b"text")
    result = made(place, max_reject_share=0.5)
    assert (result["generation"], result["train"] + result["heldout"]) == (2, 3)
    assert result["rejects"] == {"duplicate": 2, "not-an-image": 1}
    verify(config(), result["uri"])
    assert made(place)["state"] == "already done"


# Limits


def test_the_dataset_does_not_depend_on_slots_tasks_or_sorted_runs(place, monkeypatch):
    put_images(place.location("source"), range(70))
    place.child("source").put("0065.png", b"")
    before, _ = rows_of(made(place)["uri"])
    monkeypatch.setattr(map_tasks, "SORTED_RUN_BYTES", 500)
    monkeypatch.setattr(phases, "GROUP_BYTES", 1)
    monkeypatch.setattr(phases, "DEDUPLICATE_BYTES", 1)
    monkeypatch.setattr("pipeline.ingest.partitioning.MIN_SLOTS", 3)
    other = ingest(config(ingest={"partition_rows": 3}), place.location("source"), place.location("other"))
    after, _ = rows_of(other["uri"])
    assert after.shards == before.shards
    assert after.rejects == before.rejects
    assert after.model_copy(update={"ingest": before.ingest, "snapshots": before.snapshots}) == before


def test_shards_and_row_groups_are_bounded_in_bytes(place, monkeypatch):
    monkeypatch.setattr(reduce_tasks, "ROW_GROUP_BYTES", 400)
    put_images(place.location("source"), range(120))
    image = len(encode_png(pixels_of(0)))
    result = made(place, shard_rows=1000, shard_bytes=20 * image + 10)
    store = resolve(result["uri"], StorageConfig())
    shards = [shard for shard in read_dataset(store).shards if shard.split == "train"]
    assert {shard.rows for shard in shards[:-1]} == {20}
    for shard in shards:
        file = pq.ParquetFile(store.pa_fs.open_input_file(store.path(shard.key)))
        assert {file.metadata.row_group(n).num_rows for n in range(file.metadata.num_row_groups - 1)} <= {400 // image}


def test_rejects_are_in_source_order_in_files_of_bounded_size(place, monkeypatch):
    monkeypatch.setattr(phases, "REJECTS_A_FILE", 4)
    source = put_images(place.location("source"), range(3))
    for number in range(10):
        source.put(f"bad-{number}", b"text" if number % 2 else b"")
    result = made(place, partition_rows=3)
    store = resolve(result["uri"], StorageConfig())
    manifest = read_dataset(store)
    assert len(manifest.rejects) == 3
    names = [name for entry in manifest.rejects for name in read_parquet(store, entry)["source"].to_pylist()]
    assert names == [f"bad-{number}" for number in range(10)]
    assert manifest.reject_counts == {"empty": 5, "not-an-image": 5}


def test_unusable_colour_profiles_are_counted_and_warned_of_with_a_name(place, caplog):
    source = put_images(place.location("source"), range(3))
    source.put("broken.png", corpus.encoded(corpus.photo(5), icc_profile=b"damaged" * 40))
    result = made(place)
    assert (result["train"] + result["heldout"], result["rejects"]) == (4, {})
    assert "1 images of" in caplog.text
    assert "cannot be used, such as broken.png" in caplog.text
    assert rows_of(result["uri"])[0].unusable_profiles == 1
    source.put("later.png", corpus.encoded(corpus.photo(6), icc_profile=b"damaged" * 40))
    assert rows_of(made(place)["uri"])[0].unusable_profiles == 2


# Errors


def test_too_many_rejects_are_an_error_until_the_source_changes(place):
    source = put_images(place.location("source"), range(10))
    for number in range(4):
        source.put(f"bad-{number}", b"text" if number else b"")
    words = r"4 of 14 images of .* were rejected \(3 not-an-image, 1 empty, such as bad-0: the file has no bytes\)"
    with pytest.raises(DataError, match=words) as caught:
        made(place, max_reject_share=0.2)
    assert caught.value.exit_code == 3
    assert any(key.startswith("rejects/") for key in listed(place))
    assert "manifest.json" not in listed(place)
    with pytest.raises(DataError):
        made(place, max_reject_share=0.2)
    for number in range(3):
        source.put(f"bad-{number}", encode_png(pixels_of(100 + number)))
    result = made(place, max_reject_share=0.2)
    assert (result["train"] + result["heldout"], result["rejects"]) == (13, {"not-an-image": 1})
    assert not any(key.startswith("work/") for key in listed(place))
    verify(config(), result["uri"])


def test_a_larger_reject_share_continues_without_decoding_again(place, monkeypatch):
    source = put_images(place.location("source"), range(5))
    source.put("bad", b"")
    with pytest.raises(DataError):
        made(place, max_reject_share=0.0)
    monkeypatch.setattr(map_tasks, "Decoder", None)  # nothing is left to decode
    assert made(place, max_reject_share=0.5)["rejects"] == {"empty": 1}


def test_dropped_duplicates_do_not_count_as_rejects(place):
    put_images(place.location("source"), (1, 2))
    put_images(place.location("source"), (1, 2), "again-")
    with pytest.raises(DataError, match="duplicate"):
        made(place, max_reject_share=0.4, duplicates="reject")
    resolve(place.location("dataset"), StorageConfig()).delete("plans/000001.json")
    assert made(place, max_reject_share=0.0)["rejects"] == {"duplicate": 2}


def test_other_settings_are_an_error_that_names_them(place):
    put_images(place.location("source"), range(5))
    put_images(place.location("other"), range(5))
    made(place)
    with pytest.raises(ConfigError, match="shard_rows"):
        made(place, shard_rows=64)
    with pytest.raises(ConfigError, match=r"different: source, .*source there"):
        ingest(config(), place.location("other"), place.location("dataset"))
    assert made(place, partition_rows=1, max_reject_share=0.3)["state"] == "already done"


def test_an_unfinished_ingest_claims_its_folder(place, monkeypatch):
    put_images(place.location("source"), range(5))
    with monkeypatch.context() as patch:
        patch.setattr(phases, "deduplicate", None)
        with pytest.raises(TypeError):
            made(place)
    with pytest.raises(ConfigError, match="image_size 8 stored, 16 requested"):
        made(place, image_size=16)
    put_images(place.location("source"), range(5, 9))
    result = made(place)  # first the old plan, then the new files
    assert (result["generation"], result["train"] + result["heldout"]) == (2, 9)


def test_an_interrupted_commit_is_finished(store):
    put_images(store.location("source"), range(20))
    first = made(store)
    dataset = store.child("dataset")
    dataset.delete("manifest.json")
    dataset.put("work/000001-x/data/left.run", b"not swept yet")
    again = made(store)
    assert (again["state"], again["digest"]) == ("already done", first["digest"])
    assert "work/000001-x/data/left.run" not in listed(store)
    assert {"manifest.json", dataset_version_key(1), "plans/000001.json"} <= listed(store)


def test_a_dataset_from_before_versions_is_left_as_it_is(place):
    put_images(place.location("source"), range(5))
    made(place)
    dataset = place.child("dataset")
    older = read_dataset(dataset).model_copy(update={"snapshot": None, "snapshots": (), "channel_sums": ()})
    for entry in list(dataset.list()):
        if not entry.key.startswith("data/"):
            dataset.delete(entry.key)
    dataset.put("manifest.json", older.model_dump_json().encode())
    put_images(place.location("source"), range(5, 9))
    assert made(place)["state"] == "already done"
    assert read_dataset(dataset) == older


def test_a_dry_run_describes_the_work_and_writes_nothing(place):
    put_images(place.location("source"), range(5))
    words = config(), place.location("source"), place.location("dataset")
    assert "would ingest" in ingest(*words, dry_run=True)["summary"]
    assert listed(place) == set()
    made(place)
    assert "already done" in ingest(*words, dry_run=True)["summary"]
    put_images(place.location("source"), range(5, 9))
    before = listed(place)
    assert "would add dataset version 2" in ingest(*words, dry_run=True)["summary"]
    assert listed(place) == before


def test_a_dataset_goes_through_ingest_unchanged(place):
    put_images(place.location("source"), range(30), "b/")
    put_images(place.location("source"), range(30, 40), "a/")
    first, rows = rows_of(made(place)["uri"])
    again = ingest(config(), place.location("dataset"), place.location("again"))
    second, twice = rows_of(again["uri"])
    assert [row["sha256"] for row in twice] == [row["sha256"] for row in rows]
    assert [row["label"] for row in twice] == [row["label"] for row in rows]
    assert second.classes == first.classes
    assert (second.channel_sums, second.rows("heldout")) == (first.channel_sums, first.rows("heldout"))
