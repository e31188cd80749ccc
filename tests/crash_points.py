"""Processes that play a generation job and break at one chosen point of the commit protocol.

A player is a real process without Ray: it does what the driver and its actors do, in their order, on samples that
need no network. Where it breaks is decided by a subclass of the store, so the program has no hook for it. Players are
forked from a server that has imported everything already, at some 20 ms each.
"""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

from played_job import MORE, PLAN, play
from tiny_samples import shard_table

import pipeline.storage.s3  # noqa: F401  (imported once, by the server)
from pipeline.config.storage import StorageConfig
from pipeline.errors import Transient
from pipeline.storage import create_once, local
from pipeline.storage.store import Store

shard_table(PLAN, 0)  # Arrow and Pillow import much at their first use: once, in the server


def steps(shard: int, number: str = "") -> dict[str, tuple[str, str]]:
    """Name -> the operation and the beginning of the key that a step is known by; those of one shard, at that one."""
    return {
        "PLAN": ("create_once", f"plan{number}.json"),
        "MAKE": ("make", f"{shard}"),
        "DATA": ("put", f"data/shard-{shard:09d}-"),
        "MARK": ("create_once", f"commits/shard-{shard:09d}.json"),
        "SEAL": ("create_once", f"manifest{number}.json"),
        "SUCCESS": ("put", "_SUCCESS"),
        "GC": ("delete", f"data/shard-{shard:09d}-"),
    }


STEPS = steps(1)
"""Of a job: shard 0 is committed when a fault strikes, shard 2 is not begun."""
STEPS_OF_MORE = steps(4, "-000001")
"""Of its extension."""
EXIT_CODE = 41
REACHED, ENDED = "reached", "ended"
_SYSTEM_CALLS = {"PLAN": "link", "DATA": "replace", "MARK": "link", "SEAL": "link", "SUCCESS": "replace"}


@dataclass(frozen=True)
class Fault:
    """`kind` happens once, at `when` ("before", "after" or, on local files, "within") of step `step`.

    exception   an error that nothing foresees       hang   nothing more happens until somebody kills the process
    exit        os._exit: no handler, no flush       stop   SIGSTOP; it goes on at SIGCONT
    kill        SIGKILL by itself                    lost   Transient: the request was done (after) or not (before)
    wait        it goes on when the test says so
    """

    step: str
    when: str
    kind: str
    of_more: bool = False

    @property
    def point(self) -> tuple[str, str]:
        return (STEPS_OF_MORE if self.of_more else STEPS)[self.step]


class Unforeseen(Exception):
    pass


@dataclass
class _Breaker:
    fault: Fault | None
    pipe: Any
    done: bool = False

    def at(self, when: str, operation: str, key: str) -> None:
        """Break, if this is the point."""
        fault = self.fault
        if fault is None or self.done or fault.when != when:
            return
        wanted, start = fault.point
        if operation != wanted or not key.startswith(start):
            return
        self.done = True
        self.pipe.send(REACHED)
        _BREAKS[fault.kind](self.pipe)


def _sleep_for_ever(_: Any) -> None:
    while True:
        time.sleep(60)


def _raise(error: Exception) -> None:
    raise error


_BREAKS: dict[str, Callable[[Any], Any]] = {
    "exception": lambda _: _raise(Unforeseen("a fault of the program")),
    "exit": lambda _: os._exit(EXIT_CODE),
    "kill": lambda _: os.kill(os.getpid(), signal.SIGKILL),
    "stop": lambda _: os.kill(os.getpid(), signal.SIGSTOP),
    "hang": _sleep_for_ever,
    "wait": lambda pipe: pipe.recv(),
    "lost": lambda _: _raise(Transient("lost")),
}


@dataclass(frozen=True)
class BreakingStore(Store):
    """A store with a fault before or after one of its writes."""

    breaker: _Breaker = field(default_factory=lambda: _Breaker(None, None), compare=False)

    def put(self, key, data):
        self.breaker.at("before", "put", key)
        super().put(key, data)
        self.breaker.at("after", "put", key)

    def create_once(self, key, data):
        self.breaker.at("before", "create_once", key)
        super().create_once(key, data)
        self.breaker.at("after", "create_once", key)

    def delete(self, key):
        self.breaker.at("before", "delete", key)
        super().delete(key)
        self.breaker.at("after", "delete", key)

    def made(self, when: str, shard: int) -> None:
        self.breaker.at(when, "make", f"{shard}")


def _within(step: str, breaker: _Breaker) -> None:
    """Local files: the temporary file is written, the name is not given."""
    name, (operation, start) = _SYSTEM_CALLS[step], STEPS[step]
    call = getattr(os, name)

    def broken(source: str, target: str) -> None:
        if start in target:
            breaker.at("within", operation, target[target.index(start) :])
        call(source, target)

    setattr(local.os, name, broken)


def _main(uri: str, config: StorageConfig, environment: dict, fault: Fault | None, variant: int, pipe: Any) -> None:
    os.environ.update(environment)
    create_once.FIRST_PAUSE_SECONDS = 0.01
    breaker = _Breaker(fault, pipe)
    if fault is not None and fault.when == "within":
        _within(fault.step, breaker)
    try:
        store = BreakingStore(uri, config, breaker)
        play(store, MORE if fault is not None and fault.of_more else PLAN, variant, store.made)
        pipe.send((ENDED, ""))
    except BaseException as error:
        pipe.send((ENDED, f"{type(error).__name__}: {error}"))
        os._exit(1)


class Player:
    """A process that plays `job`, started at once; `with` ends it in any case."""

    def __init__(self, job: Store, fault: Fault | None = None, variant: int = 0) -> None:
        context = _context()
        self._pipe, theirs = context.Pipe()
        environment = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
        self._process = context.Process(
            target=_main, args=(job.uri, job.config, environment, fault, variant, theirs), daemon=True
        )
        self._process.start()
        theirs.close()
        self.error = ""

    def __enter__(self) -> "Player":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.join(20)

    def reaches_its_fault(self) -> "Player":
        assert self._pipe.poll(120), "the fault was not reached"
        told = self._pipe.recv()
        assert told == REACHED, f"the fault was not reached: {told}"
        return self

    def is_stopped(self) -> None:
        """Return when the kernel says so."""
        for _ in range(500):
            if Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T":
                return
            time.sleep(0.01)
        raise AssertionError("not stopped")

    def goes_on(self) -> None:
        """Wakes from `stop` or `wait`."""
        if self._process.pid is not None:
            os.kill(self._process.pid, signal.SIGCONT)
        self._pipe.send("go on")

    def kill(self) -> None:
        self._process.kill()

    def ends(self) -> int:
        """Its exit code (negative: a signal); `error` says what it raised."""
        self._process.join(120)
        assert self._process.exitcode is not None, "the process does not end"
        try:
            while self._pipe.poll():
                told = self._pipe.recv()
                self.error = told[1] if isinstance(told, tuple) else self.error
        except (EOFError, ConnectionResetError):
            pass
        return self._process.exitcode


def _context() -> multiprocessing.context.ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    # The server looks for the module on its own path, and ignores one that it does not find.
    folders = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    kept = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([*folders, *([kept] if kept else [])])
    try:
        forkserver.ensure_running()
    finally:
        if kept is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = kept
    return context
