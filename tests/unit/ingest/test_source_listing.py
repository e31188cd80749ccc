"""Snapshots give partitions back unchanged, whatever the file names; known files are recognised."""

import pytest

from pipeline.ingest import source_listing
from pipeline.ingest.source_listing import KnownFiles, read_snapshot, snapshot_digest, write_snapshot
from pipeline.ingest.sources.source import Partition, SourceFile

pytestmark = pytest.mark.unit

FILES = tuple(SourceFile(f"größe {n}\udcff.png", n, f"v{n}") for n in range(10))


def cut(size):
    return [Partition(FILES[i].key, FILES[i : i + size]) for i in range(0, len(FILES), size)]


def test_partitions_come_back(store, monkeypatch):
    monkeypatch.setattr(source_listing, "FILES_A_PART", 4)
    partitions = [
        *cut(3),
        Partition("rows", FILES[:2], range(5, 9)),
        Partition("list", FILES[:3], None, ("a", None, "\udcfe")),
    ]
    made = write_snapshot(store, 7, partitions)
    assert list(read_snapshot(store, made.parts)) == partitions
    assert len(made.parts) > 1
    assert all(part.key.startswith("snapshots/000007-") for part in made.parts)
    assert (made.partitions, made.rows) == (6, 10 + 4 + 3)
    assert made.digest == snapshot_digest(partitions)


def test_the_digest_is_of_files_not_of_partitions():
    assert snapshot_digest(cut(1)) == snapshot_digest(cut(4))
    pair = FILES[:2]
    shares = [Partition(f"{n}", pair, range(n, n + 5)) for n in range(0, 20, 5)]
    assert snapshot_digest(shares) == snapshot_digest([Partition("all", pair, range(20))])
    changed = (FILES[0]._replace(version="new"), *FILES[1:])
    assert snapshot_digest([Partition("x", changed)]) != snapshot_digest(cut(10))
    labelled = [Partition("x", FILES, None, ("a",) * 10)]
    assert snapshot_digest(labelled) != snapshot_digest(cut(10))


def test_known_files_and_whether_they_were_seen(store):
    parts = write_snapshot(store, 1, cut(4)).parts
    known = KnownFiles(store, parts)
    assert FILES[3].fingerprint in known
    assert FILES[3]._replace(size=99).fingerprint not in known
    assert FILES[3]._replace(version="new").fingerprint not in known
    assert known.unseen == 9
    known.mark_seen(FILES[5:])
    assert known.unseen == 4
    assert "00" * 16 not in KnownFiles(store, ())
    assert KnownFiles(store, ()).unseen == 0
