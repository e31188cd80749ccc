"""A lease has one holder: liveness is the process on the same machine, heartbeats elsewhere, never another clock."""

import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from processes import wait_for

from pipeline.errors import Busy, Transient
from pipeline.storage import lease as leases
from pipeline.storage.documents import to_json
from pipeline.storage.lease import LEASE, Lease, held_by
from pipeline.storage.lease_owner import Holder
from pipeline.storage.store import Store

SHORT = 0.6
LONG = 4.0
PATIENCE = 20
HOLD = """
import sys, time
from pipeline.config.root import StorageConfig
from pipeline.storage.lease import Lease
from pipeline.storage.store import resolve
lease = Lease(resolve(sys.argv[1], StorageConfig())).acquire()
print(lease.token, flush=True)
time.sleep(60)
"""
on_disk = pytest.mark.parametrize(
    "store",
    [pytest.param("local", marks=pytest.mark.unit), pytest.param("s3", marks=pytest.mark.s3)],
    indirect=True,
)


@pytest.fixture
def elsewhere(monkeypatch):
    """Make leases whose holder is on another machine."""
    here = leases.this_process

    def make(store: Store, ttl_seconds: float, host: str = "elsewhere") -> Lease:
        with monkeypatch.context() as patch:
            patch.setattr(leases, "this_process", lambda token: here(token).model_copy(update={"host": host}))
            return Lease(store, ttl_seconds=ttl_seconds)

    return make


@dataclass(frozen=True)
class Leaky(Store):
    """A store whose reads and swaps raise Transient while `away` is set."""

    away = threading.Event()

    def read_versioned(self, key):
        self._look()
        return super().read_versioned(key)

    def compare_and_swap(self, key, data, expected):
        self._look()
        return super().compare_and_swap(key, data, expected)

    def _look(self):
        if self.away.is_set():
            raise Transient("the store is away")


@pytest.fixture
def leaky(store):
    Leaky.away.clear()
    yield Leaky(store.uri, store.config)
    Leaky.away.clear()


def document_at(store) -> Holder:
    return Holder.model_validate_json(store.read(LEASE))


def left_by_the_dead(store, **changed) -> str:
    """A lease of a holder on another machine that sends no heartbeats; its token."""
    holder = leases.this_process("dead").model_copy(update={"host": "elsewhere", **changed})
    store.put(LEASE, to_json(holder))
    return holder.token


def test_a_living_holder_is_refused_at_once_and_says_who_it_is(store):
    with Lease(store, what="training of r") as first:
        assert held_by(store, LEASE, first.token)
        began = time.monotonic()
        with pytest.raises(Busy, match=r"training of r .* is in use by process \d+ on .* since 20.*let it end"):
            Lease(store, what="training of r").acquire()
        assert time.monotonic() - began < 2
        first.check()
    assert not held_by(store, LEASE, first.token)


def test_a_released_lease_is_free_at_once(store, elsewhere):
    with elsewhere(store, LONG):
        pass
    assert document_at(store).state == "released"
    began = time.monotonic()
    with Lease(store, ttl_seconds=60) as second:
        assert time.monotonic() - began < 2
        assert held_by(store, LEASE, second.token)


def test_heartbeats_continue(store):
    with Lease(store, ttl_seconds=SHORT):
        wait_for(lambda: document_at(store).beat >= 3, PATIENCE)


def test_a_living_holder_elsewhere_is_refused_after_a_heartbeat(store, elsewhere):
    with elsewhere(store, LONG):
        began = time.monotonic()
        with pytest.raises(Busy, match="elsewhere"):
            Lease(store, ttl_seconds=12).acquire()
        assert time.monotonic() - began < 12


def test_a_dead_holder_elsewhere_is_followed_after_the_time_and_not_before(store, caplog):
    caplog.set_level("INFO", "ddpm")
    token = left_by_the_dead(store)
    began = time.monotonic()
    with Lease(store, ttl_seconds=SHORT) as lease:
        assert time.monotonic() - began >= SHORT
        assert held_by(store, LEASE, lease.token)
        assert not held_by(store, LEASE, token)
    assert len(caplog.messages) == 1
    assert "for a heartbeat of the last holder" in caplog.messages[0]


def test_equal_pids_in_another_container_or_after_a_reboot_are_other_processes(store):
    for changed in ({"host": document_host(), "pid_namespace": 1}, {"host": document_host(), "boot": "before"}):
        left_by_the_dead(store, **changed)
        began = time.monotonic()
        with Lease(store, ttl_seconds=SHORT):
            assert time.monotonic() - began >= SHORT


def document_host() -> str:
    return leases.this_process("").host


def test_a_reused_pid_is_another_process(store):
    left_by_the_dead(store, host=document_host(), started="1", pid=1)
    with Lease(store, ttl_seconds=60) as lease:
        assert held_by(store, LEASE, lease.token)


def test_an_unreadable_document_is_watched_like_any_other(store):
    store.put(LEASE, b'{"kind": "lea')
    with Lease(store, ttl_seconds=SHORT) as lease:
        assert held_by(store, LEASE, lease.token)


