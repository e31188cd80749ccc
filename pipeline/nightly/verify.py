"""Verifies ledgers of nights: each is consistent in itself and agrees with the registry's records.

Takes <root>/nightly/<name> or one date below; the registry is <root>/models/<name>.
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

_NIGHTS = re.compile(r"^(.*)/nightly/([^/]+)(?:/(\d{4}-\d{2}-\d{2}))?$")


@dataclass(frozen=True)
class NightsFolder:
    """Ledgers to verify. is_whole: all dates of the name, so that records without a ledger can be found."""

    ledgers: Ledgers
    registry: Registry
    days: tuple[date, ...]
    is_whole: bool

    @property
    def name(self) -> str:
        return self.ledgers.store.uri.rpartition("/")[2]


def find_nights(store: Store) -> NightsFolder | None:
    """The ledgers below a folder of nights; None for any other folder and one without a ledger."""
    match = _NIGHTS.match(store.uri)
    if match is None:
        return None
    root, name, day = match.groups()
    base = resolve(root or "/", store.config)
    ledgers = Ledgers(base.child("nightly", name))
    days = tuple(when for when in ledgers.dates() if day in (None, when.isoformat()))
    return NightsFolder(ledgers, Registry(base.child("models", name)), days, day is None) if days else None


def verify_nights(folder: NightsFolder, found: Findings) -> None:
    """Adds contradictions to `found` and counts nights by state. Of a running night only the stages done count."""
    nights: dict[date, Night] = {}
    for day in folder.days:
        with found.record_errors():
            night = folder.ledgers.read(day)
            if night is not None:
                nights[day] = night
    records = {}
    for number in folder.registry.record_numbers():
        with found.record_errors():
            records[number] = folder.registry.record(number)
    versions = {*folder.registry.versions()}
    for day, night in nights.items():
        where = folder.ledgers.store.location(f"{day}/{STATE}")
        found.counts["nights"] += 1
        found.counts[night.state] += 1
        if night.state in TRAINED and night.done.report is not None and night.done.report.error is None:
            exists = folder.ledgers.store.exists(f"{day}/{REPORT}")
            found.expect(exists, f"{where} records a report, but {REPORT} is missing")
        for fault in (*_ledger_faults(day, folder.name, night), *_registry_faults(night, records, versions)):
            found.add(f"{where} {fault}")
    if folder.is_whole:
        for fault in _faults_between_nights(nights, records.values(), folder):
            found.add(fault)


def _ledger_faults(day: date, name: str, night: Night) -> Iterator[str]:
    if (night.date, night.name) != (day.isoformat(), name):
        yield f"is the ledger of night {night.date} of {night.name}"
    done, results = night.stages_done, night.done
    if done != list(STAGES[: len(done)]):
        yield f"has done {', '.join(done)}: a stage is missing before another"
    if night.is_settled != (results.promote is not None) and night.state in (*TRAINED, "running", "failed"):
        yield f"is {night.state}, but its last stage is {done[-1] if done else 'none'}"
    if night.state == "skipped" and len(done) > 1:
        yield f"is skipped after {done[-1]}"
    if (night.state == "running") == bool(night.ended):
        yield f"is {night.state}, but {'has' if night.ended else 'has no'} end time"
    if night.state in TRAINED and (results.promote is None or results.promote.state != night.state):
        yield f"is {night.state}, but its stage promote is not"
    if night.state == "promoted" and (results.gate is None or results.gate.decision != "promote"):
        yield "is promoted against its gate"


def _registry_faults(night: Night, records: dict[int, Record], versions: set[int]) -> Iterator[str]:
    if night.done.export is None:
        return
    version = night.done.export.version
    if version not in versions:
        yield f"exported version {version}, which does not exist"
    own = {r.action: r for r in records.values() if r.request == night.request}
    challenge, promotion = own.get("challenge"), own.get("promote")
    if challenge is None or challenge.challenger != version:
        yield f"exported version {version}, but no record names it challenger"
    if promotion is not None and promotion.champion != version:
        yield f"exported version {version}, but record {promotion.number} promotes {promotion.champion}"
    if promotion is not None and night.state in ("held", "missed", "skipped"):
        yield f"is {night.state}, but record {promotion.number} is its promotion"
    if night.state == "promoted":
        number = None if night.done.promote is None else night.done.promote.record
        if promotion is None or promotion.number != number:
            yield f"is promoted by record {number}, which is missing or belongs to another request"


def _faults_between_nights(nights: dict[date, Night], records: Iterable[Record], folder: NightsFolder) -> Iterator[str]:
    """Two nights with one version, and promotions whose night has no ledger."""
    owners: dict[int, date] = {}
    for day, night in nights.items():
        version = None if night.done.export is None else night.done.export.version
        if version is not None and owners.setdefault(version, day) != day:
            yield f"{folder.ledgers.store.uri}: version {version} is of {owners[version]} and of {day}"
    requests = tuple(f"nightly/{night.name}/{day}/" for day, night in nights.items())
    for record in records:
        if record.request.startswith("nightly/") and not record.request.startswith(requests):
            yield f"{folder.registry.store.uri}: record {record.number} is of {record.request}, which has no ledger"
