"""CIFAR-10 and CIFAR-100 in every form that their authors distribute, and pickles that want more than arrays."""

import gzip
import os
import pickle
import struct

import numpy as np
import pytest
from corpus import random_pixels, read, tar_of

from pipeline.config.root import Config
from pipeline.errors import ConfigError, DataError
from pipeline.images.reject_reasons import Reject
from pipeline.ingest.sources.containers import UnusableFile
from pipeline.ingest.sources.open import open_source
from pipeline.ingest.sources.plain_pickle import array_of, load_plain

pytestmark = pytest.mark.unit
COUNT = 6
TEN = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
FINE, COARSE = tuple(f"fine {n}" for n in range(100)), tuple(f"coarse {n}" for n in range(20))
PIXELS = {split: random_pixels(COUNT, 32, 32, 3, seed=n) for n, split in enumerate(("train", "test"))}
FINE_NUMBERS = {"train": [31, 90, 4, 17, 12, 70], "test": [29, 28, 80, 50, 40, 99]}
NUMBERS = {"train": [3, 9, 0, 1, 1, 7], "test": [2, 2, 8, 5, 4, 6]}


def python2(value):
    """A pickle as Python 2 wrote it: text as byte strings, arrays by numpy.core.multiarray."""
    return b"\x80\x02" + opcodes(value) + b"."


def opcodes(value):
    if isinstance(value, dict):
        return b"}(" + b"".join(opcodes(key) + opcodes(field) for key, field in value.items()) + b"u"
    if isinstance(value, list):
        return b"](" + b"".join(map(opcodes, value)) + b"e"
    if isinstance(value, int):
        return b"J" + struct.pack("<i", value)
    if isinstance(value, str | bytes):
        data = value.encode() if isinstance(value, str) else value
        return b"T" + struct.pack("<I", len(data)) + data
    empty = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    kind = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    shape = b"".join(map(opcodes, value.shape)) + b"\x86"
    return empty + b"(K\x01" + shape + kind + b"\x89" + opcodes(value.tobytes()) + b"tb"


def planes(split):
    """uint8 [N, 3072]: all red, then green, then blue."""
    return PIXELS[split].transpose(0, 3, 1, 2).reshape(COUNT, 3072)


def binary(split, *labels):
    return b"".join(bytes(row) + image.tobytes() for *row, image in zip(*labels, planes(split), strict=True))


def layouts():
    """Files by form: (folder, files, expected label of a split and position, settings)."""
    fine = FINE_NUMBERS
    names10, both = {"label_names": list(TEN)}, {"fine_label_names": list(FINE), "coarse_label_names": list(COARSE)}
    python10 = {
        s: {"batch_label": s, "labels": NUMBERS[s], "data": planes(s), "filenames": ["a.png"] * 6} for s in fine
    }
    python100 = {s: {"fine_labels": fine[s], "coarse_labels": NUMBERS[s], "data": planes(s)} for s in fine}
    bin10 = {"data_batch_1.bin": binary("train", NUMBERS["train"]), "test_batch.bin": binary("test", NUMBERS["test"])}
    bin100 = {f"{s}.bin": binary(s, NUMBERS[s], fine[s]) for s in fine}
    lines = {"fine_label_names.txt": FINE, "coarse_label_names.txt": COARSE, "batches.meta.txt": TEN}
    texts = {name: ("\n".join(names) + "\n\n").encode() for name, names in lines.items()}
    meta = texts.pop("batches.meta.txt")
    ten = {"train": "data_batch_1", "test": "test_batch"}
    return {
        "binary-10": ("cifar-10-batches-bin", bin10 | {"batches.meta.txt": meta, "readme.html": b"<p>"}),
        "binary-100": ("cifar-100-binary", bin100 | texts),
        "python-10": (
            "cifar-10-batches-py",
            {ten[s]: python2(python10[s]) for s in fine} | {"batches.meta": python2(names10), "readme.html": b"<p>"},
        ),
        "python-100": (
            "cifar-100-python",
            {s: python2(python100[s]) for s in fine} | {"meta": python2(both), "file.txt~": b""},
        ),
        "python3-10": (
            "batches",
            {ten[s]: pickle.dumps(python10[s]) for s in fine} | {"batches.meta": pickle.dumps(names10)},
        ),
    }


