"""The commit protocol under every order of events that Hypothesis can think of.

Attempts and drivers run in threads of which one moves at a time, one store mutation a step. At each of them the
process may die, the reply may be lost, the request may never arrive or do so much later, or the process may sleep for
long (a zombie, woken when it likes, after the seal and the garbage collection too). Images of different attempts
differ, as on different machines.

    I1 a marker never changes or goes             I4 what the manifest names is what the markers name
    I2 a marker names a complete file of its hash I5 ids 0..N-1, each once
    I3 one marker a shard (by its key)            I6 one plan fingerprint
"""

import hashlib
import threading
import uuid
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tiny_samples import sample_plan, shard_table

from pipeline.config.root import Config
from pipeline.config.storage import StorageConfig
from pipeline.errors import AlreadyExists, DataError, PipelineError, Transient
from pipeline.generation.commit import (
    collect_garbage,
    commit_shard,
    committed_shards,
    create_plan,
    read_manifest,
    read_marker,
    seal,
)
from pipeline.operations.verify import verify
from pipeline.storage import create_once
from pipeline.storage.store import Store, resolve

pytestmark = pytest.mark.property
create_once.FIRST_PAUSE_SECONDS = 0.0  # thousands of lost replies: the order matters here, not the patience

PLAN = sample_plan()
SHARDS = PLAN.num_shards
GO, CRASH, LOST_REPLY, LOST_REQUEST, LATE_REQUEST = "go", "crash", "lost reply", "lost request", "late request"


class Died(BaseException):
    """The process is no more: nothing may catch it."""


@dataclass
class Process:
    """A function in a thread that waits before each mutation of the store until it is told how that one ends."""

    run: Any
    turn: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    waits: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    how: str = GO
    done: bool = False
    error: BaseException | None = None

    def start(self) -> None:
        threading.Thread(target=self._main, daemon=True).start()
        self.waits.acquire()

    def _main(self) -> None:
        try:
            self.run(self)
        except BaseException as error:
            self.error = error
        self.done = True
        self.waits.release()

    def pause(self) -> str:
        self.waits.release()
        self.turn.acquire()
        if self.how == CRASH:
            raise Died
        return self.how

    def step(self, how: str) -> None:
        """One mutation, or the end."""
        self.how = how
        self.turn.release()
        self.waits.acquire()

    def finish(self, how: str = GO) -> None:
        while not self.done:
            self.step(how)


@dataclass(frozen=True)
class Stepping(Store):
    """A store whose mutations wait for their process's turn."""

    process: Process | None = None
    late: list | None = None

    def _mutate(self, mutation, *arguments):
        assert self.process is not None
        how = self.process.pause()
        if how == LATE_REQUEST:
            self.late.append((mutation, arguments))
        elif how != LOST_REQUEST:
            mutation(*arguments)
        if how != GO:
            raise Transient(how)

    def put(self, key, data):
        self._mutate(super().put, key, data)

    def create_once(self, key, data):
        self._mutate(super().create_once, key, data)

    def delete(self, key):
        self._mutate(super().delete, key)


