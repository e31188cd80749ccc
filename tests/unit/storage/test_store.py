"""Resolving URIs, and behaviour specific to local files."""

import os
import resource
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipeline.config.storage import StorageConfig
from pipeline.errors import AlreadyExists, ConfigError, DataError, NotFound, StorageError
from pipeline.storage.store import Store, resolve

pytestmark = pytest.mark.unit

CONFIG = StorageConfig(endpoint="http://127.0.0.1:8333")


@pytest.fixture
def local(tmp_path: Path) -> Store:
    return resolve(str(tmp_path / "root"), CONFIG)


@pytest.mark.parametrize(
    ("uri", "root", "kind", "path"),
    [
        ("s3://bucket", "s3://bucket", "s3", "bucket/a/b"),
        ("s3://bucket/", "s3://bucket", "s3", "bucket/a/b"),
        ("S3://bucket/some/prefix/", "s3://bucket/some/prefix", "s3", "bucket/some/prefix/a/b"),
        ("s3://my-bucket.x/é è", "s3://my-bucket.x/é è", "s3", "my-bucket.x/é è/a/b"),
        ("memory://Name/p", "memory://Name/p", "memory", "Name/p/a/b"),
        ("/data/x/", "/data/x", "local", "/data/x/a/b"),
        ("/data/../x", "/x", "local", "/x/a/b"),
        ("file:///data/a%20b", "/data/a b", "local", "/data/a b/a/b"),
        ("file:///data/100%/#1?", "/data/100%/#1?", "local", "/data/100%/#1?/a/b"),
        ("/data/a%20b", "/data/a%20b", "local", "/data/a%20b/a/b"),
        ("/", "/", "local", "/a/b"),
    ],
)
def test_uris_resolve_to_one_form(uri: str, root: str, kind: str, path: str):
    store = resolve(uri, CONFIG)
    assert (store.uri, store.kind, store.path("a/b"), store.path()) == (
        root,
        kind,
        path,
        path.removesuffix("a/b").rstrip("/") or "/",
    )
    assert store.child("a").path("b") == store.child("a/b").path() == path
    assert store.location("a/b") == store.child("a", "b").uri == (root if root == "/" else root + "/") + "a/b"


def test_relative_paths_become_absolute_for_other_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert resolve("runs/x", CONFIG).uri == str(tmp_path / "runs/x")
    assert resolve("~/runs", CONFIG).uri == str(tmp_path / "home/runs")


@pytest.mark.parametrize(
    ("uri", "advice"),
    [
        ("", "give a local path or s3://bucket/prefix"),
        ("gs://bucket/x", "give a local path, file:///path or s3://bucket/prefix"),
        ("https://host/x", "give a local path"),
        ("s3:/bucket/x", "give a local path"),
        ("s3://", "has no valid bucket name"),
        ("s3:///x", "has no valid bucket name"),
        ("s3://Upper/x", "has no valid bucket name"),
        ("s3://ab/x", "has no valid bucket name"),
        ("memory://", "has no valid bucket name"),
        ("s3://bucket/a/../b", "bad key"),
        ("s3://bucket/a//b", "bad key"),
        ("file://host/x", "must be file:///absolute/path"),
        ("file:/x", "must be file:///absolute/path"),
    ],
)
def test_bad_uris_are_refused_with_advice(uri: str, advice: str):
    with pytest.raises(ConfigError, match=advice):
        resolve(uri, CONFIG)


@pytest.mark.parametrize("uri", ["s3://key:hush@bucket/x", "s3://hush@bucket", "ftp://me:hush@host/x"])
def test_credentials_in_a_uri_are_refused_and_not_repeated(uri: str):
    with pytest.raises(ConfigError) as caught:
        resolve(uri, CONFIG)
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize("endpoint", ["localhost:8333", "ftp://host", "http://", "http://key:hush@host"])
def test_bad_endpoints_are_refused_when_they_matter(endpoint: str, tmp_path: Path):
    config = StorageConfig(endpoint=endpoint)
    with pytest.raises(ConfigError, match=r"storage\.endpoint") as caught:
        resolve("s3://bucket/x", config)
    assert "hush" not in str(caught.value)
    assert resolve(str(tmp_path), config).kind == "local"


