"""`ddpm verify` of a model registry: numbers without gaps, hashed files, and records that follow from each other."""

from collections.abc import Iterator

from pipeline.model_store.load_model import find_model, load_unet
from pipeline.model_store.registry import CLAIMS, MANIFEST, RECORDS, Record, Registry, Version, champions, version_key
from pipeline.storage.findings import Findings
from pipeline.storage.store import Store


def is_registry(store: Store) -> bool:
    """Whether the store holds a claim or a record of a registry."""
    return any(True for folder in (CLAIMS, RECORDS) for _ in store.list(folder))


def verify_registry(store: Store, found: Findings) -> None:
    """Check every claim, version and record; load the network of every version. Training runs are not read."""
    registry = Registry(store)
    sources: dict[int, str] = {}
    for number in registry.claims():
        with found.record_errors():
            sources[number] = registry.source_of(number)
    found.counts["claims"] = len(sources)
    _without_gaps(store, CLAIMS, registry.claims(), found)
    found.expect(len({*sources.values()}) == len(sources), f"{store.uri}: one source has claimed two numbers")
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
    found.expect(version.number == number, f"{folder.location(MANIFEST)} has the number {version.number}")
    claimed = source is not None and source.startswith(f"{version.source}#")
    found.expect(claimed, f"{folder.uri} is of {version.source}, but its number was claimed by {source or 'no source'}")
    named = {MANIFEST, *(file.key for file in version.files)}
    stray = sorted(entry.key for entry in folder.list() if entry.key not in named)
    found.expect(not stray, f"{folder.uri} holds {', '.join(stray[:3])}, which its manifest does not name")
    intact = [found.file(folder, entry) is not None for entry in version.files]
    if all(intact):
        _check_model(folder, version, found)


def _check_model(folder: Store, version: Version, found: Findings) -> None:
    model = find_model(folder.uri, "", folder.config)
    found.expect(model.sha256 == version.sha256, f"{folder.uri}: the weights differ from the sha256 in the manifest")
    found.expect(model.digest == version.model_digest, f"{folder.uri}: model_digest is not that of the files")
    finite = all(bool(weight.isfinite().all()) for weight in load_unet(model, folder.config).state_dict().values())
    found.expect(finite, f"{folder.uri} holds NaN or infinity")


def _check_records(registry: Registry, versions: set[int], found: Findings) -> None:
    where, numbers = registry.store.location(RECORDS), registry.record_numbers()
    found.counts["records"] = len(numbers)
    _without_gaps(registry.store, RECORDS, numbers, found)
    records: list[Record] = []
    for number in numbers:
        record = found.attempt(lambda number=number: registry.record(number))  # type: ignore[misc]
        if record is None:
            return  # later records can only be checked against this one
        for fault in _faults(records, record, versions):
            found.add(f"{where}: record {number} {fault}")
        found.expect(record.number == number, f"{where}: record {number} has the number {record.number}")
        records.append(record)


def _faults(before: list[Record], record: Record, versions: set[int]) -> Iterator[str]:
    """Contradictions between a record and the records before it, as predicates of the record."""
    champion, challenger = (before[-1].champion, before[-1].challenger) if before else (None, None)
    for name in ("champion", "challenger"):
        number = getattr(record, name)
        if number is not None and number not in versions:
            yield f"makes {version_key(number)} {name}, but that version does not exist"
    if any((record.action, record.request) == (other.action, other.request) for other in before):
        yield f"repeats {record.action} of request {record.request}"
    if record.action == "challenge":
        if record.champion != champion:
            yield "is a challenge, but changes the champion"
        return
    if record.champion is None:
        yield f"is a {record.action} without a champion"
    if record.challenger != (None if challenger == record.champion and record.action == "promote" else challenger):
        yield f"is a {record.action}, but changes the challenger"
    if record.action == "rollback" and record.champion not in champions(before)[:-1]:
        yield f"goes back to {record.champion}, which was never champion before"
