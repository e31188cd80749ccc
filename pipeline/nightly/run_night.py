"""Runs one night: stage after stage, each recorded in the ledger after its artefact is committed.

A night killed at any point loses at most one ledger entry; the repeated stage finds its committed artefact. Stages
(`Stages`) and side effects (`Effects`: clock, sleep, signals, hooks) are injected.
"""

import os
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any, Protocol

from pydantic import BaseModel

from pipeline.config.nightly import NightlyConfig
from pipeline.config.root import Config
from pipeline.errors import Busy, GateNotPassed, PipelineError, Stopped
from pipeline.model_store.mlflow_registry import mirror
from pipeline.model_store.registry import ChangeRequest, Record, Registry, version_key
from pipeline.nightly import stage_results as results
from pipeline.nightly.gate import Verdict, gate
from pipeline.nightly.ledger import CLOSING_STAGES, TRAINED, Night, Outcome, unchanged
from pipeline.nightly.ledger_store import STATE, Ledgers
from pipeline.nightly.notify import run_hooks
from pipeline.nightly.watchdog import NightWatch

Result = dict[str, Any]


class Stages(Protocol):
    """The stages that make artefacts. Each finds the artefact of a killed attempt and may be repeated."""

    def settings(self) -> str: ...  # digest of the settings that decide the model
    def ready(self) -> AbstractContextManager[None]: ...  # resources shared by all stages of an invocation
    def snapshot(self, night: Night) -> results.SnapshotResult: ...
    def train(self, night: Night) -> results.TrainResult: ...
    def export(self, night: Night) -> results.ExportResult: ...
    def samples(self, night: Night) -> results.SamplesResult: ...
    def evaluate(self, night: Night) -> results.Comparison: ...
    def report(self, night: Night) -> results.ReportResult: ...
    def retention(self, night: Night, old: list[Night]) -> results.RetentionResult: ...


def _interrupt() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@dataclass(frozen=True)
class Effects:
    """Side effects of a night. interrupt: stops the main thread; notify: runs the hooks of an event."""

    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    sleep: Callable[[float], None] = time.sleep
    interrupt: Callable[[], None] = _interrupt
    notify: Callable[[NightlyConfig, Result], None] = run_hooks


