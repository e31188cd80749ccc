"""One night: stage after stage, each entered in the ledger after its artefact is committed.

A night that is killed anywhere loses at most the entry, and the stage then says that it is done already. The stages
that do the work are handed in (`Work`), and so are clock, sleep and signals (`World`).
"""

import os
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any, Protocol

from pipeline.config.nightly import NightlyConfig
from pipeline.config.root import Config
from pipeline.errors import Busy, GateNotPassed, PipelineError, Stopped
from pipeline.model_store.mlflow_registry import mirror
from pipeline.model_store.registry import Change, Record, Registry, version_key
from pipeline.nightly.gate import Difference, Evidence, gate
from pipeline.nightly.ledger import AFTERWARDS, TRAINED, Night, Outcome, unchanged
from pipeline.nightly.ledger_store import Ledgers
from pipeline.nightly.notify import tell
from pipeline.nightly.watchdog import NightWatch

__all__ = ["NightRun", "Result", "Work", "World"]

Result = dict[str, Any]


class Work(Protocol):
    """The stages. Each returns JSON for the ledger, finds what was made before it was killed, and may be repeated."""

    def settings(self) -> str: ...  # digest of what decides the model
    def ready(self) -> AbstractContextManager[None]: ...  # what all stages of an invocation share
    def snapshot(self, night: Night) -> Result: ...  # digest
    def train(self, night: Night) -> Result: ...
    def export(self, night: Night) -> Result: ...  # version
    def samples(self, night: Night) -> Result: ...
    def evaluate(self, night: Night) -> Result: ...  # challenger, champion, difference, metrics
    def report(self, night: Night) -> Result: ...
    def retention(self, night: Night, old: list[Night]) -> Result: ...


def _promoted(reason: str, record: Record) -> Result:
    return {"state": "promoted", "reason": reason, "champion": record.champion, "record": record.number}


def _interrupt() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@dataclass(frozen=True)
class World:
    """All that a night does not decide itself. interrupt: ends what the main thread is doing."""

    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    sleep: Callable[[float], None] = time.sleep
    interrupt: Callable[[], None] = _interrupt
    tell: Callable[[NightlyConfig, Result], None] = tell


