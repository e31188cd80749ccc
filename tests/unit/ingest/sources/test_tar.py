"""Tar archives: WebDataset samples, unsafe members, damaged archives."""

import gzip
import tarfile
import tracemalloc

import corpus
import pytest

from pipeline.config.root import Config
from pipeline.ingest.sources.open import open_source

pytestmark = pytest.mark.unit
GOOD = corpus.encoded(corpus.photo())
OTHER = corpus.encoded(corpus.photo(1))


def rows_of(folder, members, mode="w"):
    (folder / "a.tar").write_bytes(members if isinstance(members, bytes) else corpus.tar_of(members, mode))
    return corpus.read(folder / "a.tar")


def short(rows):
    return [(row.source.removeprefix("a.tar!"), corpus.outcome(row), row.label) for row in rows]


def test_consecutive_members_with_one_key_are_one_sample(tmp_path):
    members = [
        ("0001.png", GOOD),
        ("0001.cls", b"3\n"),
        ("0002.cls", b"dog"),
        ("0002.jpg", OTHER),
        ("0002.txt", b"a long caption"),
        ("0003.png", GOOD),
        ("bird/0006.png", GOOD),
        ("0008.left.png", GOOD),
        ("0008.right.png", OTHER),
        ("0008.cls", b"1"),
        ("0009.npy", b"\x93NUMPY"),
        ("0009.json", b"{}"),
        ("0010.bin", OTHER),
    ]
    assert short(rows_of(tmp_path, members)) == [
        ("0001.png", "image", "3"),
        ("0002.jpg", "image", "dog"),
        ("0003.png", "image", None),
        ("bird/0006.png", "image", None),
        ("0008.left.png", "image", "1"),
        ("0008.right.png", "image", "1"),
        ("0009.npy", "not-an-image", None),
        ("0010.bin", "image", None),
    ]


@pytest.mark.parametrize(
    ("extension", "texts", "labels"),
    [
        ("json", [b'{"width": 8, "label": "cat", "caption": "x"}', b"{broken", b'{"label": 3}'], ["cat", None, "3"]),
        ("json", [b'{"cls": 1.0}', b'{"cls": -1}', b'{"cls": null}'], ["1", None, None]),
        ("txt", [b"frog", b"two lines\nare no label", b"frog\n", b"cat", b"cat"], ["frog", None, "frog", "cat", "cat"]),
        ("txt", [b"a red frog on a leaf", b"two cats", b"a dog"], [None, None, None]),
        ("cls", [b"0", b"1\n", b""], ["0", "1", None]),
    ],
)
def test_labels_of_samples(tmp_path, extension, texts, labels):
    members = [
        member
        for number, text in enumerate(texts)
        for member in ((f"{number}.png", GOOD), (f"{number}.{extension}", text))
    ]
    assert [row.label for row in rows_of(tmp_path, members)] == labels


def test_members_outside_the_archive_or_not_files_are_rejected(tmp_path):
    members = [
        ("../../etc/cron.d/evil.png", GOOD),
        ("/etc/evil.png", GOOD),
        ("a/../../evil.png", GOOD),
        ("C:\\evil.png", GOOD),
        ("..\\evil.png", GOOD),
        corpus.special("link.png", tarfile.SYMTYPE, "/etc/passwd"),
        corpus.special("hard.png", tarfile.LNKTYPE, "link.png"),
        corpus.special("zero.png", tarfile.CHRTYPE),
        corpus.special("disk.png", tarfile.BLKTYPE),
        corpus.special("pipe.png", tarfile.FIFOTYPE),
        corpus.special("folder", tarfile.DIRTYPE),
        ("inner.tar", corpus.tar_of([("x.png", GOOD)])),
        ("._mac.png", b"x"),
        ("./plain.png", GOOD),
    ]
    names = ("unsafe-name",) * 5 + ("unsafe-member",) * 5
    rows = rows_of(tmp_path, members)
    assert tuple(corpus.outcome(row) for row in rows) == (*names, "image", "image")
    assert rows[-2].source == "a.tar!inner.tar"  # the decoder rejects it as a nested archive
    assert rows[-1].source == "a.tar!plain.png"