def place(tmp_path, form, container):
    folder, files = layouts()[form]
    if container == "folder":
        for name, data in files.items():
            path = tmp_path / folder / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(data)
        return tmp_path / folder
    path = tmp_path / f"{folder}.tar.gz"
    path.write_bytes(gzip.compress(tar_of([(f"{folder}/{name}", data) for name, data in files.items()])))
    return path


def check(rows, names, numbers):
    found = {}
    for row in rows:
        split = "test" if "test" in row.source.rpartition("/")[2] else "train"
        number = int(row.source.rpartition("#")[2])
        np.testing.assert_array_equal(row.image, PIXELS[split][number])
        assert row.label == names[numbers[split][number]]
        found[split, number] = row
    assert len(found) == len(rows) == 2 * COUNT


@pytest.mark.parametrize("container", ["folder", "tar.gz"])
@pytest.mark.parametrize("form", ["binary-10", "python-10", "python3-10"])
def test_cifar_10_with_its_names(tmp_path, form, container):
    uri = place(tmp_path, form, container)
    check(read(uri), TEN, NUMBERS)
    assert open_source(str(uri), Config()).classes == TEN


@pytest.mark.parametrize("container", ["folder", "tar.gz"])
@pytest.mark.parametrize("form", ["binary-100", "python-100"])
@pytest.mark.parametrize("column", ["fine", "coarse", "fine_labels"])
def test_cifar_100_has_two_labels_of_which_one_is_chosen(tmp_path, form, container, column):
    uri = place(tmp_path, form, container)
    names = COARSE if column == "coarse" else FINE
    numbers = NUMBERS if column == "coarse" else FINE_NUMBERS
    check(read(uri, label_column=column), names, numbers)
    choice = r"several labels that disagree: choose fine_labels .*--ingest.label_column fine_labels\) or coarse_labels"
    with pytest.raises(ConfigError, match=choice):
        read(uri)
    with pytest.raises(ConfigError, match=r"label_column=breed: .* no such labels. It has fine_labels of the batches"):
        read(uri, label_column="breed")


@pytest.mark.parametrize("container", ["folder", "tar.gz"])
@pytest.mark.parametrize("form", ["binary-10", "python-10"])
def test_the_test_batch_is_held_out_unless_the_settings_say_otherwise(tmp_path, form, container):
    uri = place(tmp_path, form, container)

    def splits(**settings):
        return {row.source.rpartition("/")[2].rpartition("!")[2][:4]: row.split for row in read(uri, **settings)}

    assert splits() == {"data": "train", "test": "heldout"}
    assert splits(splits="pool") == {"data": None, "test": None}
    assert splits(splits={"train": "train", "test": "out"}) == {"data": None}
    info = open_source(str(uri), Config()).info
    assert (info.kind, info.labels.name) == ("CIFAR batches", "labels of the batches")
    assert set(info.labels.values) <= set(TEN)


def test_labels_may_be_left_unread(tmp_path):
    assert {row.label for row in read(place(tmp_path, "python-100", "folder"), label_source="none")} == {None}


@pytest.mark.parametrize("form", ["binary-10", "python-10"])
def test_one_batch_finds_the_names_beside_it(tmp_path, form):
    folder = place(tmp_path, form, "folder")
    (batch,) = (path for path in folder.iterdir() if path.name.startswith("test_batch"))
    assert [row.label for row in read(batch)] == [TEN[n] for n in NUMBERS["test"]]
    for path in folder.iterdir():
        if path != batch:
            path.unlink()
    assert [row.label for row in read(batch)] == [str(n) for n in NUMBERS["test"]]


def test_binary_batches_are_cut_into_ranges_of_rows(tmp_path):
    uri = place(tmp_path, "binary-10", "folder")
    check(read(uri, partition_rows=4), TEN, NUMBERS)


