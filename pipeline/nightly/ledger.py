"""Ledger of one night, and which nights to run. Pure: no I/O, no clock.

    snapshot -> train -> export -> samples -> evaluate -> gate -> promote -> report -> retention

A night is `running` until it is settled: promoted, held, skipped or missed. A failed or killed night is not settled;
the same command continues it with the first stage that the ledger lacks.
"""

from collections.abc import Mapping
from datetime import date, timedelta
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, field_serializer

from pipeline.config.base import Section, digest_of
from pipeline.config.nightly import as_date
from pipeline.nightly.stage_results import StageResults
from pipeline.schema import SCHEMA_VERSION

STAGES = tuple(StageResults.model_fields)
CLOSING_STAGES = ("report", "retention")
"""Stages after the decision: their failure is a warning and leaves the night's outcome as it is."""
MOST_MISSED = 31
"""Most earlier nights that one invocation records as missed or catches up with; older ones get no ledger."""

Outcome = Literal["running", "promoted", "held", "skipped", "missed", "failed"]
CatchUp = Literal["none", "latest", "all"]
SETTLED = {"promoted", "held", "skipped", "missed"}
TRAINED = {"promoted", "held"}
Day = date


class Night(Section):
    """`nightly/<name>/<date>/state.json`, replaced by compare-and-swap. Times are UTC and decide nothing.

    settings: digest of the settings that decide the model. champion, record: of the registry when the night began:
    the version that training starts from and the challenger must beat, and the last record before the night's own.
    done: results of committed stages.
    """

    kind: Literal["night"] = "night"
    schema_version: int = SCHEMA_VERSION
    name: str
    date: str
    state: Outcome = "running"
    reason: str = ""
    settings: str = ""
    champion: int | None = None
    record: int = 0
    attempts: int = 0
    began: str = ""
    ended: str = ""
    done: StageResults = StageResults()
    warnings: tuple[str, ...] = ()

    @field_serializer("done")
    def _without_unset(self, done: StageResults) -> dict[str, Any]:
        return done.model_dump(mode="json", exclude_unset=True)

    @property
    def day(self) -> Day:
        return as_date(self.date)

    @property
    def is_settled(self) -> bool:
        return self.state in SETTLED

    @property
    def is_complete(self) -> bool:
        """Nothing is left to do: a night is settled before its report exists."""
        return self.is_settled and (self.state not in TRAINED or self.next_stage is None)

    @property
    def request(self) -> str:
        """Request name of the night's records in the registry."""
        return f"nightly/{self.name}/{self.date}/{self.settings[:8]}"

    @property
    def stages_done(self) -> list[str]:
        return [stage for stage in STAGES if getattr(self.done, stage) is not None]

    @property
    def next_stage(self) -> str | None:
        return next((stage for stage in STAGES if getattr(self.done, stage) is None), None)

    @property
    def inputs(self) -> str | None:
        """Digest of data and settings; None before the snapshot. Equal inputs would train the same model again."""
        snapshot = self.done.snapshot
        return None if snapshot is None else digest_of([snapshot.digest, self.settings])

    def after(self, stage: str, result: BaseModel) -> "Night":
        """A copy with this stage done."""
        return self.model_copy(update={"done": self.done.model_copy(update={stage: result})})

    def settled(self, state: Outcome, reason: str, ended: str) -> "Night":
        """A copy with this outcome."""
        return self.model_copy(update={"state": state, "reason": reason, "ended": ended})

    def warned(self, warning: str) -> "Night":
        """A copy with one more warning."""
        return self.model_copy(update={"warnings": (*self.warnings, warning)})


class DueNights(NamedTuple):
    """Nights to run, oldest first, and earlier nights to record as missed."""

    run: tuple[date, ...]
    missed: tuple[date, ...]


def nights_due(day: date, today: date, known: Mapping[date, Night], policy: CatchUp) -> DueNights:
    """The nights to run for a command with --date `day`. known: existing ledgers by date.

    latest: `day` alone, whatever today is; nights since the last settled one are missed. all: every night after the
    last settled one, up to `day`. none: as latest, but `day` is missed too when it is over and was never begun.
    """
    existing = known.get(day)
    if existing is not None and existing.is_settled:
        return DueNights((), ()) if existing.is_complete else DueNights((day,), ())
    earlier = [other for other in known if other < day]
    last = max((other for other in earlier if known[other].is_settled), default=None)
    begun = min((other for other in earlier if last is None or other > last), default=None)
    first = (day if begun is None else begun) if last is None else last + timedelta(days=1)
    first = max(first, day - timedelta(days=MOST_MISSED))
    between = [first + timedelta(days=k) for k in range((day - first).days)]
    if policy == "all":
        return DueNights((*between, day), ())
    if policy == "none" and day < today and existing is None:
        return DueNights((), (*between, day))
    return DueNights((day,), tuple(between))


def newer_settled(day: date, known: Mapping[date, Night]) -> date | None:
    """The newest settled night after `day`.

    When there is one, running `day` would train on newer data and be compared with a newer champion than its own.
    """
    return max((other for other, night in known.items() if other > day and night.is_settled), default=None)


def unchanged(night: Night, known: Mapping[date, Night]) -> str | None:
    """The reason to skip training: data and settings equal those of the last night that trained; else None."""
    last = max((day for day, other in known.items() if other.state in TRAINED and day < night.day), default=None)
    if last is None or night.done.snapshot is None or known[last].inputs != night.inputs:
        return None
    digest = night.done.snapshot.digest
    return (
        f"nothing changed since the night of {last} ({known[last].state}): data {digest[:16]} and settings are the same"
    )
