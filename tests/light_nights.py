"""Nights whose stages take no time but keep their promises: an artefact on the store, made once, found again.

Every effect on the store (an artefact, a ledger entry, a record of the registry) can be the last one of a process.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta

from pipeline.config.base import FileEntry
from pipeline.config.root import Config
from pipeline.errors import AlreadyExists
from pipeline.model_store.registry import Registry, Version
from pipeline.nightly.driver import nightly
from pipeline.nightly.ledger import Night
from pipeline.nightly.ledger_store import Ledgers
from pipeline.nightly.run_night import World
from pipeline.storage.store import Store

NAME = "light"


class Killed(BaseException):
    """As by SIGKILL: nothing is done about it."""


@dataclass
class Source:
    """Data and how good each night's model turns out, by date."""

    data: dict[str, str] = field(default_factory=dict)
    quality: dict[str, float] = field(default_factory=dict)


@dataclass
class LightWork:
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

    def _once(self, stage: str, night: Night, value: dict) -> dict:
        """The artefact of a stage, committed once."""
        self.calls.append(stage)
        self.before(stage, night)
        key = f"artefacts/{night.date}/{night.settings}-{stage}.json"
        try:
            self.root.create_json(key, value)
            if stage == "train":
                self.trained.append(night.date)
        except AlreadyExists:
            pass
        self.after(stage, night)
        return self.root.read_json(key)

    def snapshot(self, night: Night) -> dict:
        return self._once("snapshot", night, {"digest": self.source.data.get(night.date, f"data of {night.date}")})

    def train(self, night: Night) -> dict:
        return self._once("train", night, {"run": f"runs/{night.date}", "parent": night.champion})

    def export(self, night: Night) -> dict:
        registry = Registry(self.root.child("models", NAME))
        number = registry.claim(night.date + night.settings)
        file = FileEntry(key="weights", bytes=1, sha256="0" * 64)
        registry.commit(
            Version(number=number, source=night.date, model_digest="d", sha256="0" * 64, files=(file,), facts={})
        )
        return self._once("export", night, {"version": number})

    def samples(self, night: Night) -> dict:
        return self._once("samples", night, {"challenger": f"samples/{night.date}", "champion": night.champion})

    def evaluate(self, night: Night) -> dict:
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
        return self._once("evaluate", night, value)

    def _night_of(self, version: int) -> str:
        return Registry(self.root.child("models", NAME)).version(version).source

    def _value(self, when: str) -> float:
        return self.source.quality.get(when, 0.5)

    def _evidence(self, model: str, value: float) -> dict:
        anchors = {"floor": 0.0, "ceilings": {"blurred": 1.0}, "n": 100}
        return {"model": model, "metric": "KD-light", "value": value, **anchors, "protocol": {}}

    def report(self, night: Night) -> dict:
        return self._once("report", night, {"uri": f"report of {night.date}"})

    def retention(self, night: Night, old: list[Night]) -> dict:
        return self._once("retention", night, {"removed": [other.date for other in old]})


@dataclass
class Simulation:
    """A root, a clock that a test sets, and what was told to hooks. Nights begin at 03:00 UTC."""

    root: Store
    source: Source = field(default_factory=Source)
    settings: dict = field(default_factory=dict)
    sections: dict = field(default_factory=dict)
    told: list[tuple[str, str]] = field(default_factory=list)
    time: datetime = datetime(2026, 11, 1, 3, tzinfo=UTC)
    interrupt: Callable[[], None] = lambda: None
    sleep: Callable[[float], None] = lambda seconds: None

    def __post_init__(self) -> None:
        self.work = LightWork(self.root, self.source, lambda: self.time.date())

    @property
    def registry(self) -> Registry:
        return Registry(self.root.child("models", NAME))

    def at(self, day: int, hour: int = 3) -> "Simulation":
        self.time = datetime(2026, 11, 1, hour, tzinfo=UTC) + timedelta(days=day - 1)
        return self

    def run(self, day: int | None = None, work: LightWork | None = None, **settings) -> dict:
        """One invocation of ddpm nightly, by default for today."""
        values = {"name": NAME, **self.settings, **settings}
        config = Config.model_validate({"nightly": values, "gate": {"tolerance": 0.02}, **self.sections})
        world = World(lambda: self.time, self.sleep, self.interrupt, self._tell)
        asked = None if day is None else date(2026, 11, day)
        return nightly(config, self.root.uri, work or self.work, asked, world)

    def _tell(self, config, event: dict) -> None:
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
