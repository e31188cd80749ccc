"""Tar and Parquet shards hold the same rows under the same commit protocol, and other programs read both."""

import hashlib
import io
import json
import tarfile
import zipfile

import duckdb
import numpy as np
import polars
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
from datasets import load_dataset
from tiny_samples import SIZE, sample_plan, sample_png, shard_table, write_samples

from pipeline.config.root import Config
from pipeline.errors import DataError, VerificationFailed
from pipeline.generation.commit import marker_key, read_manifest
from pipeline.generation.dataset_card import sample_card
from pipeline.generation.merge import merge
from pipeline.images.png import decode_pixels
from pipeline.operations.verify import verify
from pipeline.schema import REQUESTED_SAMPLES, SAMPLES
from pipeline.storage.files import parquet_bytes, viewer_rows
from pipeline.storage.sample_shards import decode_shard, read_samples, tar_bytes

PLAN = sample_plan()
TAR_PLAN = sample_plan(format="webdataset")


def test_the_rows_come_back_as_they_were():
    table = shard_table(PLAN, 1, failed=(5,))
    data = tar_bytes(table)
    assert data == tar_bytes(table)
    assert decode_shard("x.tar", data).equals(table)
    assert decode_shard("x.tar", data, ["sha256", "status"]).equals(table.select(["sha256", "status"]))
    assert decode_shard("x.parquet", parquet_bytes(table, 2)).equals(table)
    more = {"request_id": pa.array(["a"] * 4), "extra": pa.array(['{"x": 1}', None, None, None])}
    requested = pa.table({**dict(zip(SAMPLES.names, table.columns, strict=True)), **more}, schema=REQUESTED_SAMPLES)
    assert decode_shard("x.tar", tar_bytes(requested)).equals(requested)


def test_a_job_of_tars_is_sealed_verified_and_read(store):
    write_samples(store, TAR_PLAN, failed=(9,))
    assert all(marker.key.endswith(".tar") for marker in read_manifest(store).shards)
    counts = verify(Config(), store.uri)["counts"]
    assert (counts["samples"], counts["failed"], counts["shards"]) == (10, 1, 3)
    rows = [row for m in read_manifest(store).shards for row in read_samples(store, m).to_pylist()]
    assert [row["sample_id"] for row in rows] == list(range(10))
    assert rows[3]["image"]["bytes"] == sample_png(3)
    assert rows[9]["image"] is None


@pytest.mark.unit
def test_a_format_is_part_of_the_plan():
    assert PLAN.fingerprint != TAR_PLAN.fingerprint


def members(data):
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return [(m.name, tar.extractfile(m).read()) for m in tar]


def packed(parts):
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as tar:
        for name, data in parts:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return sink.getvalue()


def zipped():
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as file:
        file.writestr("000000000004.json", "{}")
    return sink.getvalue()


