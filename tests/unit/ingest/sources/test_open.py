"""The bytes of the files decide the kind of source, and each kind yields every row from every store."""

import csv
import gzip
import io
import json
import os
import pickle
import zlib
from dataclasses import replace

import corpus
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config.ingest import IngestConfig
from pipeline.config.root import Config
from pipeline.config.storage import StorageConfig
from pipeline.errors import ConfigError, DataError, NotFound, StorageError
from pipeline.ingest.sources.open import open_source
from pipeline.storage.store import resolve

ITEMS = {name: item for name, item in corpus.images().items() if name not in ("page.pdf", "slow.jpg")}
LARGE = {"heavy.bmp"}


def as_folder(items):
    return {f"source/{name}": data for name, data in items.items()}


def as_tar(items):
    return {"source": corpus.tar_of(items.items())}


def as_tar_gz(items):
    return {"source": gzip.compress(corpus.tar_of((n, d) for n, d in items.items() if n not in LARGE))}


def as_zip(items):
    return {"source": corpus.zip_of(items)}


def parquet(table):
    buffer = io.BytesIO()
    pq.write_table(table, buffer, row_group_size=7)
    return buffer.getvalue()


def as_parquet(items):
    return {"source": parquet(pa.table({"image": list(items.values()), "name": list(items)}))}


def as_nested_parquet(items):
    rows = [{"bytes": data, "path": name} for name, data in items.items()]
    return {"source": parquet(pa.table({"picture": rows}))}


def as_csv(items):
    text = io.StringIO()
    csv.writer(text).writerows([["file_name", "label"], *([f"files/{name}", "x"] for name in items)])
    return {"source": text.getvalue().encode(), **{f"files/{name}": data for name, data in items.items()}}


def as_json_lines(items):
    lines = [json.dumps({"path": f"files/{name}"}) for name in items]
    return {"source": "\n".join(lines).encode(), **{f"files/{name}": data for name, data in items.items()}}


def as_list_in_parquet(items):
    table = pa.table({"uri": [f"files/{name}" for name in items]})
    return {"source": parquet(table), **{f"files/{name}": data for name, data in items.items()}}


PACKINGS = [
    as_folder,
    as_tar,
    as_tar_gz,
    as_zip,
    as_parquet,
    as_nested_parquet,
    as_csv,
    as_json_lines,
    as_list_in_parquet,
]


@pytest.mark.parametrize("packing", PACKINGS)
def test_every_image_is_a_row(store, packing):
    files = packing({name: item.data for name, item in ITEMS.items()})
    for key, data in files.items():
        store.put(key, data)
    rows = corpus.read(store.location("source"), partition_rows=11)
    items = ITEMS if packing is not as_tar_gz else {n: i for n, i in ITEMS.items() if n not in LARGE}
    assert len(rows) == len({row.source for row in rows}) == len(items)
    by_data = {item.data: name for name, item in items.items()}
    found = {}
    for row in rows:
        if corpus.outcome(row) == "image":
            found[by_data[row.image]] = "image"
        else:
            (name,) = [n for n in items if row.source.endswith(n)] or ["heavy.bmp"]
            found[name] = row.image.reason
    # Archives reject members that are neither images by content nor by name; other kinds only check the size here.
    expected = dict.fromkeys(items, "image") | {name: "too-many-bytes" for name in LARGE if name in items}
    if packing in (as_tar, as_tar_gz):
        expected |= dict.fromkeys(("drawing.svg", "page.eps", "phone.heic"), "not-an-image")
    if packing in (as_parquet, as_nested_parquet):  # without sizes to check beforehand: the decoder checks
        expected |= dict.fromkeys(LARGE, "image")
    expected["twin-1.png"] = expected.pop("twin-2.png")  # members are named by content here
    found.setdefault("twin-1.png", found.pop("twin-2.png", None))
    assert found == expected


@pytest.mark.unit
def test_a_relative_source_is_made_absolute_before_it_is_sent(tmp_path, monkeypatch):
    for packing in (as_folder, as_csv, as_zip):
        home = tmp_path / packing.__name__
        for key, data in packing({"cat/1.png": corpus.encoded(corpus.photo())}).items():
            (home / key).parent.mkdir(parents=True, exist_ok=True)
            (home / key).write_bytes(data)
        monkeypatch.chdir(home)
        source = open_source("source", Config())
        assert source.name == str(home / "source")
        monkeypatch.chdir("/")
        (partition,) = source.partitions()
        (row,) = pickle.loads(pickle.dumps(source)).rows(partition)
        assert row.image == corpus.encoded(corpus.photo())
    images = np.arange(27, dtype=np.uint8).reshape(3, 3, 3)
    (tmp_path / "t-images-idx3-ubyte").write_bytes(bytes([0, 0, 8, 3]) + b"\0\0\0\3" * 3 + images.tobytes())
    monkeypatch.chdir(tmp_path)
    source = open_source("t-images-idx3-ubyte", Config())
    monkeypatch.chdir("/")
    assert [row.image.tolist() for p in source.partitions() for row in source.rows(p)] == images.tolist()


