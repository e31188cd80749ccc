"""Every source image ends once: in the dataset or among the rejects; content alone decides order and split."""

import gzip
import hashlib
import logging
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray
from tiny_ingest import pictures, rows_of

from pipeline.errors import ConfigError, DataError, Transient
from pipeline.images.png import decode_pixels
from pipeline.ingest.driver import ingest
from pipeline.ingest.partitioning import is_heldout
from pipeline.task_pool import fan_out
from tiny import ROOT, config

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


@pytest.fixture(scope="module")
def made(tmp_path_factory, ray_cluster):
    """The digits dataset and what `ingest` said of it."""
    return ingest(config(), "digits", str(tmp_path_factory.mktemp("digits") / "dataset"))


def test_good_images_are_kept_and_bad_ones_listed_with_reasons(tmp_path):
    source = tmp_path / "source"
    pictures(source)
    whole = (source / "cats" / "002.png").read_bytes()
    (source / "cats" / "cut.png").write_bytes(whole[: len(whole) // 2])
    (source / "cats" / "text.png").write_text("this is no picture")
    (source / "cats" / "zero.png").write_bytes(b"")
    result = ingest(config(ingest={"channels": 3}), str(source), str(tmp_path / "dataset"))
    assert result["rejects"] == {"empty": 1, "not-an-image": 1, "truncated": 1}
    manifest, rows = rows_of(result["uri"])
    rejects = pq.read_table(tmp_path / "dataset" / manifest.rejects[0].key).to_pylist()
    assert {row["source"]: row["reason"] for row in rejects} == {
        "cats/cut.png": "truncated",
        "cats/text.png": "not-an-image",
        "cats/zero.png": "empty",
    }
    assert len(rows) == 20
    assert manifest.source_rows == 23 == len(rows) + len(rejects)
    assert manifest.classes == ("cats", "größe dogs")
    assert all(row["image"]["path"].startswith(manifest.classes[row["label"]]) for row in rows)


def test_rows_are_what_the_schema_says(made):
    result = made
    manifest, rows = rows_of(made["uri"])
    assert [row["sample_id"] for row in rows] == list(range(1797))
    assert result["train"] + result["heldout"] == 1797
    for row in rows[::50]:
        pixels = decode_pixels(row["image"]["bytes"], 64)
        assert pixels.shape == (8, 8, 1) == (row["height"], row["width"], 1)
        assert hashlib.sha256(pixels.tobytes()).hexdigest() == row["sha256"]
        assert is_heldout(row["sha256"], 0.25) == (row["sample_id"] >= result["train"])
    levels = np.stack([decode_pixels(row["image"]["bytes"], 64) for row in rows]) / 127.5 - 1.0
    assert manifest.channel_mean[0] == pytest.approx(levels.mean(), abs=1e-9)
    assert manifest.channel_std[0] == pytest.approx(levels.std(), abs=1e-9)
    assert abs(result["heldout"] / 1797 - 0.25) < 0.04
    sizes = [shard.rows for shard in manifest.split("train")]
    assert set(sizes[:-1]) == {32}


def test_the_dataset_does_not_depend_on_how_it_was_made(made, tmp_path):
    def files(result):
        return {shard.sha256 for shard in rows_of(result["uri"])[0].shards}

    many = ingest(config(ingest={"partition_rows": 100, "seed": 0}), "digits", str(tmp_path / "many"))
    other = ingest(config(ingest={"seed": 1}), "digits", str(tmp_path / "other"))
    assert files(many) == files(made)
    assert files(other) != files(made)


def test_order_is_shuffled(made):
    _, rows = rows_of(made["uri"])
    numbers = np.array([int(row["image"]["path"].partition("#")[2]) for row in rows[: made["train"]]])
    assert abs(np.corrcoef(numbers, np.arange(len(numbers)))[0, 1]) < 0.1


def test_a_dataset_is_made_once(made):
    again = ingest(config(), "digits", made["uri"])
    assert (made["state"], again["state"]) == ("ingested", "already done")
    assert made["digest"] == again["digest"]
    with pytest.raises(ConfigError, match="shard_rows"):
        ingest(config(ingest={"shard_rows": 64}), "digits", made["uri"])


def idx(path, array):
    header = struct.pack(">I", 0x0800 | array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(gzip.compress(header + array.tobytes()))


def test_idx_files_bring_their_labels(tmp_path, s3_uri):
    images = np.random.default_rng(0).integers(0, 256, (50, 8, 8), np.uint8)
    idx(tmp_path / "t-images-idx3-ubyte.gz", images)
    idx(tmp_path / "t-labels-idx1-ubyte.gz", np.arange(50, dtype=np.uint8) % 7)
    result = ingest(config(), str(tmp_path / "t-images-idx3-ubyte.gz"), f"{s3_uri}/dataset")
    manifest, rows = rows_of(result["uri"])
    assert manifest.classes == tuple("0123456")
    for row in rows:
        number = int(row["image"]["path"].partition("#")[2])
        assert row["label"] == number % 7
        assert np.array_equal(decode_pixels(row["image"]["bytes"], 64)[:, :, 0], images[number])


def test_it_loads_as_a_hugging_face_dataset_and_comes_back_as_it_was(made, tmp_path):
    from datasets import load_dataset

    files = sorted(str(path) for path in (Path(made["uri"]) / "data").glob("*.parquet"))
    loaded = load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded.num_rows == 1797
    assert loaded[0]["image"].size == (8, 8)
    loaded.to_parquet(str(tmp_path / "theirs.parquet"))
    back = ingest(config(), str(tmp_path / "theirs.parquet"), str(tmp_path / "back"))
    (ours, rows), (theirs, rows_back) = rows_of(made["uri"]), rows_of(back["uri"])
    assert [row["sha256"] for row in rows_back] == [row["sha256"] for row in rows]
    assert [row["label"] for row in rows_back] == [row["label"] for row in rows]
    assert (theirs.channel_sums, theirs.classes) == (ours.channel_sums, ours.classes)


def test_a_task_whose_store_was_away_is_started_again_and_its_warnings_arrive(tmp_path, caplog):
    def fails_once(folder, number):
        logging.getLogger("ddpm.test").warning("task %d", number)
        marker = Path(folder) / str(number)
        if not marker.exists():
            marker.touch()
            raise Transient("away")
        return number

    assert sorted(fan_out(fails_once, str(tmp_path), ((n,) for n in range(5)))) == list(range(5))
    records = [record for record in caplog.records if record.name == "ddpm.test"]
    assert sorted(record.getMessage() for record in records) == [f"task {n}" for n in range(5)]
    assert records[0].origin["task"] == "fails_once"


def test_other_errors_end_the_fan_out_and_few_tasks_are_asked_for_ahead():
    asked = []

    def calls():
        for number in range(1000):
            asked.append(number)
            yield (number,)

    def lost(_, number):
        raise DataError(f"task {number}")

    with pytest.raises(DataError, match="task"):
        list(fan_out(lost, None, calls()))
    assert len(asked) < 20


@pytest.mark.parametrize("kind", ["missing", "empty", "all bad", "too many bad"])
def test_useless_sources_end_with_exit_3(tmp_path, kind):
    source = tmp_path / "source"
    if kind != "missing":
        source.mkdir()
    if kind == "all bad":
        (source / "a.png").write_bytes(b"")
    if kind == "too many bad":
        pictures(source, 4)
        (source / "cats" / "a.png").write_bytes(b"")
    settings = config(ingest={"max_reject_share": 0.1})
    with pytest.raises(DataError) as caught:
        ingest(settings, str(source), str(tmp_path / "dataset"))
    assert caught.value.exit_code == 3
    assert not (tmp_path / "dataset" / "manifest.json").exists()


def test_a_command_joins_the_cluster_that_RAY_ADDRESS_names_from_any_folder(tmp_path):  # noqa: N802
    """Also from one with modules of our names, and with letters in its path that Ray's metrics do not take."""
    here = tmp_path / "bücher"
    here.mkdir()
    for name in ("pipeline.py", "jobs.py"):
        (here / name).write_text("raise SystemExit('a module of the user')")
    address = ray.get_runtime_context().gcs_address
    words = ["ingest", "--source", "digits", "--dataset", "d", "--image-size", "8", "--channels", "1"]
    program = "from jobs.__main__ import program; program()"  # as the console script: the folder is not on its path
    ended = subprocess.run(
        [sys.executable, "-P", "-c", program, *words],
        cwd=here,
        env={**os.environ, "RAY_ADDRESS": address, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert f"cluster: joined {address}, nodes 1, CPUs 4" in ended.stderr
    assert "10 classes" in ended.stdout
    assert rows_of(str(here / "d"))[0].rows("train") == 1576
