"""Faults of a remote store: refused credentials, missing buckets, lost replies, long listings, crashes."""

import multiprocessing
import os
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress

import pytest
from s3_server import SeaweedServer

from pipeline.config.storage import StorageConfig
from pipeline.errors import AlreadyExists, Denied, MissingBucket, Transient
from pipeline.storage.store import Store, resolve

pytestmark = pytest.mark.s3

MISSING_BUCKET = "no-such-bucket"


def _calls(store: Store) -> list:
    """Every kind of request."""
    return [
        lambda: store.read("key"),
        lambda: store.put("key", b"1"),
        lambda: store.create_once("new", b"1"),
        lambda: store.compare_and_swap("new", b"1", None),
        lambda: store.exists("key"),
        lambda: store.size("key"),
        lambda: list(store.list()),
        lambda: store.delete("key"),
    ]


@pytest.fixture
def s3_store(s3_uri: str) -> Store:
    return resolve(s3_uri, StorageConfig())


def test_more_keys_than_a_page_come_in_order_and_lazily(s3_store: Store):
    # Folder "a" beside "a b" and "a-b": SeaweedFS lists the folder first, key order wants it after them.
    keys = [f"a/{n:04}" for n in range(1010)] + [f"a b/{n}" for n in range(5)] + ["a-b", "a", "a/0500.x/y", "b"]
    keys.remove("a")  # a file beside a folder of its name is S3 only
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda key: s3_store.put(key, b"12"), keys))
    assert [entry.key for entry in s3_store.list()] == sorted(keys)
    assert [entry.key for entry in s3_store.list("a/")] == sorted(k for k in keys if k.startswith("a/"))
    assert {entry.size for entry in s3_store.list("a/05")} == {2}


def test_a_wrong_secret_is_denied_without_naming_it(s3_store: Store, monkeypatch: pytest.MonkeyPatch):
    s3_store.put("key", b"1")
    good = dict(os.environ)
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"):
        monkeypatch.setenv(name, "wrong-0123456789")
        for call in _calls(s3_store):
            with pytest.raises(Denied, match="check AWS_ACCESS_KEY_ID") as caught:
                call()
            assert str(s3_store.uri) in str(caught.value)
            for secret in ("wrong-0123456789", good["AWS_SECRET_ACCESS_KEY"]):
                assert secret not in str(caught.value)
        monkeypatch.setenv(name, good[name])
    assert s3_store.read("key") == b"1"


def test_missing_credentials_are_denied_with_advice(s3_store: Store, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    for call in _calls(s3_store):
        with pytest.raises(Denied, match=r"set AWS_ACCESS_KEY_ID.* or storage.anonymous=true to read a public bucket"):
            call()


def test_rotated_credentials_are_used_by_the_same_store(s3_store: Store, monkeypatch: pytest.MonkeyPatch):
    arrow = s3_store.pa_fs
    good = os.environ["AWS_SECRET_ACCESS_KEY"]
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "expired")
    with pytest.raises(Denied):
        s3_store.put("key", b"1")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", good)
    s3_store.put("key", b"1")
    assert arrow.open_input_stream(s3_store.path("key")).read() == b"1"


@pytest.mark.usefixtures("s3_environment")
def test_a_missing_bucket_is_named_and_never_made():
    store = resolve(f"s3://{MISSING_BUCKET}/prefix", StorageConfig())
    for _ in range(2):  # twice: had the first call made the bucket, the second would find it
        for call in _calls(store):
            with pytest.raises(MissingBucket, match=f"bucket '{MISSING_BUCKET}' does not exist at http://127.0.0.1"):
                call()
    with pytest.raises(OSError, match=r"(?i)bucket"):
        store.pa_fs.create_dir(MISSING_BUCKET)


@pytest.mark.usefixtures("s3_environment")
def test_a_dead_endpoint_is_transient_and_soon_said():
    with closing(socket.socket()) as taken:  # bound, not listening: connections are refused
        taken.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{taken.getsockname()[1]}"
        store = resolve("s3://bucket/prefix", StorageConfig(endpoint=endpoint, retries=1))
        start = time.monotonic()
        for call in _calls(store):
            with pytest.raises(Transient, match=f"{endpoint} gave no answer"):
                call()
        assert time.monotonic() - start < 15
        with pytest.raises(OSError, match=r"(?i)connect"):
            store.pa_fs.open_input_stream(store.path("key"))