@pytest.mark.unit
@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("a.bin", b"\x07\x06\x05\x04\x03", r"something that begins with b'\\x07"),
        ("a.7z", b"7z\xbc\xaf\x27\x1c\0\4", "is a 7z archive: unpack it; a source is a folder"),
        ("a.npy", b"\x93NUMPY\1\0", r"save its arrays with numpy\.savez"),
        ("other.pkl", pickle.dumps({"x": 1}), "a pickle without data, uint8 .*, as in CIFAR"),
        ("notes.txt", b"dear diary\n", "is text: a source is a folder, zip or tar"),
        ("t-labels-idx1-ubyte", bytes([0, 0, 8, 1, 0, 0, 0, 0]), "an IDX file of labels"),
        ("a.parquet", b"PAR1" + bytes(40) + b"PAR1", "no whole Parquet file"),
        ("a.parquet", parquet(pa.table({"x": [1.5]})), "no column holds images .* the columns are x: double"),
        ("a.zip", b"PK\3\4" + bytes(50), "no whole zip archive"),
        ("empty.png", b"", None),
        ("empty.bin", b"", "is an empty file"),
    ],
)
def test_an_unusable_source_is_an_error_that_names_its_content(tmp_path, name, data, words):
    (tmp_path / name).write_bytes(data)
    if words is None:
        assert [row.image for row in corpus.read(tmp_path / name)] == [b""]
        return
    with pytest.raises(DataError, match=words):
        corpus.read(tmp_path / name)


@pytest.mark.unit
def test_a_folder_without_images_is_an_error_that_names_its_content(tmp_path):
    (tmp_path / "notes.txt").write_text("dear diary")
    (tmp_path / ".hidden.png").write_bytes(corpus.encoded(corpus.photo()))
    with pytest.raises(DataError, match=r"no images at .* \(notes.txt: text\): a source is"):
        corpus.read(tmp_path)
    with pytest.raises(DataError, match="missing or empty"):
        corpus.read(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="cannot use"):
        corpus.read("http://example.org/images")


@pytest.mark.unit
def test_the_most_frequent_kind_decides_and_other_files_are_rejected(tmp_path):
    table = pa.table({"image": [corpus.encoded(corpus.photo(n)) for n in range(3)], "label": ["a", "b", "a"]})
    for number in range(3):
        (tmp_path / f"part-{number}.parquet").write_bytes(parquet(table))
    (tmp_path / "part-3.parquet").write_bytes(parquet(table)[:-9])
    (tmp_path / "part-4.parquet").write_bytes(b"")
    (tmp_path / "part-5.parquet").write_bytes(parquet(table.slice(0, 0)))
    (tmp_path / "part-6.parquet").write_bytes(parquet(table.slice(0, 1)))
    (tmp_path / "part-7.parquet").write_bytes(parquet(pa.table({"x": [1, 2]})))
    (tmp_path / "README.md").write_text("# A data set")
    (tmp_path / "preview.png").write_bytes(corpus.encoded(corpus.photo()))
    (tmp_path / "part-8.parquet").symlink_to(tmp_path / "gone")
    found = {}
    for row in corpus.read(tmp_path):
        found.setdefault(row.source.partition("#")[0], []).append(corpus.outcome(row))
    assert found == {
        "README.md": ["not-an-image"],
        "preview.png": ["not-an-image"],
        **{f"part-{number}.parquet": ["image"] * 3 for number in range(3)},
        "part-3.parquet": ["damaged-container"],
        "part-4.parquet": ["empty"],
        "part-6.parquet": ["image"],
        "part-7.parquet": ["wrong-schema"] * 2,
        "part-8.parquet": ["unsafe-member"],
    }


@pytest.mark.unit
@pytest.mark.parametrize("packing", PACKINGS)
def test_known_files_are_skipped_and_changed_files_are_read(tmp_path, packing):
    def put(items):
        for key, data in packing(items).items():
            path = tmp_path / key
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.exists() or path.read_bytes() != data:
                path.write_bytes(data)
                os.utime(path, ns=(time_of(data), time_of(data)))

    def time_of(data):
        return 10**18 + zlib.crc32(data)

    def snapshot():
        source = open_source(str(tmp_path / "source"), Config(ingest=IngestConfig(partition_rows=2)))
        return source, [file for part in source.partitions() for file in part.files]

    images = {f"c/{n}.png": corpus.encoded(corpus.photo(n)) for n in range(5)}
    put(images)
    source, files = snapshot()
    known = {file.fingerprint for file in files}
    assert not list(source.partitions(known))
    assert list(source.partitions()) == list(snapshot()[0].partitions())
    put(images | {"c/5.png": corpus.encoded(corpus.photo(5))})
    source, files = snapshot()
    new = [file.key for part in source.partitions(known) for file in part.files]
    separate = packing in (as_folder, as_csv, as_json_lines, as_list_in_parquet)
    assert [key.rpartition("/")[2] for key in new] == (["5.png"] if separate else ["source"] * len(new))
    assert new


@pytest.mark.unit
def test_a_failing_store_is_an_error_and_not_a_reject(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(b"x")
    source = open_source(str(tmp_path), Config())
    (partition,) = source.partitions()
    away = StorageConfig(endpoint="http://127.0.0.1:9", retries=0)
    source = replace(source, store=resolve("s3://nowhere/x", away))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "k")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s")
    with pytest.raises(StorageError) as caught:
        list(source.rows(partition))
    assert not isinstance(caught.value, NotFound)