def test_imagenet_at_64_pixels(tmp_path):
    images = random_pixels(3, 64, 64, 3)
    fields = {"data": images.transpose(0, 3, 1, 2).reshape(3, -1), "labels": [1, 1000, 7], "mean": np.zeros(12288)}
    (tmp_path / "train_data_batch_1").write_bytes(pickle.dumps(fields, protocol=4))
    rows = read(tmp_path)
    assert [row.label for row in rows] == ["1", "1000", "7"]
    np.testing.assert_array_equal(rows[2].image, images[2])


def test_a_number_without_a_name_is_a_reject(tmp_path):
    uri = place(tmp_path, "binary-10", "folder")
    (uri / "batches.meta.txt").write_text("airplane\nautomobile\n")
    rejects = [row for row in read(uri) if isinstance(row.image, Reject)]
    assert {row.image.reason for row in rejects} == {"unknown-label"}
    assert len(rejects) == 2 * COUNT - 3


def test_damaged_batches_and_other_files(tmp_path):
    uri = place(tmp_path, "python-10", "folder")
    (uri / "data_batch_2").write_bytes((uri / "data_batch_1").read_bytes()[:-300])
    (uri / "data_batch_3").write_bytes(pickle.dumps({"data": random_pixels(2, 9), "labels": [1, 2]}))
    (uri / "data_batch_4").write_bytes(pickle.dumps({"data": random_pixels(2, 3072), "labels": [1]}))
    (uri / "notes.md").write_text("notes")
    rows = read(uri)
    reasons = {row.source: row.image.reason for row in rows if isinstance(row.image, Reject)}
    schema = "wrong-schema"
    expected = {"data_batch_2": "damaged-container", "data_batch_3": schema, "data_batch_4": schema}
    assert reasons == expected | {"notes.md": "not-an-image"}
    assert sum(not isinstance(row.image, Reject) for row in rows) == 2 * COUNT


class Command:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_a_pickle_that_names_a_function_is_refused_and_not_run(tmp_path, protocol):
    target = tmp_path / "made"
    data = pickle.dumps({"data": Command(target), "labels": []}, protocol)
    with pytest.raises(UnusableFile, match="only numpy arrays and plain values are read"):
        load_plain(data)
    (tmp_path / "set").mkdir()
    (tmp_path / "set/data_batch_1").write_bytes(data)
    with pytest.raises(DataError):
        read(tmp_path / "set")
    assert not target.exists()


@pytest.mark.parametrize("protocol", range(6))
def test_arrays_of_every_protocol(protocol):
    for dtype in ("u1", "i8", "<f4", ">i2", "?"):
        array = np.arange(24).reshape(2, 3, 4).astype(dtype)
        for one in (array, np.asfortranarray(array)):
            np.testing.assert_array_equal(array_of(load_plain(pickle.dumps({b"a": one}, protocol))[b"a"]), array)
    assert load_plain(pickle.dumps([np.int64(7), b"x", "y", None, True, 1.5], protocol)) == [
        7,
        b"x",
        "y",
        None,
        True,
        1.5,
    ]


def test_arrays_of_objects_and_false_shapes_are_refused():
    with pytest.raises(UnusableFile, match="array of"):
        load_plain(pickle.dumps(np.array([None, "a"])))
    good = python2({"data": planes("train")})
    wrong = good.replace(b"J" + struct.pack("<i", COUNT), b"J" + struct.pack("<i", COUNT + 1))
    with pytest.raises(UnusableFile, match="shape"):
        load_plain(wrong)


def test_damaged_pickles_are_refused_or_read_but_never_raise_otherwise():
    rng = np.random.default_rng(0)
    good = python2({"labels": [1, 2, 3], "data": random_pixels(3, 12), "filenames": ["a", "b", "c"]})
    for _ in range(2000):
        copy = bytearray(good)
        copy[rng.integers(2, len(copy))] = rng.integers(256)
        try:
            load_plain(bytes(copy))
        except UnusableFile:
            continue