@pytest.mark.unit
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda parts: packed(parts[1:]), "column sha256|no image"),  # an image is gone: a row without one
        (lambda parts: packed(parts[:-1]), r"image \d+\.png has no \d+\.json"),
        (lambda parts: packed([parts[0], *parts[2:]]), "is out of place"),
        (lambda parts: packed([parts[2], parts[1], *parts[2:]]), "is out of place"),
        (lambda parts: packed([("000000000005.json", parts[1][1])]), "has the sample_id 4"),
        (lambda parts: packed([(parts[1][0], b"{")]), "not a tar file of samples"),
        (lambda parts: packed([(parts[1][0], b'{"sample_id": 4}')]), "other names"),
        (lambda parts: packed([("notes.txt", b"hello")]), "is out of place"),
        (lambda parts: zipped(), "not a tar file of samples"),
        (lambda parts: packed(parts)[:700], "not a tar file of samples|has no "),
    ],
)
def test_a_malformed_tar_is_found(tmp_path, change, reason):
    """Also when the sha256 of the malformed file is in the manifest."""
    from pipeline.config.storage import StorageConfig
    from pipeline.storage.store import resolve

    place = write_samples(resolve(str(tmp_path), StorageConfig()), TAR_PLAN)
    manifest = json.loads(place.read("manifest.json"))
    entry = manifest["shards"][1]
    data = change(members(place.read(entry["key"])))
    place.put(entry["key"], data)
    entry.update(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    place.put("manifest.json", json.dumps(manifest).encode())
    place.put(marker_key(1), json.dumps(entry).encode())
    with pytest.raises(VerificationFailed, match=reason):
        verify(Config(), place.uri)


@pytest.mark.unit
def test_wrong_types_are_one_error():
    row = json.loads(members(tar_bytes(shard_table(PLAN, 1)))[1][1])
    for bad in ({**row, "steps": "many"}, {**row, "seed": -1}):
        with pytest.raises(DataError, match="columns of wrong types"):
            decode_shard("x.tar", packed([("000000000004.json", json.dumps(bad).encode())]))


# --- other programs --------------------------------------------------------------------------------------------------


def local(tmp_path, plan=PLAN, **arguments):
    from pipeline.config.storage import StorageConfig
    from pipeline.storage.store import resolve

    return write_samples(resolve(str(tmp_path / "samples"), StorageConfig()), plan, **arguments)


def pixels(sample_id):
    return decode_pixels(sample_png(sample_id), SIZE * SIZE)[:, :, 0]


@pytest.mark.unit
def test_tarfile_and_webdataset_iterate_the_tars(tmp_path):
    job = local(tmp_path, TAR_PLAN, failed=(9,))
    urls = [job.path(marker.key) for marker in read_manifest(job).shards]
    found = list(webdataset.WebDataset(urls, shardshuffle=False, empty_check=False).decode("pil"))
    assert [int(sample["__key__"]) for sample in found] == list(range(10))
    assert [sample["json"]["sample_id"] for sample in found] == list(range(10))
    assert np.array_equal(np.asarray(found[6]["png"].convert("L")), pixels(6))
    assert "png" not in found[9]
    assert found[9]["json"]["status"] == "failed"
    names = [name for marker in read_manifest(job).shards for name, _ in members(job.read(marker.key))]
    assert names[:4] == ["000000000000.png", "000000000000.json", "000000000001.png", "000000000001.json"]
    assert len(names) == 19


@pytest.mark.unit
def test_datasets_decodes_the_samples_and_the_failed_ones_are_none(tmp_path):
    """From the data files, and through the README card of the folder."""
    job = local(tmp_path, failed=(9,))
    job.put("README.md", sample_card(PLAN, read_manifest(job)).encode())
    for where in ({"path": "parquet", "data_files": f"{job.uri}/data/*.parquet"}, {"path": job.uri}):
        data = load_dataset(**where, split="train", cache_dir=str(tmp_path / "cache")).sort("sample_id")
        assert data["sample_id"][:] == list(range(10))
        assert np.array_equal(np.asarray(data[6]["image"]), pixels(6))
        assert data[9]["image"] is None


@pytest.mark.unit
def test_datasets_reads_merged_parts_as_splits(tmp_path):
    first, other = local(tmp_path / "a"), local(tmp_path / "b", sample_plan(seed=4, num_samples=6))
    both = str(tmp_path / "both")
    merge(Config(), both, [first.uri, other.uri])
    data = load_dataset(both, cache_dir=str(tmp_path / "cache"))
    assert {name: len(split) for name, split in data.items()} == {"part_000": 10, "part_001": 6}
    assert np.array_equal(np.asarray(data["part_001"][5]["image"]), pixels(5))


def without_pixels(job):
    """The image column is overwritten with zeros, so a query that reads it fails."""
    for marker in read_manifest(job).shards:
        data = bytearray(job.read(marker.key))
        groups = pq.ParquetFile(pa.BufferReader(bytes(data))).metadata
        for group in range(groups.num_row_groups):
            for column in map(groups.row_group(group).column, range(groups.num_columns)):
                if column.path_in_schema.startswith("image"):
                    start = column.dictionary_page_offset or column.data_page_offset
                    data[start : start + column.total_compressed_size] = bytes(column.total_compressed_size)
        job.put(marker.key, bytes(data))


@pytest.mark.unit
def test_duckdb_and_polars_query_the_columns_without_reading_pixels(tmp_path):
    job = local(tmp_path, sample_plan(num_classes=3), failed=(9,))
    without_pixels(job)
    files = f"{job.uri}/data/*.parquet"
    counted = duckdb.sql(f"SELECT status, count(*) AS n FROM '{files}' GROUP BY status ORDER BY status").fetchall()
    assert counted == [("failed", 1), ("ok", 9)]
    found = duckdb.sql(f"SELECT sample_id FROM '{files}' WHERE label = 2 ORDER BY 1").fetchall()
    assert found == [(2,), (5,), (8,)]
    with pytest.raises(duckdb.Error):
        duckdb.sql(f"SELECT image FROM '{files}'").fetchall()
    scan = polars.scan_parquet(files)
    table = scan.filter(polars.col("status") == "ok").select("sample_id", "sha256", "seed").sort("sample_id").collect()
    assert table["sample_id"].to_list() == list(range(9))
    assert table["sha256"][3] == hashlib.sha256(sample_png(3)).hexdigest()
    with pytest.raises(polars.exceptions.PolarsError):
        scan.select("image").collect()


@pytest.mark.unit
@pytest.mark.parametrize(("image_bytes", "rows"), [(100, 1000), (100_000, 335), (4 * 10**7, 1)])
def test_row_groups_fit_a_viewer(image_bytes, rows):
    """At most 1000 rows and 32 MiB."""
    image = {"bytes": bytes(image_bytes), "path": None}
    table = pa.table({"image": pa.array([image] * 3, SAMPLES.field("image").type)})
    assert viewer_rows(table) == pytest.approx(rows, abs=2)


@pytest.mark.unit
def test_the_card_states_count_provenance_and_usage(tmp_path):
    plan = sample_plan(num_classes=3, labels=((0, 0.5), (2, 0.5)), guidance=2.0, guidance_interval=(10, 90))
    job = local(tmp_path, plan.model_copy(update={"labels": None}), failed=(9,))
    manifest = read_manifest(job)
    card = sample_card(plan, manifest)
    for text in (
        "10 generated images",
        "Failed samples: 1 ",
        "| files | 3, ",
        "| guidance | 2 at timesteps 10 to 90",
    ):
        assert text in card
    for text in ("| classes | 3; 0 : 0.5, 2 : 0.5 |", manifest.plan, "load_dataset", "duckdb", "ddpm verify"):
        assert text in card
    assert "data_files: data/*.tar" in sample_card(TAR_PLAN, manifest)
    assert "extended | 10, then 15" in sample_card(PLAN.extended(15), manifest)
