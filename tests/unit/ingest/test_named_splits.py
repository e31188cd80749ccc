"""Datasets from sources that name their splits, growth of a dataset whose labels change, and dry runs."""

import pytest
from tiny_ingest import pixels_of, put_images, rejects_of, rows_of, sha256_of, without_ray

from pipeline.config.storage import StorageConfig
from pipeline.errors import ConfigError
from pipeline.images.png import encode_png
from pipeline.ingest.driver import ingest
from pipeline.operations.verify import verify
from pipeline.storage.store import resolve
from tiny import config

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch):
    without_ray(monkeypatch)


def made(folder, dry_run=False, **settings):
    return ingest(config(ingest=settings), str(folder / "source"), str(folder / "dataset"), dry_run)


def in_splits(rows, train):
    return {row["sha256"] for row in rows[:train]}, {row["sha256"] for row in rows[train:]}


def test_named_splits_are_kept_and_no_image_is_in_both(tmp_path):
    put_images(str(tmp_path / "source"), range(20), "train/a/")
    put_images(str(tmp_path / "source"), range(15, 25), "val/a/")
    put_images(str(tmp_path / "source"), range(50, 60), "test/a/")
    found = made(tmp_path, heldout_share=0)
    manifest, rows = rows_of(found["uri"])
    train, heldout = in_splits(rows, found["train"])
    assert (train, heldout) == ({sha256_of(n) for n in range(15)}, {sha256_of(n) for n in range(15, 25)})
    assert rejects_of(found["uri"]) == [(f"train/a/{n:04d}.png", "duplicate") for n in range(15, 20)]
    assert manifest.splits == (("train", "train"), ("val", "heldout"), ("test", "out"))
    assert "labels: 1 class from folders; splits: train training, val held-out, test left out" in found["summary"]
    put_images(str(tmp_path / "source"), range(100, 110), "train/b/")
    put_images(str(tmp_path / "source"), (3, 110), "val/b/")  # 3 trains already
    grown = made(tmp_path, heldout_share=0)
    manifest, rows = rows_of(grown["uri"])
    assert (grown["train"], grown["heldout"], manifest.classes) == (25, 11, ("a", "b"))
    assert verify(config(), grown["uri"])["counts"]["images"] == 36
    assert made(tmp_path, heldout_share=0)["state"] == "already done"


def test_a_dataset_does_not_grow_with_other_labels_or_splits(tmp_path):
    source = put_images(str(tmp_path / "source"), range(8), "train/")
    made(tmp_path)
    put_images(str(tmp_path / "source"), range(20, 22), "val/")
    with pytest.raises(ConfigError, match=r"held-out images by their content, new ones would be .* by the names val"):
        made(tmp_path)
    for number in (20, 21):
        source.delete(f"val/{number:04d}.png")
    labelled = resolve(str(tmp_path / "b" / "source"), StorageConfig())
    put_images(labelled.uri, range(8), "cat/")
    first = made(tmp_path / "b")
    labelled.put("new.png", encode_png(pixels_of(30)))
    labelled.put("metadata.csv", b"file_name,label\nnew.png,cow\n")
    with pytest.raises(ConfigError, match=r"come from folders, those of new images would come from metadata\.csv"):
        made(tmp_path / "b")
    assert rows_of(first["uri"])[0].generation == 1


def test_a_dry_run_shows_labels_and_rows_before_anything_is_read(tmp_path):
    put_images(str(tmp_path / "source"), range(8), "cat/")
    put_images(str(tmp_path / "source"), range(8, 20), "dog/")
    found = made(tmp_path, dry_run=True)
    assert (found["label_source"], found["classes"], len(found["rows"])) == ("folders", {"cat": 8, "dog": 12}, 10)
    assert found["rows"][0]["label"] == "cat"
    for words in ("would ingest", "source: folder of image files", "labels: from folders", "cat 8, dog 12"):
        assert words in found["summary"]
    assert not (tmp_path / "dataset").exists()