def _pump(source: socket.socket, sink: socket.socket | None, limit: int) -> None:
    """Copy until `source` ends, either side breaks or `limit` bytes have passed."""
    with suppress(OSError):
        while limit > 0 and (data := source.recv(65536)):
            limit -= len(data)
            if sink:
                sink.sendall(data)


class _Wire(threading.Thread):
    """A TCP relay to `target` that closes a connection after `limit` bytes of request; counts connections.

    Without a target it swallows requests and never answers.
    """

    def __init__(self, target: int | None, limit: int) -> None:
        super().__init__(daemon=True)
        self._target, self._limit = target, limit
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.connections = 0
        self.start()

    def run(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._relay, args=(client,), daemon=True).start()

    def _relay(self, client: socket.socket) -> None:
        with client, socket.socket() as server:
            if self._target:
                server.connect(("127.0.0.1", self._target))
                threading.Thread(target=_pump, args=(server, client, 10**9), daemon=True).start()
            _pump(client, server if self._target else None, self._limit)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@pytest.mark.usefixtures("s3_environment")
def test_a_silent_server_times_out_and_only_idempotent_calls_are_repeated():
    with closing(_Wire(target=None, limit=10**9)) as wire:
        settings = StorageConfig(endpoint=wire.endpoint, connect_timeout_seconds=1, read_timeout_seconds=0.5, retries=1)
        store = resolve("s3://bucket/prefix", settings)
        calls = {
            # The reply is lost, the request may have done its work: a repeat would meet its own object.
            "create": (lambda: store.create_once("k", b""), 1),
            "swap": (lambda: store.compare_and_swap("k", b"", '"v"'), 1),
            "read": (lambda: store.read("k"), 2),
            "put": (lambda: store.put("k", b""), 2),
        }
        for name, (call, connections) in calls.items():
            before = wire.connections
            with pytest.raises(Transient, match="Timeout"):
                call()
            assert wire.connections - before == connections, name


def test_a_put_cut_in_the_middle_leaves_the_old_object(s3_store: Store, seaweed: SeaweedServer):
    s3_store.put("old", b"old")
    port = int(seaweed.endpoint.rpartition(":")[2])
    with closing(_Wire(target=port, limit=2**20)) as wire:
        cut = resolve(s3_store.uri, StorageConfig(endpoint=wire.endpoint, retries=1))
        for call in (
            lambda: cut.put("old", bytes(8 * 2**20)),
            lambda: cut.put("new", bytes(8 * 2**20)),
            lambda: cut.create_once("once", bytes(8 * 2**20)),
        ):
            with pytest.raises(Transient):
                call()
    assert [tuple(entry) for entry in s3_store.list()] == [("old", 3)]
    s3_store.create_once("once", b"1")


def test_acknowledged_writes_survive_a_crash_and_reads_wait_for_the_restart(s3_store: Store, seaweed: SeaweedServer):
    patient = resolve(s3_store.uri, StorageConfig(retries=9))
    for number in range(20):
        patient.put(f"{number:02}", str(number).encode())
    seaweed.kill()
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(lambda: [patient.read(f"{number:02}") for number in range(20)])
        seaweed.restart()
        assert reading.result() == [str(number).encode() for number in range(20)]


def _read_key(store: Store) -> None:
    assert store.read("key") == b"1"
    assert store.exists("key")


def test_a_forked_child_gets_clients_of_its_own(s3_store: Store):
    s3_store.put("key", b"1")
    child = multiprocessing.get_context("fork").Process(target=_read_key, args=(s3_store,))
    child.start()
    child.join(30)
    ended = child.exitcode
    child.kill()
    assert ended == 0


def test_two_servers_do_not_meet_and_leave_nothing(seaweed: SeaweedServer, monkeypatch: pytest.MonkeyPatch):
    with SeaweedServer() as other:
        assert other.endpoint != seaweed.endpoint
        for name, value in other.environment.items():
            monkeypatch.setenv(name, value)
        here = resolve(other.uri, StorageConfig())
        here.create_once("key", b"1")
        with pytest.raises(AlreadyExists):
            here.create_once("key", b"1")
        with pytest.raises(Denied):
            resolve(seaweed.uri, StorageConfig(endpoint=seaweed.endpoint)).read("key")
        room = other.log_path.parent
        assert other.environment["AWS_SECRET_ACCESS_KEY"] not in repr(other) + other.log_path.read_text()
    assert not room.exists()
    with pytest.raises(Transient):
        resolve(other.uri, StorageConfig(endpoint=other.endpoint, retries=0)).read("key")