def test_a_failed_write_leaves_the_old_object_and_no_file(local: Store):
    local.put("key", b"old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, before[1]))
    try:
        for write in (local.put, local.create_once):
            with pytest.raises(StorageError, match="check the disk"):
                write("new", bytes(2**20))
        with pytest.raises(StorageError, match="check the disk"):
            local.put("key", bytes(2**20))
        with pytest.raises(StorageError, match="check the disk"):
            local.compare_and_swap("key", bytes(2**20), local.read_versioned("key")[1])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert local.read("key") == b"old"
    assert {name for name in os.listdir(local.path()) if "lock" not in name} == {"key"}
    assert [tuple(entry) for entry in local.list()] == [("key", 3)]


def test_a_lost_create_and_a_lost_swap_leave_no_file(local: Store):
    local.put("key", b"old")
    with pytest.raises(AlreadyExists):
        local.create_once("key", b"new")
    with pytest.raises(AlreadyExists):
        local.compare_and_swap("key", b"new", "0" * 64)
    assert {name for name in os.listdir(local.path()) if "lock" not in name} == {"key"}


def test_a_temporary_file_is_never_listed(local: Store):
    done = threading.Event()

    def write() -> None:
        for _ in range(30):
            local.put("folder/key", bytes(2**20))
        done.set()

    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(write)
        listings = []
        while not done.is_set() and not writing.done():
            listings.append([entry.key for entry in local.list()])
        writing.result()
    assert all(listing in ([], ["folder/key"]) for listing in listings)
    local.compare_and_swap("folder/other", b"1", None)
    local.compare_and_swap("folder/other", b"2", local.read_versioned("folder/other")[1])
    assert [entry.key for entry in local.list()] == ["folder/key", "folder/other"]


def test_new_files_follow_the_umask(local: Store):
    before = os.umask(0o027)
    try:
        local.put("a", b"1")
        local.create_once("b", b"1")
    finally:
        os.umask(before)
    assert [os.stat(local.path(key)).st_mode & 0o777 for key in ("a", "b")] == [0o640, 0o640]


def test_files_put_there_by_others_are_listed_and_links_end(local: Store, tmp_path: Path):
    root = tmp_path / "root"
    (root / "cat").mkdir(parents=True)
    (root / "cat" / ".hidden.png").write_bytes(b"12")
    (root / "cat" / "dog").symlink_to(tmp_path / "dogs")
    (tmp_path / "dogs").mkdir()
    (tmp_path / "dogs" / "1.png").write_bytes(b"1")
    (root / "cat" / "back").symlink_to(root)
    (root / "cat" / "broken").symlink_to(root / "nowhere")
    os.mkfifo(root / "pipe")
    assert [tuple(entry) for entry in local.list()] == [("cat/.hidden.png", 2), ("cat/dog/1.png", 1)]
    # These texts are part of fingerprints at rest: another wording makes the entries new to every dataset.
    assert {tuple(entry) for entry in local.list_versioned() if entry.size < 0} == {
        ("cat/back", -1, "a link to a folder that holds it"),
        ("cat/broken", -1, "a link to nowhere (No such file or directory)"),
        ("pipe", -1, "no file but a pipe"),
    }


def test_a_file_is_no_folder_and_a_folder_no_file(local: Store):
    local.put("file", b"1")
    local.put("folder/key", b"1")
    with pytest.raises(NotFound, match="one of its parent folders is a file"):
        local.put("file/key", b"1")
    with pytest.raises(NotFound, match="is a folder, not a file"):
        local.put("folder", b"1")
    assert not local.exists("file/key")
    assert [entry.key for entry in local.list()] == ["file", "folder/key"]


def test_a_location_without_write_access_is_named():
    with pytest.raises(StorageError, match="/proc/ddpm-nowhere"):
        resolve("/proc/ddpm-nowhere", CONFIG).put("key", b"1")


def test_broken_json_is_a_data_error_with_its_place(local: Store):
    local.put("a.json", b'{"a": ')
    with pytest.raises(DataError, match=r"root/a\.json is not valid JSON"):
        local.read_json("a.json")
    local.put("b.json", b"\xff\xfe")
    with pytest.raises(DataError, match=r"root/b\.json is not valid JSON"):
        local.read_json("b.json")
