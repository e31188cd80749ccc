"""The promises of every storage backend, tested on local files, memory and a real S3 server."""

import multiprocessing
import os
import pickle
import threading
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import pytest

from pipeline.errors import AlreadyExists, NotFound, StorageError
from pipeline.storage.store import Store

EIGHT_MIB = 8 * 2**20
# Names around "/" in code-point order, a folder beside files that sort below it, and what a URL would mangle.
AWKWARD_KEYS = [
    "B",
    "a b",
    "a#1",
    "a%20+",
    "a-b",
    "a.b",
    "a/x",
    "a/é/1",
    "a0",
    "a?v=1",
    "tab\tname",
    "z/1",
    "é",
    "日本 語",
]

across_processes = pytest.mark.parametrize(
    "store", ["local", pytest.param("s3", marks=pytest.mark.s3)], indirect=True, ids=str
)


def test_roundtrip_replace_and_sizes(store: Store):
    store.put("deep/er/key", b"one")
    store.put("deep/er/key", b"three")
    store.put("empty", b"")
    assert store.read("deep/er/key") == b"three"
    assert store.read("empty") == b""
    assert (store.size("deep/er/key"), store.size("empty")) == (5, 0)
    assert store.child("deep", "er").read("key") == b"three"
    assert [tuple(entry) for entry in store.list()] == [("deep/er/key", 5), ("empty", 0)]


def test_a_missing_object_is_not_found(store: Store):
    store.put("folder/key", b"1")
    assert store.exists("folder/key")
    assert not store.exists("folder")
    assert not store.exists("other")
    for ask in (store.read, store.size, store.read_versioned):
        for key in ("other", "folder"):
            with pytest.raises(NotFound, match=store.location(key)):
                ask(key)
    assert list(store.list("other/")) == []


def test_deleting_a_missing_object_is_fine(store: Store):
    store.put("key", b"1")
    for _ in range(2):
        store.delete("key")
    store.delete("never/was")
    assert not store.exists("key")
    assert list(store.list()) == []


def test_awkward_keys_keep_their_names_and_order(store: Store):
    for key in reversed(AWKWARD_KEYS):
        store.put(f"root/{key}", key.encode())
    assert [entry.key for entry in store.list("root/")] == sorted(f"root/{key}" for key in AWKWARD_KEYS)
    for key in AWKWARD_KEYS:
        assert store.read(f"root/{key}") == key.encode()
        assert store.exists(f"root/{key}")
    assert [entry.key for entry in store.list("root/a")] == sorted(f"root/{k}" for k in AWKWARD_KEYS if k[0] == "a")
    assert [entry.key for entry in store.child("root").list("a/")] == ["a/x", "a/é/1"]


def test_arrow_reads_what_the_store_wrote(store: Store):
    store.put("a folder/é.bin", b"bytes")
    with store.pa_fs.open_input_file(store.path("a folder/é.bin")) as file:
        assert file.read() == b"bytes"


def test_an_object_is_listed_right_after_its_put(store: Store):
    for number in range(20):
        store.put(f"n/{number:02}", b"1")
        assert [entry.key for entry in store.list("n/")] == [f"n/{n:02}" for n in range(number + 1)]
    store.delete("n/07")
    assert "n/07" not in [entry.key for entry in store.list("n/")]


def test_a_reader_sees_old_or_new_but_never_part(store: Store):
    store.put("key", b"a" * EIGHT_MIB)
    enough = threading.Event()

    def write() -> None:
        for number in range(10**9):
            if enough.is_set():
                return
            store.put("key", b"ba"[number % 2 : number % 2 + 1] * EIGHT_MIB)

    seen: set[bytes] = set()
    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(write)
        try:
            reads = 0
            while reads < 15 or len(seen) < 2:
                data = store.read("key")
                assert len(data) == store.size("key") == EIGHT_MIB
                assert data == data[:1] * EIGHT_MIB
                seen.add(data[:1])
                reads += 1
        finally:
            enough.set()
        writing.result()


def test_one_of_many_threads_creates(store: Store):
    for number in range(_rounds(store)):
        outcomes = _race_in_threads(store, f"race/{number}", writers=4)
        assert sorted(outcomes.values()) == [False, False, False, True]
        winner = next(name for name, won in outcomes.items() if won)
        assert store.read(f"race/{number}") == winner * 300


def _rounds(store: Store) -> int:
    """Rounds: few on SeaweedFS, where a contended key takes a second or more; many elsewhere, to hit a narrow race."""
    return 2 if store.kind == "s3" else 150


def _race_in_threads(store: Store, key: str, writers: int) -> dict[bytes, bool]:
    """Payload byte -> whether its writer won."""
    start = threading.Barrier(writers)

    def attempt(name: bytes) -> tuple[bytes, bool]:
        start.wait()
        return name, _creates(store, key, name * 300)

    with ThreadPoolExecutor(writers) as pool:
        return dict(pool.map(attempt, [bytes([65 + n]) for n in range(writers)]))


