"""Create once or read back: an equal object is joined, and the outcome of a lost reply is found by content."""

import pytest

from pipeline.config.base import Section
from pipeline.config.storage import StorageConfig
from pipeline.errors import AlreadyExists, DataError, Transient
from pipeline.storage import create_once
from pipeline.storage.create_once import create_or_read, create_or_read_document, create_or_read_file, try_create
from pipeline.storage.documents import find_document, to_json
from pipeline.storage.files import file_entry
from pipeline.storage.store import Store, resolve

pytestmark = pytest.mark.unit


class Note(Section):
    text: str


class LossyStore(Store):
    """Loses the replies of the first `lost` creates; each request takes effect all the same when `lands`."""

    lost = 0
    lands = True

    def create_once(self, key: str, data: bytes) -> None:
        if LossyStore.lost:
            LossyStore.lost -= 1
            if LossyStore.lands:
                super().create_once(key, data)
            raise Transient("no reply")
        super().create_once(key, data)


@pytest.fixture
def store(tmp_path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setattr(create_once, "FIRST_PAUSE_SECONDS", 0)
    return resolve(str(tmp_path), StorageConfig())


def lossy(store: Store, lost: int, lands: bool) -> Store:
    LossyStore.lost, LossyStore.lands = lost, lands
    return LossyStore(store.uri, store.config)


def test_the_first_writer_creates_and_the_second_reads(store: Store):
    assert try_create(store, "a", b"first")
    assert not try_create(store, "a", b"second")
    assert create_or_read(store, "a", b"second") == b"first"
    assert create_or_read(store, "b", b"second") == store.read("b") == b"second"


def test_a_document_is_ours_when_it_is_equal(store: Store):
    assert create_or_read_document(store, "a.json", Note(text="first")) == Note(text="first")
    assert create_or_read_document(store, "a.json", Note(text="second")) == Note(text="first")
    store.put("b.json", b'{"other": 1}')
    with pytest.raises(DataError, match=r"b\.json is not a Note"):
        create_or_read_document(store, "b.json", Note(text="first"))


def test_an_equal_document_with_other_bytes_is_equal(store: Store):
    """Written by another version of this program, say, with keys in another order."""
    store.put("a.json", to_json(Note(text="first")).replace(b"\n", b" "))
    assert create_or_read_document(store, "a.json", Note(text="first")) == Note(text="first")


def test_the_entry_is_of_the_file_that_exists(store: Store):
    first = create_or_read_file(store, "table", b"first")
    assert create_or_read_file(store, "table", b"second") == first == file_entry("table", b"first")


@pytest.mark.parametrize("lands", [True, False])
def test_a_lost_reply_is_asked_again_with_the_same_bytes(store: Store, lands: bool):
    assert try_create(lossy(store, 2, lands), "a", b"ours", attempts=3) is not lands
    assert create_or_read(lossy(store, 2, lands), "b", b"ours", attempts=3) == b"ours"
    assert create_or_read_document(lossy(store, 2, lands), "c", Note(text="ours"), attempts=3) == Note(text="ours")
    assert find_document(store, "c", Note) == Note(text="ours")


@pytest.mark.parametrize("create", [try_create, create_or_read])
def test_the_last_attempt_raises(store: Store, create):
    with pytest.raises(Transient, match="no reply"):
        create(lossy(store, 3, False), "a", b"ours", attempts=3)
    assert LossyStore.lost == 0
    with pytest.raises(Transient):
        create(lossy(store, 1, False), "a", b"ours")


def test_an_object_that_vanishes_before_it_is_read_is_asked_for_again(store: Store):
    class Vanishing(Store):
        refused = 0

        def create_once(self, key: str, data: bytes) -> None:
            if Vanishing.refused < 2:
                Vanishing.refused += 1
                raise AlreadyExists(key)
            super().create_once(key, data)

    vanishing = Vanishing(store.uri, store.config)
    with pytest.raises(Transient, match="exists and cannot be read"):
        create_or_read(vanishing, "a", b"ours")
    assert create_or_read(vanishing, "a", b"ours", attempts=2) == b"ours"
