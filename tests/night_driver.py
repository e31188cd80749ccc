"""Runs a night in its own process on an existing cluster, with a given clock and an optional point of SIGKILL.

Drivers are forked from a server that has imported everything, so a night costs no imports.
"""

import multiprocessing
import os
import re
import signal
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import date, datetime
from multiprocessing.connection import Connection
from typing import Any

from pipeline.config.root import Config
from pipeline.errors import PipelineError
from pipeline.evaluation.driver import evaluate
from pipeline.generation.driver import generate
from pipeline.ingest.driver import ingest
from pipeline.model_store.export import export
from pipeline.nightly import driver, watchdog
from pipeline.nightly.night_stages import Drivers, NightStages
from pipeline.nightly.run_night import Effects, NightRun
from pipeline.report.driver import report
from pipeline.storage.store import Store, resolve
from pipeline.training.driver import train

DRIVERS = Drivers(ingest, train, export, generate, evaluate, report)


@dataclass(frozen=True)
class Death:
    """SIGKILL in a stage: at the first new key below `under` that matches `key`, at the latest after the stage."""

    stage: str
    under: str = ""
    key: str | None = None


@dataclass(frozen=True)
class Order:
    """One invocation of ddpm nightly. day: None for today."""

    sections: dict[str, Any]
    root: str
    now: datetime
    day: date | None = None
    death: Death | None = None
    environment: dict[str, str] = field(default_factory=dict)


class Driver:
    """A night running in its own process; `result` waits for its end."""

    def __init__(self, order: Order) -> None:
        here, there = multiprocessing.get_context("forkserver").Pipe(duplex=False)
        self._answer = here
        self.process = multiprocessing.get_context("forkserver").Process(target=_drive, args=(order, there))
        self.process.start()
        there.close()

    def result(self, seconds: float = 1200) -> dict[str, Any]:
        """Result of nightly and `told` (events for hooks), or `error`, `exit_code`; {"killed": True} after SIGKILL."""
        try:
            assert self._answer.poll(seconds), f"no answer in {seconds} s"
            found = self._answer.recv()
        except EOFError:
            found = {"killed": True}
        self.process.join(60)
        assert (self.process.exitcode == -signal.SIGKILL) == ("killed" in found), (self.process.exitcode, found)
        return found


def _drive(order: Order, answer: Connection) -> None:
    os.environ.update(order.environment)
    watchdog.POLL_SECONDS, driver.QUEUE_POLL_SECONDS = 0.2, 0.2
    config = Config.model_validate(order.sections)
    root, told = resolve(order.root, config.storage), []
    if order.death is not None:
        _arm(order.death, root)
    effects = Effects(now=lambda: order.now, notify=lambda _, event: told.append((event["date"], event["event"])))
    try:
        found = driver.nightly(config, order.root, NightStages(config, root, DRIVERS), order.day, effects)
    except PipelineError as error:
        found = {"error": str(error), "exit_code": error.exit_code}
    answer.send({**found, "told": told})
    answer.close()


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _arm(death: Death, root: Store) -> None:
    real_stage, real_closing = NightRun._run_stage, NightRun._run_closing_stage

    def dying(real: Any, run: NightRun, night: Any, stage: str) -> Any:
        if stage == death.stage and death.key is not None:
            threading.Thread(
                target=_wait_and_die, args=(root.child(death.under), re.compile(death.key)), daemon=True
            ).start()
        result = real(run, night, stage)
        if stage == death.stage:
            _die()
        return result

    NightRun._run_stage = lambda run, night, stage: dying(real_stage, run, night, stage)  # type: ignore[method-assign]
    NightRun._run_closing_stage = lambda run, night, stage: dying(real_closing, run, night, stage)  # type: ignore[method-assign]


def _wait_and_die(folder: Store, key: re.Pattern[str]) -> None:
    before = {entry.key for entry in folder.list()}
    while True:
        with suppress(PipelineError):
            if any(key.search(entry.key) for entry in folder.list() if entry.key not in before):
                _die()
        time.sleep(0.02)
