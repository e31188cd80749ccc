"""The model registry: numbered model versions that never change, and records of which version is champion.

    <registry>/claims/000001.json         created once: the source that this number belongs to
    <registry>/v000001/                   a diffusers folder, then manifest.json, created once: the version exists
    <registry>/promotions/00000001.json   created once, numbered without gaps: champion and challenger from here on

The newest record holds the whole state. Two concurrent promotions create the same record number, so exactly one
succeeds; the other reads the new state and decides again. Nothing is replaced: a rollback is a further record.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal, NamedTuple

from pipeline.config.base import FileEntry, Section
from pipeline.config.storage import StorageConfig
from pipeline.errors import AlreadyExists, Busy, DataError, NotFound
from pipeline.schema import SCHEMA_VERSION
from pipeline.storage.create_once import create_or_read_document, try_create
from pipeline.storage.documents import read_document, to_json
from pipeline.storage.store import Store, resolve

Action = Literal["challenge", "promote", "rollback"]
MANIFEST: Final = "manifest.json"
CLAIMS: Final = "claims/"
RECORDS: Final = "promotions/"
_NAMED: Final = re.compile(r"^(.*[^/])@(champion|challenger|v?\d+)/?$")
_RECORD: Final = re.compile(r"^promotions/(\d{8,})\.json$")
_CLAIM: Final = re.compile(r"^claims/(\d{6,})\.json$")
_VERSION: Final = re.compile(r"^v(\d{6,})/manifest\.json$")


class Claim(Section):
    """`claims/N.json`: reserves the number for this source before the version exists."""

    kind: Literal["claim"] = "claim"
    source: str


class Version(Section):
    """`vN/manifest.json`. `facts`: provenance (dataset, run, ...), for display only."""

    kind: Literal["model-version"] = "model-version"
    schema_version: int = SCHEMA_VERSION
    number: int
    source: str
    model_digest: str  # digest of the weights and settings that decide the network's output
    sha256: str  # of the weights file
    files: tuple[FileEntry, ...]  # relative to the version
    facts: dict[str, Any]


class Record(Section):
    """`promotions/N.json`: champion and challenger from here on. `at`: UTC, for display; the number is the order."""

    kind: Literal["promotion"] = "promotion"
    schema_version: int = SCHEMA_VERSION
    number: int
    action: Action
    champion: int | None
    challenger: int | None
    reason: str
    request: str  # id of the request: a repeated request has no further effect
    at: str
    metrics: dict[str, Any]


class ChangeRequest(NamedTuple):
    """Reason, unique request id, time (UTC) and metrics of a challenge, promotion or rollback."""

    reason: str
    request: str
    at: datetime
    metrics: dict[str, Any]


EMPTY: Final = Record(
    number=0, action="promote", champion=None, challenger=None, reason="", request="", at="", metrics={}
)


def version_key(number: int) -> str:
    """The folder of a version, relative to its registry."""
    return f"v{number:06d}"


def champions(records: Iterable[Record]) -> tuple[int, ...]:
    """The stack of champions after these records: the current champion last, before it the targets of rollbacks.

    A rollback removes every champion above its target.
    """
    stack: list[int] = []
    for record in records:
        if record.champion is None or (stack and stack[-1] == record.champion):
            continue
        if record.action == "rollback" and record.champion in stack:
            del stack[len(stack) - stack[::-1].index(record.champion) :]
        else:
            stack.append(record.champion)
    return tuple(stack)


@dataclass(frozen=True)
class Registry:
    """The registry of one model at `store`. A value."""

    store: Store

    # --- versions ----------------------------------------------------------------------------------------------------

    def versions(self) -> list[int]:
        """Numbers of the committed versions, ascending."""
        return sorted(int(match[1]) for entry in self.store.list("v") if (match := _VERSION.match(entry.key)))

    def folder(self, number: int) -> Store:
        return self.store.child(version_key(number))

    def version(self, number: int) -> Version:
        """Raises DataError when there is no such version."""
        folder = self.folder(number)
        try:
            return read_document(folder, MANIFEST, Version)
        except NotFound as error:
            known = ", ".join(map(str, self.versions())) or "none"
            raise DataError(f"{self.store.uri} has no version {number}: it has {known}") from error

    def claim(self, source: str) -> int:
        """The number of this source: that of an earlier or concurrent claim, or the next free number."""
        claims = self.claims()
        for number in reversed(claims):
            if self.source_of(number) == source:
                return number
        number = claims[-1] + 1 if claims else 1
        while create_or_read_document(self.store, _claim_key(number), Claim(source=source)).source != source:
            number += 1
        return number

    def claims(self) -> list[int]:
        """Claimed numbers, ascending; a claimed version may not exist yet."""
        return sorted(int(match[1]) for entry in self.store.list(CLAIMS) if (match := _CLAIM.match(entry.key)))

    def source_of(self, number: int) -> str:
        """The source that claimed this number."""
        return read_document(self.store, _claim_key(number), Claim).source

    def commit(self, version: Version) -> Version:
        """Create a version or join the existing one. Raises AlreadyExists when its number is that of another model."""
        there = create_or_read_document(self.folder(version.number), MANIFEST, version)
        if (there.source, there.model_digest, there.files) != (version.source, version.model_digest, version.files):
            raise AlreadyExists(f"{self.folder(version.number).uri} is another model: versions never change")
        return there

    # --- promotions --------------------------------------------------------------------------------------------------

    def head(self) -> Record:
        """The newest record, or an empty one of number 0."""
        numbers = self.record_numbers()
        return self.record(numbers[-1]) if numbers else EMPTY

    def records(self) -> list[Record]:
        """All records, oldest first."""
        return [self.record(number) for number in self.record_numbers()]

    def find_record(self, action: Action, request: str, since: int) -> Record | None:
        """The record after `since` that carried out this request, or None."""
        for number in reversed([number for number in self.record_numbers() if number > since]):
            record = self.record(number)
            if (record.request, record.action) == (request, action):
                return record
        return None

    def challenge(self, version: int, change: ChangeRequest, since: int = 0) -> Record:
        """Make a version the challenger. since: number of a record older than the request."""
        self.version(version)
        return self._append("challenge", change, since, lambda head: (head.champion, version))

    def promote(self, version: int, change: ChangeRequest, expected: int | None, since: int = 0) -> Record:
        """Make a version champion instead of the current champion `expected` (None: no champion).

        Raises DataError when there is no such version, Busy when the champion is no longer `expected`.
        """
        self.version(version)
        return self._append(
            "promote", change, since, lambda head: (version, self._challenger_after(head, expected, version))
        )

    def rollback(self, version: int | None, change: ChangeRequest) -> Record:
        """Make the previous or an earlier champion champion again. Raises DataError when there is none."""
        records = self.records()
        stack = champions(records)
        if not stack or (version is None and len(stack) < 2):
            raise DataError(f"{self.store.uri} has no earlier champion: there is nothing to go back to")
        target = stack[-2] if version is None else version
        if target == stack[-1]:
            return records[-1]  # a repeated request
        if target not in stack:
            raise DataError(f"version {target} was not champion before {stack[-1]}: ddpm promote makes it champion")
        self.version(target)

        def aliases(head: Record) -> tuple[int | None, int | None]:
            self._challenger_after(head, stack[-1], target)
            return target, head.challenger

        return self._append("rollback", change, records[-1].number, aliases)

    def _challenger_after(self, head: Record, expected: int | None, version: int) -> int | None:
        """The challenger once `version` is champion. Raises Busy when the champion is not `expected`."""
        if head.champion != expected:
            raise Busy(
                f"the champion of {self.store.uri} is {_display(head.champion)} since record {head.number}, not "
                f"{_display(expected)} as at the time of the decision: see ddpm models and decide again"
            )
        return None if head.challenger == version else head.challenger

    def _append(
        self,
        action: Action,
        change: ChangeRequest,
        since: int,
        aliases: Callable[[Record], tuple[int | None, int | None]],
    ) -> Record:
        while True:
            head = self.head()
            done = self.find_record(action, change.request, since)
            if done is not None:
                return done
            champion, challenger = aliases(head)
            record = Record(
                number=head.number + 1,
                action=action,
                champion=champion,
                challenger=challenger,
                reason=change.reason,
                request=change.request,
                at=change.at.isoformat(timespec="seconds"),
                metrics=change.metrics,
            )
            if try_create(self.store, _record_key(record.number), to_json(record)):
                return record
            # The number is taken, by another writer or by an earlier request of ours: read the records, decide again.

    def record_numbers(self) -> list[int]:
        """Numbers of the records, ascending."""
        return sorted(int(match[1]) for entry in self.store.list(RECORDS) if (match := _RECORD.match(entry.key)))

    def record(self, number: int) -> Record:
        """One record. Raises NotFound, DataError."""
        key = _record_key(number)
        return read_document(self.store, key, Record)


def _claim_key(number: int) -> str:
    return f"claims/{number:06d}.json"


def _record_key(number: int) -> str:
    return f"promotions/{number:08d}.json"


def _display(version: int | None) -> str:
    return "none" if version is None else version_key(version)


def is_registered(uri: str) -> bool:
    """Whether a URI has the form REGISTRY@champion, @challenger or @N."""
    return _NAMED.match(uri) is not None


def named_version(uri: str, config: StorageConfig) -> tuple[Registry, Version] | None:
    """The version that REGISTRY@champion, @challenger or @N names now; None for URIs of another form.

    Raises DataError when there is no such version.
    """
    match = _NAMED.match(uri)
    if match is None:
        return None
    registry, name = Registry(resolve(match[1], config)), match[2]
    if name.lstrip("v").isdigit():
        return registry, registry.version(int(name.lstrip("v")))
    number: int | None = getattr(registry.head(), name)
    if number is None:
        raise DataError(f"{registry.store.uri} has no {name}: ddpm models lists the versions, ddpm promote chooses one")
    return registry, registry.version(number)