def test_a_member_over_the_size_limit_is_skipped_unread(tmp_path):
    info = tarfile.TarInfo("huge.png")
    info.size = 2**40
    begin = corpus.tar_begin([("a.png", GOOD)]) + info.tobuf()
    with open(tmp_path / "a.tar", "wb") as file:
        file.write(begin)
        file.seek(len(begin) + 2**40)
        file.write(corpus.tar_of([("b.png", OTHER)]))
    assert [corpus.outcome(row) for row in corpus.read(tmp_path / "a.tar")] == ["image", "too-many-bytes", "image"]


def test_a_zipped_bomb_ends_its_archive(tmp_path):
    inner = corpus.tar_of([("a.png", GOOD), ("b.png", bytes(2**26)), ("c.png", OTHER)])
    (tmp_path / "a.tar").write_bytes(gzip.compress(inner, 9))
    tracemalloc.start()
    rows = corpus.read(tmp_path / "a.tar")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [corpus.outcome(row) for row in rows] == ["image", "too-many-bytes", "damaged-container"]
    assert peak < 2**25


@pytest.mark.parametrize("cut", ["in a member", "in a header", "before the end mark", "flipped header", "gzip"])
def test_rows_before_the_damage_are_kept_and_the_damage_is_reported(tmp_path, cut):
    whole = corpus.tar_of([("a.png", GOOD), ("b.png", OTHER), ("c.png", GOOD)])
    second = whole.index(b"b.png")
    third = whole.index(b"c.png")
    data = {
        "in a member": whole[: third + 600],
        "in a header": whole[: third + 100],
        "before the end mark": whole[:third],
        "flipped header": corpus.damaged(whole, third + 20),
        "gzip": gzip.compress(whole)[:-400],
    }[cut]
    assert second < third
    rows = rows_of(tmp_path, data)
    images = [row for row in rows if corpus.outcome(row) == "image"]
    assert corpus.outcome(rows[-1]) == "damaged-container"
    assert len(rows) == len(images) + 1
    if cut != "gzip":
        assert [row.image for row in images] == [GOOD, OTHER]


@pytest.mark.parametrize("kind", ["pax", "longname"])
def test_headers_cannot_request_much_memory(tmp_path, kind):
    info = tarfile.TarInfo("x")
    info.type = tarfile.XHDTYPE if kind == "pax" else tarfile.GNUTYPE_LONGNAME
    info.size = 2**32
    begin = corpus.tar_begin([("a.png", GOOD)]) + info.tobuf()
    (tmp_path / "a.tar").write_bytes(gzip.compress(begin + bytes(2**24)))
    rows = corpus.read(tmp_path / "a.tar")
    assert [corpus.outcome(row) for row in rows] == ["image", "damaged-container"]
    assert "header of 4294967296 bytes" in rows[-1].image.detail


def test_a_header_that_points_back_ends_the_archive(tmp_path):
    info = tarfile.TarInfo("x")
    block = bytearray(info.tobuf())
    block[124:136] = b"\xff" * 12  # a negative size
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    rows = rows_of(tmp_path, bytes(block) + bytes(2048))
    assert {corpus.outcome(row) for row in rows} == {"damaged-container"}


def test_odd_names_and_an_empty_archive(tmp_path):
    names = ["ü 猫.png", "a" * 300 + ".png", "deep/" * 40 + "x.png", "new\nline.png"]
    rows = rows_of(tmp_path, [(name, GOOD) for name in names])
    assert [row.source for row in rows] == [f"a.tar!{name}" for name in names]
    assert rows_of(tmp_path, []) == []
    assert open_source(str(tmp_path / "a.tar"), Config()).classes is None