@dataclass(frozen=True)
class NightRun:
    """Runs one night, and says what became of it."""

    config: Config
    ledgers: Ledgers
    registry: Registry
    work: Work
    world: World

    def run(self, day: date, known: Mapping[date, Night], watch: NightWatch) -> Night:
        night = self.open(day)
        try:
            while (stage := night.next_stage) is not None and night.state != "skipped":
                watch.look()
                night = self._step(night, stage, known)
        except BaseException as error:
            cause = watch.cause or error
            self.fail(night, cause)
            if isinstance(error, Stopped) and cause is not error:
                raise cause from error
            raise
        warning = mirror(self.config, self.registry) if night.state in TRAINED else None
        if warning is not None:
            night = night.model_copy(update={"warnings": (*night.warnings, warning)})
        self.tell({"promoted": "success", "held": "hold"}.get(night.state, "skipped"), night)
        return night

    def open(self, day: date) -> Night:
        """The ledger for a further attempt; one with other settings begins anew, as its run would refuse them."""
        settings, head = self.work.settings(), self.registry.head()
        night = self.ledgers.read(day)
        night = None if night is None else self.as_recorded(night)
        if night is None or not night.done or (night.settings != settings and not night.is_settled):
            begun = Night(name=self.config.nightly.name, date=day.isoformat(), began=self.at)
            night = begun.model_copy(
                update={
                    "settings": settings,
                    "champion": head.champion,
                    "record": head.number,
                    "attempts": 0 if night is None else night.attempts,
                }
            )
        changes: Result = {"attempts": night.attempts + 1}
        if not night.is_settled:
            changes |= {"state": "running", "reason": "", "ended": ""}
        return self.ledgers.write(night.model_copy(update=changes))

    def _step(self, night: Night, stage: str, known: Mapping[date, Night]) -> Night:
        if stage in AFTERWARDS:
            return self.ledgers.write(self._afterwards(night, stage))
        night = night.after(stage, self._do(night, stage))
        if stage == "snapshot" and not self.config.nightly.retrain_unchanged:
            reason = unchanged(night, known)
            if reason is not None:
                return self.settle(night, "skipped", reason)
        if stage == "promote":
            outcome = night.done["promote"]
            return self.settle(night, outcome["state"], outcome["reason"])
        return self.ledgers.write(night)

    def _do(self, night: Night, stage: str) -> Result:
        if stage == "gate":
            return self._gate(night)
        if stage == "promote":
            return self._promote(night)
        result: Result = getattr(self.work, stage)(night)
        if stage == "export":
            change = Change(f"night of {night.date}", night.request, self.world.now(), {})
            self.registry.challenge(result["version"], change, night.record)
        return result

    def _gate(self, night: Night) -> Result:
        found = night.done["evaluate"]
        champion, difference = found["champion"], found["difference"]
        verdict = gate(
            Evidence.model_validate(found["challenger"]),
            None if champion is None else Evidence.model_validate(champion),
            None if difference is None else Difference.model_validate(difference),
            self.config.gate,
        )
        return verdict.model_dump(mode="json")

    def _promote(self, night: Night) -> Result:
        decision, reason = night.done["gate"]["decision"], night.done["gate"]["reason"]
        if decision == "hold":
            return {"state": "held", "reason": reason, "champion": night.champion}
        version = night.done["export"]["version"]
        change = Change(
            f"night of {night.date}: {reason}", night.request, self.world.now(), night.done["evaluate"]["metrics"]
        )
        try:
            record = self.registry.promote(version, change, night.champion, night.record)
        except Busy as error:  # a person was faster: what was compared is not what would be replaced
            return {"state": "held", "reason": f"{reason}; but {error}", "champion": self.registry.head().champion}
        return _promoted(reason, record)

    def as_recorded(self, night: Night) -> Night:
        """A night whose promotion is in the registry is promoted, also when nobody lived to enter it in the ledger."""
        gate = night.done.get("gate")
        if night.is_settled or gate is None:
            return night
        record = self.registry.made("promote", night.request, night.record)
        if record is None:
            return night
        return night.after("promote", _promoted(gate["reason"], record)).settled("promoted", gate["reason"], self.at)

    def _afterwards(self, night: Night, stage: str) -> Night:
        try:
            if stage == "retention":
                old = self.ledgers.outdated(self.config.nightly.keep_nights)
                return night.after(stage, self.work.retention(night, old))
            return night.after(stage, self.work.report(night))
        except (Stopped, Busy):
            raise
        except Exception as error:
            warning = f"{stage}: {error}"
            return night.after(stage, {"error": str(error)}).model_copy(update={"warnings": (*night.warnings, warning)})

    # --- its end -----------------------------------------------------------------------------------------------------

    @property
    def at(self) -> str:
        return self.world.now().astimezone(UTC).isoformat(timespec="seconds")

    def settle(self, night: Night, state: Outcome, reason: str) -> Night:
        return self.ledgers.write(night.settled(state, reason, self.at))

    def fail(self, night: Night, error: BaseException) -> None:
        """Say in the ledger, and to hooks, why a night did not end."""
        reason = str(error) or type(error).__name__
        if not night.is_settled:
            night = night.settled("failed", reason, self.at)
            try:
                self.ledgers.write(night)
            except PipelineError as other:  # the store is away, or somebody took over: the ledger says what it said
                night = night.model_copy(update={"warnings": (*night.warnings, f"ledger: {other}")})
        self.tell("failure", night.model_copy(update={"reason": reason}))

    def tell(self, event: str, night: Night) -> None:
        self.world.tell(self.config.nightly, {"event": event, **self._facts(night)})

    def _facts(self, night: Night) -> Result:
        done, began = night.done, night.began or self.at
        took = datetime.fromisoformat(night.ended or self.at) - datetime.fromisoformat(began)
        return {
            "name": night.name,
            "date": night.date,
            "state": night.state,
            "reason": night.reason,
            "at": self.at,
            "seconds": took.total_seconds(),
            "attempts": night.attempts,
            "champion": done.get("promote", {}).get("champion", night.champion),
            "version": done.get("export", {}).get("version"),
            "metrics": done.get("evaluate", {}).get("metrics", {}),
            "report": done.get("report", {}).get("uri"),
            "warnings": list(night.warnings),
        }

    def result(self, night: Night, what: str) -> Result:
        facts = self._facts(night)
        version = "" if facts["version"] is None else f" {version_key(facts['version'])}"
        report = f" -> {facts['report']}" if facts["report"] else ""
        state = what if what == night.state else f"{what} ({night.state})"
        lines = [f"night of {night.date}: {state}{version}: {night.reason}{report}"]
        return {
            **facts,
            "uri": self.ledgers.store.location(f"{night.date}/state.json"),
            "exit_code": GateNotPassed.exit_code if night.state == "held" else 0,
            "summary": "\n".join([*lines, *(f"warning: {line}" for line in night.warnings)]),
        }
