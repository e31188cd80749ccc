"""One night's ledger and the policy over nights: pure, so that a year of them can be tried in a second.

    snapshot -> train -> export -> samples -> evaluate -> gate -> promote -> report -> retention

A night is `running` until it is settled: promoted, held, skipped or missed. One that failed or was killed is not; the
same command goes on with the first stage that the ledger does not have.
"""

from collections.abc import Mapping
from datetime import date, timedelta
from typing import Any, Literal, NamedTuple

from pipeline.config.base import Section, digest_of
from pipeline.config.nightly import as_date
from pipeline.schema import SCHEMA_VERSION

__all__ = ["STAGES", "TRAINED", "CatchUp", "Due", "Night", "Outcome", "nights_due", "overtaken", "unchanged"]

STAGES = ("snapshot", "train", "export", "samples", "evaluate", "gate", "promote", "report", "retention")
AFTERWARDS = ("report", "retention")
"""Stages after the champion was decided: their failure is noted, and changes nothing about the night."""
MOST_MISSED = 31
"""Nights that one invocation notes as missed, or catches up with; older ones leave no trace."""

Outcome = Literal["running", "promoted", "held", "skipped", "missed", "failed"]
CatchUp = Literal["none", "latest", "all"]
SETTLED = {"promoted", "held", "skipped", "missed"}
TRAINED = {"promoted", "held"}
Day = date


class Night(Section):
    """`nightly/<name>/<date>/state.json`, moved on by compare-and-swap. Times are UTC, for people.

    done: the result of every stage that is committed, by its name. champion and record: of the registry when the
    night began; what it trains from and must beat, and after which record its own come.
    """

    kind: Literal["night"] = "night"
    schema_version: int = SCHEMA_VERSION
    name: str
    date: str
    state: Outcome = "running"
    reason: str = ""
    settings: str = ""  # digest of the settings that decide its model
    champion: int | None = None
    record: int = 0
    attempts: int = 0
    began: str = ""
    ended: str = ""
    done: dict[str, dict[str, Any]] = {}  # noqa: RUF012
    warnings: tuple[str, ...] = ()

    @property
    def day(self) -> Day:
        return as_date(self.date)

    @property
    def is_settled(self) -> bool:
        return self.state in SETTLED

    @property
    def is_complete(self) -> bool:
        """Whether nothing is left to do: a night is settled before its report is there."""
        return self.is_settled and (self.state not in TRAINED or self.next_stage is None)

    @property
    def request(self) -> str:
        """What its records in the registry are known by."""
        return f"nightly/{self.name}/{self.date}/{self.settings[:8]}"

    @property
    def next_stage(self) -> str | None:
        return next((stage for stage in STAGES if stage not in self.done), None)

    @property
    def inputs(self) -> str | None:
        """Digest of data and settings, once the data is known: equal inputs give no other model."""
        snapshot = self.done.get("snapshot")
        return None if snapshot is None else digest_of([snapshot["digest"], self.settings])

    def after(self, stage: str, result: dict[str, Any]) -> "Night":
        """With a stage done."""
        return self.model_copy(update={"done": {**self.done, stage: result}})

    def settled(self, state: Outcome, reason: str, ended: str) -> "Night":
        return self.model_copy(update={"state": state, "reason": reason, "ended": ended})


class Due(NamedTuple):
    """Nights to run, oldest first, and nights that nobody will run."""

    run: tuple[date, ...]
    missed: tuple[date, ...]


def nights_due(asked: date, today: date, known: Mapping[date, Night], policy: CatchUp) -> Due:
    """What is to be done when the night of `asked` is asked for. known: the ledgers there are, by date.

    latest: that night, whenever it is asked for; nights between the one before and it are missed. all: every night
    after the last settled one, up to it. none: that night if its day is today or it was begun, else it is missed too.
    """
    there = known.get(asked)
    if there is not None and there.is_settled:
        return Due((), ()) if there.is_complete else Due((asked,), ())
    earlier = [day for day in known if day < asked]
    last = max((day for day in earlier if known[day].is_settled), default=None)
    begun = min((day for day in earlier if last is None or day > last), default=None)
    first = asked if begun is None and last is None else begun if last is None else last + timedelta(days=1)
    assert first is not None
    first = max(first, asked - timedelta(days=MOST_MISSED))
    between = [first + timedelta(days=k) for k in range((asked - first).days)]
    if policy == "all":
        return Due((*between, asked), ())
    if policy == "none" and asked < today and there is None:
        return Due((), (*between, asked))
    return Due((asked,), tuple(between))


def overtaken(asked: date, known: Mapping[date, Night]) -> date | None:
    """The newest later night that is settled: an older one would train on newer data, and judge an older champion."""
    return max((day for day, night in known.items() if day > asked and night.is_settled), default=None)


def unchanged(night: Night, known: Mapping[date, Night]) -> str | None:
    """Why training would give nothing new: data and settings are those of the last night that trained; else None."""
    last = max((day for day, other in known.items() if other.state in TRAINED and day < night.day), default=None)
    if last is None or known[last].inputs != night.inputs:
        return None
    digest = night.done["snapshot"]["digest"]
    return (
        f"nothing changed since the night of {last} ({known[last].state}): data {digest[:16]} and settings are the same"
    )