@dataclass(frozen=True)
class NightRun:
    """Runs one night and reports its outcome to ledger, hooks and caller."""

    config: Config
    ledgers: Ledgers
    registry: Registry
    stages: Stages
    effects: Effects

    def run(self, day: date, known: Mapping[date, Night], watch: NightWatch) -> Night:
        """Run or continue the night of `day`; an error is recorded in the ledger and raised."""
        night = self.open(day)
        try:
            while (stage := night.next_stage) is not None and night.state != "skipped":
                watch.check()
                night = self._step(night, stage, known)
        except BaseException as error:
            cause = watch.cause or error
            self.fail(night, cause)
            if isinstance(error, Stopped) and cause is not error:
                raise cause from error
            raise
        warning = mirror(self.config, self.registry) if night.state in TRAINED else None
        if warning is not None:
            night = night.warned(warning)
        self.notify({"promoted": "success", "held": "hold"}.get(night.state, "skipped"), night)
        return night

    def open(self, day: date) -> Night:
        """Record a further attempt. Other settings start the night anew, because its run would refuse them."""
        settings, head = self.stages.settings(), self.registry.head()
        night = self.ledgers.read(day)
        night = None if night is None else self.with_promotion(night)
        if night is None or not night.stages_done or (night.settings != settings and not night.is_settled):
            night = Night(
                name=self.config.nightly.name,
                date=day.isoformat(),
                began=self.timestamp,
                settings=settings,
                champion=head.champion,
                record=head.number,
                attempts=0 if night is None else night.attempts,
            )
        if not night.is_settled:
            night = night.settled("running", "", "")
        return self.ledgers.write(night.model_copy(update={"attempts": night.attempts + 1}))

    def _step(self, night: Night, stage: str, known: Mapping[date, Night]) -> Night:
        if stage in CLOSING_STAGES:
            return self.ledgers.write(self._run_closing_stage(night, stage))
        night = night.after(stage, self._run_stage(night, stage))
        if stage == "snapshot" and not self.config.nightly.retrain_unchanged:
            reason = unchanged(night, known)
            if reason is not None:
                return self.settle(night, "skipped", reason)
        if night.done.promote is not None:
            return self.settle(night, night.done.promote.state, night.done.promote.reason)
        return self.ledgers.write(night)

    def _run_stage(self, night: Night, stage: str) -> BaseModel:
        if stage == "gate":
            return self._gate(night)
        if stage == "promote":
            return self._promote(night)
        result: BaseModel = getattr(self.stages, stage)(night)
        if isinstance(result, results.ExportResult):
            change = ChangeRequest(f"night of {night.date}", night.request, self.effects.now(), {})
            self.registry.challenge(result.version, change, night.record)
        return result

    def _gate(self, night: Night) -> Verdict:
        found = results.finished(night.done.evaluate)
        return gate(found.challenger, found.champion, found.difference, self.config.gate)

    def _promote(self, night: Night) -> results.PromoteResult:
        verdict = results.finished(night.done.gate)
        if verdict.decision == "hold":
            return results.PromoteResult(state="held", reason=verdict.reason, champion=night.champion)
        version = results.finished(night.done.export).version
        metrics = results.finished(night.done.evaluate).metrics
        change = ChangeRequest(f"night of {night.date}: {verdict.reason}", night.request, self.effects.now(), metrics)
        try:
            record = self.registry.promote(version, change, night.champion, night.record)
        except Busy as error:  # a person moved the champion: the gate compared against another one
            reason, champion = f"{verdict.reason}; but {error}", self.registry.head().champion
            return results.PromoteResult(state="held", reason=reason, champion=champion)
        return _promoted(verdict, record)

    def with_promotion(self, night: Night) -> Night:
        """A night killed between the registry's record and its own ledger entry counts as promoted."""
        verdict = night.done.gate
        if night.is_settled or verdict is None:
            return night
        record = self.registry.find_record("promote", night.request, night.record)
        if record is None:
            return night
        return night.after("promote", _promoted(verdict, record)).settled("promoted", verdict.reason, self.timestamp)

    def _run_closing_stage(self, night: Night, stage: str) -> Night:
        try:
            if stage == "retention":
                old = self.ledgers.outdated(self.config.nightly.keep_nights)
                return night.after(stage, self.stages.retention(night, old))
            return night.after(stage, self.stages.report(night))
        except (Stopped, Busy):
            raise
        except Exception as error:
            failed = results.RetentionResult if stage == "retention" else results.ReportResult
            return night.after(stage, failed(error=str(error))).warned(f"{stage}: {error}")

    # --- outcome -----------------------------------------------------------------------------------------------------

    @property
    def timestamp(self) -> str:
        """Now, UTC, ISO 8601."""
        return self.effects.now().astimezone(UTC).isoformat(timespec="seconds")

    def settle(self, night: Night, state: Outcome, reason: str) -> Night:
        """Record the outcome of a night."""
        return self.ledgers.write(night.settled(state, reason, self.timestamp))

    def fail(self, night: Night, error: BaseException) -> None:
        """Record the reason of a failure in the ledger and run the failure hooks."""
        reason = str(error) or type(error).__name__
        if not night.is_settled:
            night = night.settled("failed", reason, self.timestamp)
            try:
                self.ledgers.write(night)
            except PipelineError as other:  # no store, or another process took over: the ledger stays as it is
                night = night.warned(f"ledger: {other}")
        self.notify("failure", night.model_copy(update={"reason": reason}))

    def notify(self, event: str, night: Night) -> None:
        """Run the hooks of an event: success, failure, hold or skipped."""
        self.effects.notify(self.config.nightly, {"event": event, **self._facts(night)})

    def _facts(self, night: Night) -> Result:
        done, began = night.done, night.began or self.timestamp
        took = datetime.fromisoformat(night.ended or self.timestamp) - datetime.fromisoformat(began)
        return {
            "name": night.name,
            "date": night.date,
            "state": night.state,
            "reason": night.reason,
            "at": self.timestamp,
            "seconds": took.total_seconds(),
            "attempts": night.attempts,
            "champion": done.promote.champion if done.promote else night.champion,
            "version": done.export.version if done.export else None,
            "metrics": done.evaluate.metrics if done.evaluate else {},
            "report": done.report.uri if done.report else None,
            "warnings": list(night.warnings),
        }

    def result(self, night: Night, state: str) -> Result:
        """JSON of the verb. state: what this invocation did, such as `already done`."""
        facts = self._facts(night)
        version = "" if facts["version"] is None else f" {version_key(facts['version'])}"
        report = f" -> {facts['report']}" if facts["report"] else ""
        state = state if state == night.state else f"{state} ({night.state})"
        lines = [f"night of {night.date}: {state}{version}: {night.reason}{report}"]
        return {
            **facts,
            "uri": self.ledgers.store.location(f"{night.date}/{STATE}"),
            "exit_code": GateNotPassed.exit_code if night.state == "held" else 0,
            "summary": "\n".join([*lines, *(f"warning: {line}" for line in night.warnings)]),
        }


def _promoted(verdict: Verdict, record: Record) -> results.PromoteResult:
    return results.PromoteResult(
        state="promoted", reason=verdict.reason, champion=record.champion, record=record.number
    )
