"""Simulated nights: stages that only commit a JSON artefact by create-once and find it again when repeated.

A test can kill the process before or after every write: artefact, ledger entry, registry record.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import TypeVar

from pipeline.config.base import FileEntry
from pipeline.config.root import Config
from pipeline.errors import AlreadyExists
from pipeline.model_store.registry import Registry, Version
from pipeline.nightly.driver import nightly
from pipeline.nightly.ledger import Night
from pipeline.nightly.ledger_store import Ledgers
from pipeline.nightly.run_night import Effects
from pipeline.nightly.stage_results import (
    Comparison,
    ExportResult,
    ReportResult,
    RetentionResult,
    SamplesResult,
    SnapshotResult,
    StageResult,
    StageResults,
    TrainResult,
)
from pipeline.storage.store import Store

NAME = "light"
T = TypeVar("T", bound=StageResult)


def trained(run: str = "runs/r", step: int = 1, parent: int | None = None) -> TrainResult:
    """Result of a training stage."""
    return TrainResult(run=run, checkpoint=f"{run}/c", step=step, images=step, dataset_digest="d", parent=parent)


ANCHORS = {"floor": 0.0, "ceilings": {"blurred": 1.0}, "n": 100, "protocol": {}}
EVIDENCE = {"model": "v", "metric": "KD-light", "value": 0.5, **ANCHORS}
ALL_DONE = StageResults.model_validate(
    {
        "snapshot": {"digest": "d"},
        "train": trained().model_dump(),
        "export": {"version": 1},
        "samples": {"challenger": "samples/1", "champion": None},
        "evaluate": {"challenger": EVIDENCE, "champion": None, "difference": None, "metrics": {}},
        "gate": {"decision": "promote", "reason": ""},
        "promote": {"state": "promoted", "reason": "", "champion": 1, "record": 2},
        "report": {"uri": "r"},
        "retention": {"removed": []},
    }
)


class Killed(BaseException):
    """Stands for SIGKILL: no product code handles it."""


@dataclass
class Source:
    """Data digest and score of each night's model, by date."""

    data: dict[str, str] = field(default_factory=dict)
    quality: dict[str, float] = field(default_factory=dict)


@dataclass
class LightStages:
    root: Store
    source: Source
    today: Callable[[], date]
    trained: list[str] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    before: Callable[[str, Night], None] = lambda stage, night: None
    after: Callable[[str, Night], None] = lambda stage, night: None
    used: str = "settings"
    ready: Callable[[], AbstractContextManager[None]] = nullcontext

    def settings(self) -> str:
        return self.used

    def _once(self, stage: str, night: Night, result: T) -> T:
        """The result of a stage, committed once as its artefact."""
        self.calls.append(stage)
        self.before(stage, night)
        key = f"artefacts/{night.date}/{night.settings}-{stage}.json"
        try:
            self.root.create_json(key, result.model_dump(mode="json", exclude_unset=True))
            if stage == "train":
                self.trained.append(night.date)
        except AlreadyExists:
            pass
        self.after(stage, night)
        return type(result).model_validate(self.root.read_json(key))

    def snapshot(self, night: Night) -> SnapshotResult:
        digest = self.source.data.get(night.date, f"data of {night.date}")
        return self._once("snapshot", night, SnapshotResult(digest=digest))

    def train(self, night: Night) -> TrainResult:
        return self._once("train", night, trained(f"runs/{night.date}", parent=night.champion))

    def export(self, night: Night) -> ExportResult:
        registry = Registry(self.root.child("models", NAME))
        number = registry.claim(night.date + night.settings)
        file = FileEntry(key="weights", bytes=1, sha256="0" * 64)
        registry.commit(
            Version(number=number, source=night.date, model_digest="d", sha256="0" * 64, files=(file,), facts={})
        )
        return self._once("export", night, ExportResult(version=number))

    def samples(self, night: Night) -> SamplesResult:
        champion = None if night.champion is None else f"samples/v{night.champion}"
        return self._once("samples", night, SamplesResult(challenger=f"samples/{night.date}", champion=champion))

    def evaluate(self, night: Night) -> Comparison:
        mine = self._value(night.date)
        theirs = None if night.champion is None else self._value(self._night_of(night.champion))
        difference = None
        if theirs is not None:
            values = {"value": mine - theirs, "low": mine - theirs - 0.01, "high": mine - theirs + 0.01}
            difference = {**values, "confidence": 0.95, "groups": 20}
        value = {
            "challenger": self._evidence(night.date, mine),
            "champion": None if theirs is None else self._evidence("champion", theirs),
            "difference": difference,
            "metrics": {"KD-light": mine},
        }
        return self._once("evaluate", night, Comparison.model_validate(value))

    def _night_of(self, version: int) -> str:
        return Registry(self.root.child("models", NAME)).version(version).source

    def _value(self, when: str) -> float:
        return self.source.quality.get(when, 0.5)

    def _evidence(self, model: str, value: float) -> dict:
        return {**EVIDENCE, "model": model, "value": value}

    def report(self, night: Night) -> ReportResult:
        return self._once("report", night, ReportResult(uri=f"report of {night.date}"))

    def retention(self, night: Night, old: list[Night]) -> RetentionResult:
        return self._once("retention", night, RetentionResult(removed=tuple(other.date for other in old)))


@dataclass
class Simulation:
    """A storage root, a clock set by the test, and the events sent to hooks. Nights begin at 03:00 UTC."""

    root: Store
    source: Source = field(default_factory=Source)
    settings: dict = field(default_factory=dict)
    sections: dict = field(default_factory=dict)
    told: list[tuple[str, str]] = field(default_factory=list)
    time: datetime = datetime(2026, 11, 1, 3, tzinfo=UTC)
    interrupt: Callable[[], None] = lambda: None
    sleep: Callable[[float], None] = lambda seconds: None

    def __post_init__(self) -> None:
        self.stages = LightStages(self.root, self.source, lambda: self.time.date())

    @property
    def registry(self) -> Registry:
        return Registry(self.root.child("models", NAME))

    def at(self, day: int, hour: int = 3) -> "Simulation":
        self.time = datetime(2026, 11, 1, hour, tzinfo=UTC) + timedelta(days=day - 1)
        return self

    def run(self, day: int | None = None, stages: LightStages | None = None, **settings) -> dict:
        """One invocation of ddpm nightly, by default for today."""
        values = {"name": NAME, **self.settings, **settings}
        config = Config.model_validate({"nightly": values, "gate": {"tolerance": 0.02}, **self.sections})
        effects = Effects(lambda: self.time, self.sleep, self.interrupt, self._notify)
        asked = None if day is None else date(2026, 11, day)
        return nightly(config, self.root.uri, stages or self.stages, asked, effects)

    def _notify(self, config, event: dict) -> None:
        self.told.append((event["date"], event["event"]))

    def ledger(self, day: int) -> Night | None:
        return Ledgers(self.root.child("nightly", NAME)).read(date(2026, 11, day))

    def states(self) -> dict[int, str]:
        ledgers = Ledgers(self.root.child("nightly", NAME))
        return {when.day: ledgers.read(when).state for when in ledgers.dates()}

    def champion(self) -> int | None:
        return self.registry.head().champion

    def actions(self) -> list[tuple[str, int | None]]:
        return [(r.action, r.champion if r.action != "challenge" else r.challenger) for r in self.registry.records()]
