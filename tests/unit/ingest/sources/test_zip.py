"""Zip archives: folders as labels, unsafe members, damaged archives."""

import io
import stat
import struct
import warnings
import zipfile

import corpus
import pytest

from pipeline.config.ingest import IngestConfig
from pipeline.config.root import Config
from pipeline.ingest.sources.open import open_source

pytestmark = pytest.mark.unit
GOOD = corpus.encoded(corpus.photo())


def rows_of(folder, data, **settings):
    (folder / "a.zip").write_bytes(data)
    return corpus.read(folder / "a.zip", **settings)


def labels(rows):
    return {row.source.removeprefix("a.zip!"): row.label for row in rows}


def test_the_first_folder_below_a_common_root_is_the_class(tmp_path):
    names = ["set/cat/1.png", "set/dog/deep/2.png", "set/3.png", "set/.hidden/4.png", "__MACOSX/._5.png"]
    rows = rows_of(tmp_path, corpus.zip_of(dict.fromkeys(names, GOOD)))
    assert labels(rows) == {"set/cat/1.png": "cat", "set/dog/deep/2.png": "dog", "set/3.png": None}
    assert open_source(str(tmp_path / "a.zip"), Config()).classes == ("cat", "dog")
    rows = rows_of(tmp_path, corpus.zip_of(dict.fromkeys(["cat/1.png", "dog/2.png"], GOOD)), partition_rows=1)
    assert labels(rows) == {"cat/1.png": "cat", "dog/2.png": "dog"}


def test_unsafe_members_are_rejected(tmp_path):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("../evil.png", "/etc/evil.png", "a/../../evil.png", "..\\evil.png"):
            archive.writestr(name, GOOD)
        link = zipfile.ZipInfo("link.png")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
        archive.writestr("bomb.png", bytes(2**24))
        archive.writestr("lzma.png", GOOD, compress_type=zipfile.ZIP_LZMA)
        archive.writestr("bzip2.png", GOOD, compress_type=zipfile.ZIP_BZIP2)
        archive.writestr("inner.zip", corpus.zip_of({"x.png": GOOD}))
        archive.writestr("folder/", b"")
        archive.writestr("good.png", GOOD)
    found = {row.source.removeprefix("a.zip!"): corpus.outcome(row) for row in rows_of(tmp_path, buffer.getvalue())}
    assert found == {
        **dict.fromkeys(("../evil.png", "/etc/evil.png", "a/../../evil.png", "..\\evil.png"), "unsafe-name"),
        "link.png": "unsafe-member",
        "bomb.png": "too-many-bytes",
        "lzma.png": "unreadable",
        **dict.fromkeys(("bzip2.png", "inner.zip", "good.png"), "image"),
    }


def test_a_directory_with_wrong_sizes(tmp_path):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb.png", bytes(2**26))
        archive.writestr("good.png", GOOD)
    data = buffer.getvalue().replace(struct.pack("<I", 2**26), struct.pack("<I", 100))
    rows = rows_of(tmp_path, data)
    assert [corpus.outcome(row) for row in rows] == ["damaged-container", "image"]


def test_encrypted_and_damaged_members_are_rejected_alone(tmp_path):
    whole = corpus.zip_of({"a.png": GOOD, "b.png": GOOD, "c.png": GOOD})
    flagged = bytearray(whole)
    directory = flagged.index(b"PK\x01\x02")
    flagged[directory + 8] |= 1
    assert [corpus.outcome(row) for row in rows_of(tmp_path, bytes(flagged))] == ["unreadable", "image", "image"]
    damaged = corpus.damaged(whole, 200)
    assert [corpus.outcome(row) for row in rows_of(tmp_path, damaged)] == ["damaged-container", "image", "image"]


def test_an_archive_without_a_directory_is_one_reject_in_a_folder(tmp_path):
    (tmp_path / "a.zip").write_bytes(corpus.zip_of({"a.png": GOOD}))
    (tmp_path / "b.zip").write_bytes(corpus.zip_of({"a.png": GOOD})[:-10])
    (tmp_path / "c.zip").write_bytes(corpus.zip_of({}))
    rows = corpus.read(tmp_path)
    assert [(row.source, corpus.outcome(row)) for row in rows] == [
        ("a.zip!a.png", "image"),
        ("b.zip", "damaged-container"),
    ]


def test_one_name_twice_is_two_rows(tmp_path):
    buffer = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w") as archive:
        warnings.simplefilter("ignore")
        archive.writestr("a.png", GOOD)
        archive.writestr("a.png", corpus.encoded(corpus.photo(1)))
    rows = rows_of(tmp_path, buffer.getvalue())
    assert [row.image for row in rows] == [GOOD, corpus.encoded(corpus.photo(1))]


def test_partitions_are_ranges_of_the_directory(tmp_path):
    (tmp_path / "a.zip").write_bytes(corpus.zip_of({f"{n:02}.png": GOOD for n in range(25)}))
    source = open_source(str(tmp_path / "a.zip"), Config(ingest=IngestConfig(partition_rows=10)))
    assert [part.rows for part in source.partitions()] == [range(10), range(10, 20), range(20, 25)]
    assert sum(len(list(source.rows(part))) for part in source.partitions()) == 25