class Protocol(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.job = resolve(f"memory://{uuid.uuid4().hex}", StorageConfig())
        self.processes: list[Process] = []
        self.late: list = []
        self.attempts = 0
        self.markers: dict[int, bytes] = {}
        self.sealed: bytes | None = None

    def spawn(self, work):
        process = Process(lambda me: work(Stepping(self.job.uri, self.job.config, me, self.late)))
        self.processes.append(process)
        process.start()

    @initialize()
    def plan(self):
        for _driver in range(2):
            assert create_plan(self.job, PLAN).fingerprint == PLAN.fingerprint

    @rule(shard=st.integers(0, SHARDS - 1))
    def start_attempt(self, shard):
        """As an actor does it: not when the marker is there (it may appear in between)."""
        if len(self.alive()) < 6 and read_marker(self.job, shard) is None:
            self.attempts += 1
            number = self.attempts
            table = shard_table(PLAN, shard, variant=number)
            self.spawn(lambda store: commit_shard(store, PLAN, shard, table, f"attempt{number}"))

    @rule()
    def start_driver(self):
        """Seal, then collect; on a job that is not complete this ends at once."""
        if len(self.alive()) < 6:
            self.spawn(lambda store: collect_garbage(store, seal(store, PLAN)))

    def alive(self):
        return [process for process in self.processes if not process.done]

    @precondition(lambda self: self.alive())
    @rule(data=st.data(), how=st.sampled_from([GO, GO, GO, CRASH, LOST_REPLY, LOST_REQUEST, LATE_REQUEST]))
    def step(self, data, how):
        data.draw(st.sampled_from(self.alive())).step(how)

    @precondition(lambda self: self.alive())
    @rule(data=st.data(), how=st.sampled_from([GO, GO, LOST_REPLY, LATE_REQUEST]))
    def run_to_its_end(self, data, how):
        data.draw(st.sampled_from(self.alive())).finish(how)

    @precondition(lambda self: self.late)
    @rule()
    def late_requests_land(self):
        late, self.late[:] = list(self.late), []
        for mutation, arguments in late:
            with suppress(AlreadyExists):
                mutation(*arguments)

    @invariant()
    def markers_are_for_ever_and_name_whole_files(self):
        present = {shard: self.job.read(f"commits/shard-{shard:09d}.json") for shard in committed_shards(self.job)}
        assert self.markers.items() <= present.items(), "I1"
        self.markers = present
        for shard in present:
            marker = read_marker(self.job, shard)
            data = self.job.read(marker.key)
            assert (hashlib.sha256(data).hexdigest(), len(data)) == (marker.sha256, marker.bytes), "I2"
            assert marker.plan == PLAN.fingerprint, "I6"

    @invariant()
    def the_manifest_is_final_and_names_what_the_markers_name(self):
        try:
            manifest = read_manifest(self.job)
        except DataError:
            assert self.sealed is None
            assert not self.job.exists("_SUCCESS")
            return
        data = self.job.read("manifest.json")
        assert self.sealed in (None, data)
        self.sealed = data
        assert list(manifest.shards) == [read_marker(self.job, shard) for shard in range(SHARDS)], "I4"
        ids = []
        for marker in manifest.shards:
            ids += pq.read_table(pa.BufferReader(self.job.read(marker.key)))["sample_id"].to_pylist()
        assert ids == list(range(PLAN.num_samples)), "I5"

    @invariant()
    def nothing_fails_in_an_unforeseen_way(self):
        for process in self.processes:
            assert process.error is None or isinstance(process.error, PipelineError | Died), process.error

    def teardown(self):
        """The same command once more, then the zombies wake, and once more: the job is whole, nothing is left over."""
        for shard in range(SHARDS):
            if read_marker(self.job, shard) is None:
                commit_shard(self.job, PLAN, shard, shard_table(PLAN, shard), f"last{shard}")
        collect_garbage(self.job, seal(self.job, PLAN))
        self.markers_are_for_ever_and_name_whole_files()
        self.the_manifest_is_final_and_names_what_the_markers_name()
        for process in self.alive():
            process.finish()
        self.late_requests_land()
        self.markers_are_for_ever_and_name_whole_files()
        self.the_manifest_is_final_and_names_what_the_markers_name()
        collect_garbage(self.job, read_manifest(self.job))
        counts = verify(Config(), self.job.uri)["counts"]
        assert (counts["samples"], counts["shards"], counts["unnamed"]) == (PLAN.num_samples, SHARDS, 0)
        for entry in self.job.list():
            self.job.delete(entry.key)


TestProtocol = Protocol.TestCase
TestProtocol.settings = settings(
    max_examples=100,
    stateful_step_count=40,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
