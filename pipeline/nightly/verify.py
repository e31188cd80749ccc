"""Ledgers of nights: each says what its stages decided, and what it decided is what the registry recorded.

<root>/nightly/<name>, or one of its dates; the registry is <root>/models/<name>.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import date

from pipeline.model_store.registry import Record, Registry
from pipeline.nightly.ledger import STAGES, TRAINED, Night
from pipeline.nightly.ledger_store import REPORT, STATE, Ledgers
from pipeline.storage.findings import Findings
from pipeline.storage.store import Store, resolve

__all__ = ["nights_place", "verify_nights"]

_PLACE = re.compile(r"^(.*)/nightly/([^/]+)(?:/(\d{4}-\d{2}-\d{2}))?$")


@dataclass(frozen=True)
class _Place:
    ledgers: Ledgers
    registry: Registry
    days: tuple[date, ...]
    is_whole: bool


def nights_place(store: Store) -> _Place | None:
    """The nights that a folder holds; None when it is not one of nights, or has no ledger."""
    match = _PLACE.match(store.uri)
    if match is None:
        return None
    root, name, day = match.groups()
    base = resolve(root or "/", store.config)
    ledgers = Ledgers(base.child("nightly", name))
    days = [when for when in ledgers.dates() if day in (None, when.isoformat())]
    return _Place(ledgers, Registry(base.child("models", name)), tuple(days), day is None) if days else None


def verify_nights(place: _Place, found: Findings) -> None:
    """Counts nights by their state. Of a night that is under way only what is done is checked."""
    nights: dict[date, Night] = {}
    for day in place.days:
        with found.noting():
            night = place.ledgers.read(day)
            if night is not None:
                nights[day] = night
    records = {}
    for number in place.registry.record_numbers():
        with found.noting():
            records[number] = place.registry.record(number)
    versions = {*place.registry.versions()}
    for day, night in nights.items():
        where = place.ledgers.store.location(f"{day}/{STATE}")
        found.counts["nights"] += 1
        found.counts[night.state] += 1
        if night.state in TRAINED and "error" not in night.done.get("report", {"error": ""}):
            there = place.ledgers.store.exists(f"{day}/{REPORT}")
            found.expect(there, f"{where} has a report, and {REPORT} is missing")
        for fault in (*_of_itself(day, place, night), *_of_the_registry(night, records, versions)):
            found.add(f"{where} {fault}")
    if place.is_whole:
        for fault in _between(nights, records.values(), place):
            found.add(fault)


def _of_itself(day: date, place: _Place, night: Night) -> Iterator[str]:
    name = place.ledgers.store.uri.rpartition("/")[2]
    if (night.date, night.name) != (day.isoformat(), name):
        yield f"says that it is night {night.date} of {night.name}"
    done = [stage for stage in STAGES if stage in night.done]
    if done != list(STAGES[: len(done)]) or len(done) != len(night.done):
        yield f"has done {', '.join(night.done)}: a stage is missing before another"
    if night.is_settled != ("promote" in night.done) and night.state in (*TRAINED, "running", "failed"):
        yield f"is {night.state}, and its last stage is {done[-1] if done else 'none'}"
    if night.state == "skipped" and len(done) > 1:
        yield f"is skipped after {done[-1]}"
    if (night.state == "running") == bool(night.ended):
        yield f"is {night.state}, and {'has' if night.ended else 'has not'} ended"
    if night.state in TRAINED and night.done.get("promote", {}).get("state") != night.state:
        yield f"is {night.state}, and its stage promote says otherwise"
    if night.state == "promoted" and night.done.get("gate", {}).get("decision") != "promote":
        yield "is promoted against its gate"


def _of_the_registry(night: Night, records: dict[int, Record], versions: set[int]) -> Iterator[str]:
    version = night.done.get("export", {}).get("version")
    if version is None:
        return
    if version not in versions:
        yield f"exported version {version}, which does not exist"
    mine = {r.action: r for r in records.values() if r.request == night.request}
    challenge, promotion = mine.get("challenge"), mine.get("promote")
    if challenge is None or challenge.challenger != version:
        yield f"exported version {version}, and no record names it challenger"
    if promotion is not None and promotion.champion != version:
        yield f"exported version {version}, and record {promotion.number} promotes {promotion.champion}"
    if promotion is not None and night.state in ("held", "missed", "skipped"):
        yield f"is {night.state}, and record {promotion.number} is its promotion"
    if night.state == "promoted":
        number = night.done.get("promote", {}).get("record")
        if promotion is None or promotion.number != number:
            yield f"is promoted by record {number}, which is not there or not its own"


def _between(nights: dict[date, Night], records: Iterable[Record], place: _Place) -> Iterator[str]:
    """No model is of two nights, and no promotion of a night is without its ledger."""
    owners: dict[int, date] = {}
    for day, night in nights.items():
        version = night.done.get("export", {}).get("version")
        if version is not None and owners.setdefault(version, day) != day:
            yield f"{place.ledgers.store.uri}: version {version} is of {owners[version]} and of {day}"
    days = tuple(f"nightly/{night.name}/{day}/" for day, night in nights.items())
    for record in records:
        if record.request.startswith("nightly/") and not record.request.startswith(days):
            yield f"{place.registry.store.uri}: record {record.number} is of {record.request}, which has no ledger"
