"""A registry of models: numbers without gaps, versions as hashed, and records that follow from one another."""

from collections.abc import Iterator

from pipeline.model_store.load_model import find_model, load_unet
from pipeline.model_store.registry import CLAIMS, MANIFEST, RECORDS, Record, Registry, Version, champions, version_key
from pipeline.storage.files import read_verified
from pipeline.storage.findings import Findings
from pipeline.storage.store import Store

__all__ = ["is_registry", "verify_registry"]


def is_registry(store: Store) -> bool:
    """Whether a number was ever given or a champion named here."""
    return any(True for folder in (CLAIMS, RECORDS) for _ in store.list(folder))


def verify_registry(store: Store, found: Findings) -> None:
    """Counts versions, claims, records, files and bytes. Every version is loaded; what it was trained on is not."""
    registry = Registry(store)
    sources: dict[int, str] = {}
    for number in registry.claims():
        with found.record_errors():
            sources[number] = registry.claimed(number)
    found.counts["claims"] = len(sources)
    _without_gaps(store, CLAIMS, registry.claims(), found)
    found.expect(len({*sources.values()}) == len(sources), f"{store.uri}: two numbers were given to one source")
    versions = registry.versions()
    for number in versions:
        with found.record_errors():
            _check_version(registry, number, sources.get(number), found)
    _check_records(registry, {*versions}, found)


def _without_gaps(store: Store, folder: str, numbers: list[int], found: Findings) -> None:
    missing = sorted({*range(1, max(numbers, default=0) + 1)} - {*numbers})
    found.expect(not missing, f"{store.location(folder)} has no number {', '.join(map(str, missing[:3]))}")


def _check_version(registry: Registry, number: int, source: str | None, found: Findings) -> None:
    version, folder = registry.version(number), registry.folder(number)
    found.counts["versions"] += 1
    found.expect(version.number == number, f"{folder.location(MANIFEST)} says that it is version {version.number}")
    claimed = source is not None and source.startswith(f"{version.source}#")
    found.expect(claimed, f"{folder.uri} is of {version.source}, and its number was given to {source or 'nobody'}")
    named = {MANIFEST, *(file.key for file in version.files)}
    stray = sorted(entry.key for entry in folder.list() if entry.key not in named)
    found.expect(not stray, f"{folder.uri} holds {', '.join(stray[:3])}, which its manifest does not name")
    whole = True
    for file in version.files:
        found.counts["files"] += 1
        found.counts["bytes"] += file.bytes
        whole &= found.attempt(lambda file=file: read_verified(folder, file)) is not None  # type: ignore[misc]
    if whole:
        _check_model(folder, version, found)


def _check_model(folder: Store, version: Version, found: Findings) -> None:
    model = find_model(folder.uri, "", folder.config)
    found.expect(model.sha256 == version.sha256, f"{folder.uri}: its weights are not those of its manifest's sha256")
    found.expect(model.digest == version.model_digest, f"{folder.uri}: its model_digest is not that of its files")
    finite = all(bool(weight.isfinite().all()) for weight in load_unet(model, folder.config).state_dict().values())
    found.expect(finite, f"{folder.uri} holds NaN or infinity")


def _check_records(registry: Registry, versions: set[int], found: Findings) -> None:
    numbers = registry.record_numbers()
    found.counts["records"] = len(numbers)
    _without_gaps(registry.store, RECORDS, numbers, found)
    records: list[Record] = []
    for number in numbers:
        record = found.attempt(lambda number=number: registry.record(number))  # type: ignore[misc]
        if record is None:
            return  # what follows cannot be judged without it
        for fault in _faults(records, record, versions):
            found.add(f"{registry.store.location(RECORDS)}: record {number} {fault}")
        found.expect(record.number == number, f"{registry.store.location(RECORDS)}: {number} says {record.number}")
        records.append(record)


def _faults(before: list[Record], record: Record, versions: set[int]) -> Iterator[str]:
    """What this record cannot be after those before it."""
    champion, challenger = (before[-1].champion, before[-1].challenger) if before else (None, None)
    for name in ("champion", "challenger"):
        number = getattr(record, name)
        if number is not None and number not in versions:
            yield f"names {version_key(number)} {name}, which does not exist"
    if any((record.action, record.request) == (other.action, other.request) for other in before):
        yield f"repeats {record.action} of request {record.request}"
    if record.action == "challenge":
        if record.champion != champion:
            yield "moves the champion, and is a challenge"
        return
    if record.champion is None:
        yield f"is a {record.action} without a champion"
    if record.challenger != (None if challenger == record.champion and record.action == "promote" else challenger):
        yield f"moves the challenger, and is a {record.action}"
    if record.action == "rollback" and record.champion not in champions(before)[:-1]:
        yield f"goes back to {record.champion}, which was not champion before"
