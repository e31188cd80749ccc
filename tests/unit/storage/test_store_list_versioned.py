"""Listings with versions and range reads: the same promises from every backend."""

import pytest

from pipeline.errors import NotFound, StorageError
from pipeline.storage.store import Store


def test_a_version_changes_with_the_bytes_and_only_then(store: Store):
    store.put("a/1", b"one")
    store.put("a/2", b"two")
    store.put("b", b"")
    before = list(store.list_versioned())
    assert [(state.key, state.size) for state in before] == [("a/1", 3), ("a/2", 3), ("b", 0)]
    assert all(state.version for state in before)
    assert list(store.list_versioned()) == before
    store.put("a/1", b"ONE")
    after = list(store.list_versioned())
    assert after[0].version != before[0].version
    assert after[1:] == before[1:]
    assert [state.key for state in store.list_versioned("a/")] == ["a/1", "a/2"]
    assert [tuple(entry) for entry in store.list()] == [(state.key, state.size) for state in after]


@pytest.mark.parametrize(
    ("start", "count", "part"), [(0, 4, b"0123"), (3, 2, b"34"), (8, 9, b"89"), (10, 1, b""), (99, 5, b"")]
)
def test_range_reads(store: Store, start: int, count: int, part: bytes):
    store.put("digits", b"0123456789")
    assert store.read_range("digits", start, count) == part


def test_a_range_of_a_missing_object_is_not_found(store: Store):
    with pytest.raises(NotFound):
        store.read_range("nothing", 0, 1)
    with pytest.raises(StorageError, match="bad key"):
        store.read_range("../x", 0, 1)
    store.put("empty", b"")
    assert store.read_range("empty", 0, 10) == b""
