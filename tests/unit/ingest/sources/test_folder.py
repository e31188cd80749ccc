"""Folders: labels by sub-folder, entries that are not files, files that are unreadable or deleted after listing."""

import os
from dataclasses import dataclass, replace

import corpus
import pytest

from pipeline.config.ingest import IngestConfig
from pipeline.config.root import Config
from pipeline.config.storage import StorageConfig
from pipeline.errors import Denied
from pipeline.ingest.sources.folder import open_folder
from pipeline.ingest.sources.open import open_source
from pipeline.storage.store import Store, resolve

pytestmark = pytest.mark.unit
GOOD = corpus.encoded(corpus.photo())


def put(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(GOOD)


def test_the_first_folder_is_the_class_however_deep_the_file(tmp_path):
    put(tmp_path, "cat/1.png", "dog/black/small/2.png", "größe hund/ 3 .png", ".hidden/4.png", "cat/.5.png")
    (tmp_path / "README.txt").write_text("about")
    assert {row.source: row.label for row in corpus.read(tmp_path)} == {
        "README.txt": None,
        "cat/1.png": "cat",
        "dog/black/small/2.png": "dog",
        "größe hund/ 3 .png": "größe hund",
    }
    assert open_source(str(tmp_path), Config()).classes == ("cat", "dog", "größe hund")


def test_entries_that_are_not_files_are_rejected_and_link_loops_end(tmp_path):
    put(tmp_path, "cat/1.png")
    (tmp_path / "twin").symlink_to(tmp_path / "cat")  # a link to a folder elsewhere is followed
    (tmp_path / "cat" / "up").symlink_to(tmp_path)
    (tmp_path / "self").symlink_to(tmp_path / "self")
    (tmp_path / "broken.png").symlink_to(tmp_path / "gone.png")
    (tmp_path / "linked.png").symlink_to(tmp_path / "cat" / "1.png")
    os.mkfifo(tmp_path / "pipe.png")
    os.fsencode(tmp_path)
    with open(os.fsencode(tmp_path) + b"/latin-\xe9.png", "wb") as file:
        file.write(GOOD)
    assert {row.source: corpus.outcome(row) for row in corpus.read(tmp_path)} == {
        "broken.png": "unsafe-member",
        "cat/1.png": "image",
        "cat/up": "unsafe-member",
        "latin-\udce9.png": "image",
        "linked.png": "image",
        "pipe.png": "unsafe-member",
        "self": "unsafe-member",
        "twin/1.png": "image",
        "twin/up": "unsafe-member",
    }


def test_files_that_go_change_or_grow_between_listing_and_reading(tmp_path):
    put(tmp_path, "a.png", "b.png", "c.png")
    source = open_source(str(tmp_path), Config())
    (partition,) = source.partitions()
    (tmp_path / "a.png").unlink()
    (tmp_path / "b.png").write_bytes(b"")
    (tmp_path / "c.png").unlink()
    (tmp_path / "c.png").mkdir()
    assert [corpus.outcome(row) for row in source.rows(partition)] == ["missing", "image", "missing"]


@dataclass(frozen=True)
class DeniedStore(Store):
    """Denies access to some objects, or to all."""

    denied: tuple[str, ...] = ()
    all_denied: bool = False

    def read(self, key):
        if self.all_denied or key in self.denied:
            raise Denied(f"refused access to {key}")
        return super().read(key)

    def list(self, prefix=""):
        if self.all_denied:
            raise Denied("refused access")
        return super().list(prefix)


@pytest.mark.parametrize("root", ["local", "memory"])
def test_a_denied_object_is_a_reject_and_denied_credentials_are_an_error(tmp_path, root):
    uri = str(tmp_path) if root == "local" else "memory://denied"
    plain = resolve(uri, StorageConfig())
    plain.put("a.png", GOOD)
    plain.put("b.png", GOOD)
    source = open_folder(
        DeniedStore(uri, plain.config, ("a.png",)), IngestConfig(partition_rows=10, max_image_bytes=10**6)
    )
    (partition,) = source.partitions()
    assert [corpus.outcome(row) for row in source.rows(partition)] == ["unreadable", "image"]
    if root == "memory":  # behaves as an object store, where credentials expire
        refused = replace(source, store=DeniedStore(uri, plain.config, all_denied=True))
        with pytest.raises(Denied):
            list(refused.rows(partition))
        plain.delete("a.png")
        plain.delete("b.png")


def test_large_files_are_not_read(tmp_path):
    put(tmp_path, "a.png")
    with open(tmp_path / "sparse.png", "wb") as file:
        file.truncate(2**40)
    assert [corpus.outcome(row) for row in corpus.read(tmp_path)] == ["image", "too-many-bytes"]


def test_partitions_are_groups_of_files_in_key_order(tmp_path):
    put(tmp_path, *(f"{n:02}.png" for n in range(25)))
    source = open_source(str(tmp_path), Config(ingest=IngestConfig(partition_rows=10)))
    parts = list(source.partitions())
    assert [len(part.files) for part in parts] == [10, 10, 5]
    assert [part.id for part in parts] == ["00.png", "10.png", "20.png"]
    assert [file.key for part in parts for file in part.files] == [f"{n:02}.png" for n in range(25)]
    assert len(set(parts)) == 3


def test_one_image_is_a_source(tmp_path):
    put(tmp_path, "a b.png", "c.png")
    (row,) = corpus.read(tmp_path / "a b.png")
    assert (row.source, row.image, row.label) == ("a b.png", GOOD, None)


def test_keys_that_only_object_stores_can_hold_are_rejected(monkeypatch):
    states = [("a.png", 3, "v1"), ("a//b.png", 3, "v1"), ("../c.png", 3, "v1")]
    monkeypatch.setattr(
        "pipeline.storage.memory.BACKEND.list_versioned", lambda prefix: ((prefix + k, s, v) for k, s, v in states)
    )
    store = resolve("memory://odd-keys", StorageConfig())
    store.put("a.png", GOOD)
    source = open_folder(store, IngestConfig(partition_rows=10, max_image_bytes=10**6))
    (partition,) = source.partitions()
    found = {row.source: corpus.outcome(row) for row in source.rows(partition)}
    store.delete("a.png")
    assert found == {"a.png": "image", "a//b.png": "unsafe-member", "../c.png": "unsafe-member"}