@pytest.mark.parametrize("reaped", [True, False])
@on_disk
def test_a_killed_process_on_this_machine_is_followed_at_once(store, reaped):
    process = subprocess.Popen([sys.executable, "-c", HOLD, store.uri], stdout=subprocess.PIPE, text=True)
    try:
        token = process.stdout.readline().strip()
        assert held_by(store, LEASE, token)
        with pytest.raises(Busy, match=f"process {process.pid} "):
            Lease(store, ttl_seconds=60).acquire()
        process.send_signal(signal.SIGKILL)
        if reaped:
            process.wait()
        else:  # a zombie is dead, whoever forgot it
            wait_for(lambda: b") Z " in Path(f"/proc/{process.pid}/stat").read_bytes(), PATIENCE)
        with Lease(store, ttl_seconds=60) as lease:
            assert held_by(store, LEASE, lease.token)
            assert not held_by(store, LEASE, token)
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("before", ["absent", "released", "dead"])
@pytest.mark.parametrize("where", ["here", "elsewhere"])
def test_of_contenders_that_race_exactly_one_wins(store, elsewhere, before, where):
    if before != "absent":
        left_by_the_dead(store, state="released" if before == "released" else "held")
    ttl = SHORT if before == "dead" else LONG
    hosts = [document_host()] * 4 if where == "here" else [f"host-{number}" for number in range(4)]
    start = threading.Barrier(4)
    won, refused = [], []

    def contend(lease):
        start.wait()
        try:
            won.append(lease.acquire())
        except Busy:
            refused.append(lease)

    leases_of_four = [elsewhere(store, ttl, host) for host in hosts]
    threads = [threading.Thread(target=contend, args=(lease,)) for lease in leases_of_four]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(won), len(refused)) == (1, 3)
    assert held_by(store, LEASE, won[0].token)
    won[0].release()


def test_a_lost_lease_is_noticed_and_not_given_back(store, elsewhere):
    with Lease(store, ttl_seconds=SHORT) as lease:
        left_by_the_dead(store, token="thief", host="there")
        wait_for(lambda: lease.lost, PATIENCE)
        with pytest.raises(Busy, match=r"taken over by process \d+ on there"):
            lease.check()
    assert held_by(store, LEASE, "thief")


def test_a_document_deleted_by_hand_does_not_end_the_lease(store):
    with Lease(store, ttl_seconds=SHORT) as lease:
        store.delete(LEASE)
        wait_for(lambda: store.exists(LEASE), PATIENCE)
        assert held_by(store, LEASE, lease.token)
        lease.check()


def test_an_outage_longer_than_the_lease_is_survived(leaky):
    with Lease(leaky, ttl_seconds=SHORT) as lease:
        leaky.away.set()
        time.sleep(1.5 * SHORT)
        with pytest.raises(Transient):  # may be lost: only the store can say
            lease.check()
        leaky.away.clear()
        lease.check()
        beat = document_at(leaky).beat
        wait_for(lambda: document_at(leaky).beat > beat, PATIENCE)
        assert held_by(leaky, LEASE, lease.token)


def test_a_holder_that_was_away_learns_from_the_store_that_another_came(leaky, store):
    with Lease(leaky, ttl_seconds=SHORT) as lease:
        leaky.away.set()
        time.sleep(1.5 * SHORT)
        left_by_the_dead(store, token="second")
        leaky.away.clear()
        with pytest.raises(Busy, match="elsewhere"):
            lease.check()
    assert held_by(store, LEASE, "second")


def test_a_heartbeat_whose_reply_was_lost_is_recognised(store):
    lease = Lease(store, ttl_seconds=SHORT).acquire()
    landed = document_at(store).model_copy(update={"beat": 1000})
    store.put(LEASE, to_json(landed))  # another version, by the same token
    wait_for(lambda: document_at(store).beat != 1000, PATIENCE)
    lease.check()
    store.put(LEASE, to_json(landed))
    lease.release()
    assert document_at(store).state == "released"


def test_acquire_may_be_repeated_after_a_lost_reply(store, monkeypatch):
    here = leases.this_process
    # Also where the system tells no boot id, so that a process cannot be looked up.
    monkeypatch.setattr(leases, "this_process", lambda token: here(token).model_copy(update={"boot": ""}))
    lease = Lease(store, ttl_seconds=60)
    store.put(LEASE, to_json(leases.this_process(lease.token)))
    began = time.monotonic()
    with lease:
        assert held_by(store, LEASE, lease.token)
        assert time.monotonic() - began < 20


def test_a_failed_release_is_a_warning(leaky, caplog):
    lease = Lease(leaky, ttl_seconds=SHORT).acquire()
    leaky.away.set()
    lease.release()
    assert "lease not released" in caplog.messages[-1]
    leaky.away.clear()
    with Lease(leaky, ttl_seconds=60) as second:  # of the same process, which no longer holds the first
        assert held_by(leaky, LEASE, second.token)