def _creates(store: Store, key: str, data: bytes) -> bool:
    try:
        store.create_once(key, data)
    except AlreadyExists:
        return False
    return True


def _creations(store: Store, keys: list[str]) -> list[bool]:
    return [_creates(store, key, str(os.getpid()).encode()) for key in keys]


@across_processes
def test_one_of_many_processes_creates_and_a_pickled_store_works_there(store: Store):
    keys = [f"race/{number}" for number in range(_rounds(store))]
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        rivals = [pool.submit(_creations, store, keys) for _ in range(2)]
        wins = list(zip(*[rival.result() for rival in rivals], strict=True))
    assert [sum(pair) for pair in wins] == [1] * len(keys)


def test_a_created_object_stays_when_created_again(store: Store):
    store.create_once("marker", b"first")
    with pytest.raises(AlreadyExists, match=store.location("marker")):
        store.create_once("marker", b"second")
    assert store.read("marker") == b"first"
    store.delete("marker")
    store.create_once("marker", b"third")
    assert store.read("marker") == b"third"


def test_swaps_lose_no_update(store: Store):
    store.compare_and_swap("counter", b"0", None)

    def count(_: int) -> None:
        for _ in range(4):
            while True:
                value, version = store.read_versioned("counter")
                try:
                    store.compare_and_swap("counter", str(int(value) + 1).encode(), version)
                except AlreadyExists:
                    continue
                break

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(count, range(3)))
    assert store.read("counter") == b"12"


def test_a_stale_swap_is_refused_and_changes_nothing(store: Store):
    first = store.compare_and_swap("key", b"1", None)
    assert store.read_versioned("key") == (b"1", first)
    second = store.compare_and_swap("key", b"2", first)
    assert second != first
    assert store.read_versioned("key") == (b"2", second)
    for expected in (first, None):
        with pytest.raises(AlreadyExists):
            store.compare_and_swap("key", b"3", expected)
    assert store.read("key") == b"2"
    store.delete("key")
    with pytest.raises(AlreadyExists):
        store.compare_and_swap("key", b"3", second)
    assert not store.exists("key")


def test_keys_cannot_leave_the_root(store: Store):
    inside = store.child("inside")
    asks = [inside.read, inside.size, inside.delete, inside.exists, lambda key: inside.put(key, b"")]
    for ask in (*asks, inside.child, inside.path, lambda key: list(inside.list(key))):
        for key in ("../outside", "a/../../outside", "/outside", "a//b", "./a", "nul\0"):
            with pytest.raises(StorageError, match="bad key"):
                ask(key)
    for ask in asks:
        for key in ("", "a/"):
            with pytest.raises(StorageError, match="bad key"):
                ask(key)
    assert list(store.list()) == []


def test_json_is_canonical(store: Store):
    store.create_json("a.json", {"b": [1, 2.5], "a": "é"})
    store.put_json("b.json", {"a": "é", "b": [1, 2.5]})
    assert store.read("a.json") == store.read("b.json")
    assert store.read_json("a.json") == {"a": "é", "b": [1, 2.5]}
    with pytest.raises(AlreadyExists):
        store.create_json("a.json", {})
    with pytest.raises(ValueError, match="not JSON compliant"):
        store.put_json("c.json", float("nan"))
    assert not store.exists("c.json")


def _write_until_killed(store: Store) -> None:
    for number in range(10**9):
        store.put("key", bytes([97 + number % 2]) * EIGHT_MIB)


@across_processes
def test_a_writer_killed_in_the_middle_leaves_whole_objects_only(store: Store):
    writer = multiprocessing.get_context("spawn").Process(target=_write_until_killed, args=(store,), daemon=True)
    writer.start()
    deadline = time.monotonic() + 60
    while not store.exists("key"):
        assert writer.is_alive(), "the writer ended"
        assert time.monotonic() < deadline, "the writer wrote nothing"
        time.sleep(0.05)
    time.sleep(0.13)
    writer.kill()
    writer.join()
    assert [tuple(entry) for entry in store.list()] == [("key", EIGHT_MIB)]
    data = store.read("key")
    assert data == data[:1] * EIGHT_MIB


def test_a_store_is_a_value_without_secrets(store: Store):
    store.put("key", b"1")
    assert store.pa_fs is not None  # clients exist now
    secrets = [os.environ[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY") if name in os.environ]
    frozen = pickle.dumps(store)
    for secret in secrets:
        assert secret.encode() not in frozen + pickle.dumps(store.pa_fs)
        assert secret not in repr(store)
    again = pickle.loads(frozen)
    assert again == store
    assert again.read("key") == b"1"
