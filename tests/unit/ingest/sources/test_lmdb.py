"""LMDB databases of encoded images, as of LSUN."""

import shutil
import sys

import lmdb
import pytest
from corpus import encoded, photo, read

from pipeline.config.root import Config
from pipeline.errors import ConfigError
from pipeline.images.reject_reasons import Reject
from pipeline.ingest.sources.open import open_source

pytestmark = pytest.mark.unit
IMAGES = {f"{number:040x}": encoded(photo(number), "WEBP") for number in range(7)}


def database(path, values, subdir=True):
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        lmdb.open(str(path), map_size=2**22, subdir=subdir) as environment,
        environment.begin(write=True) as transaction,
    ):
        for key, value in values.items():
            transaction.put(key if isinstance(key, bytes) else key.encode(), value)
    return path


@pytest.mark.parametrize("rows", [3, 2000])
def test_every_image_is_a_row_without_a_label(tmp_path, rows):
    path = database(tmp_path / "bedroom_train_lmdb", IMAGES)
    for place in (path, path / "data.mdb"):
        found = read(place, partition_rows=rows)
        assert {row.source: row.image for row in found} == {f"data.mdb#{key}": data for key, data in IMAGES.items()}
        assert {row.label for row in found} == {None}


def test_a_database_in_one_file_with_its_number_of_images(tmp_path):
    path = database(
        tmp_path / "faces.lmdb", {b"length": b"2", b"num-samples": b"2", b"\xff": IMAGES[f"{1:040x}"]}, False
    )
    (row,) = read(path)
    assert row.source == "faces.lmdb#\\xff"
    assert row.image == IMAGES[f"{1:040x}"]


def test_folders_of_several_databases_are_labels(tmp_path):
    for name, number in (("bridge", 1), ("tower", 2)):
        database(tmp_path / name, {"key": IMAGES[f"{number:040x}"]})
    assert {(row.source, row.label) for row in read(tmp_path)} == {
        ("bridge/data.mdb#key", "bridge"),
        ("tower/data.mdb#key", "tower"),
    }


def test_the_names_of_lsun_say_category_and_split(tmp_path):
    names = ("bridge_train_lmdb", "bridge_val_lmdb", "tower_train_lmdb", "tower_val_lmdb")
    for number, name in enumerate(names):
        database(tmp_path / name, {"key": IMAGES[f"{number:040x}"]})
    assert [(row.label, row.split) for row in read(tmp_path)] == [
        ("bridge", "train"),
        ("bridge", "heldout"),
        ("tower", "train"),
        ("tower", "heldout"),
    ]
    assert {row.label for row in read(tmp_path, label_source="none")} == {None}
    for name in names[2:]:
        shutil.rmtree(tmp_path / name)
    assert [(row.label, row.split) for row in read(tmp_path)] == [(None, "train"), (None, "heldout")]


def test_values_that_are_too_large_are_rejects(tmp_path):
    path = database(tmp_path / "set", {"large": bytes(2000), "small": IMAGES[f"{1:040x}"]})
    large, small = read(path, max_image_bytes=1999)
    assert large.image == Reject("too-many-bytes", "2000 bytes are more than 1999")
    assert isinstance(small.image, bytes)


@pytest.mark.parametrize("size", [4096, 5000, 9000])
def test_a_cut_database_is_a_reject_and_kills_no_process(tmp_path, size):
    path = database(tmp_path / "set", IMAGES) / "data.mdb"
    path.write_bytes(path.read_bytes()[:size])
    (row,) = read(path.parent)
    assert row.image.reason == "damaged-container"


def test_without_the_library_its_extra_is_named(tmp_path, monkeypatch):
    path = database(tmp_path / "set", IMAGES)
    monkeypatch.setitem(sys.modules, "lmdb", None)
    with pytest.raises(ConfigError, match=r"pip install 'ddpm-pipeline\[lmdb\]'"):
        open_source(str(path), Config())
