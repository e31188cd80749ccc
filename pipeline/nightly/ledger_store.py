"""Ledgers of nights at rest: one small document a date, written by whoever holds the lease.

<root>/nightly/<name>/lease.json            one night at a time, whatever its date
<root>/nightly/<name>/stop.json             asks the holder of one token to stop
<root>/nightly/<name>/<date>/state.json     the ledger
<root>/nightly/<name>/<date>/report.html
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date
from itertools import islice

from pipeline.config.nightly import as_date
from pipeline.errors import AlreadyExists, Busy, DataError, NotFound
from pipeline.nightly.ledger import MOST_MISSED, TRAINED, Night
from pipeline.storage.documents import parse, read_document, to_json
from pipeline.storage.lease import LEASE
from pipeline.storage.lease_owner import Holder
from pipeline.storage.store import Store

__all__ = ["REPORT", "STATE", "Ledgers"]

STATE = "state.json"
REPORT = "report.html"
STOP = "stop.json"
_STATE = re.compile(r"^(\d{4}-\d{2}-\d{2})/state\.json$")


def _key(day: date) -> str:
    return f"{day.isoformat()}/{STATE}"


@dataclass
class Ledgers:
    """All nights of one name. Knows the version of what it wrote, so a holder who lost the lease cannot write on."""

    store: Store
    versions: dict[date, str] = field(default_factory=dict)

    def dates(self) -> list[date]:
        """Of the nights that have a ledger, ascending."""
        return sorted(as_date(match[1]) for entry in self.store.list() if (match := _STATE.match(entry.key)))

    def read(self, day: date) -> Night | None:
        try:
            data, version = self.store.read_versioned(_key(day))
        except NotFound:
            return None
        self.versions[day] = version
        return parse(Night, data, self.store.location(_key(day)))

    def recent(self, asked: date) -> dict[date, Night]:
        """What the policy needs: every ledger from the newest one back to a night that trained before `asked`."""
        found: dict[date, Night] = {}
        for day, night in self._backwards():
            found[day] = night
            if day < asked and night.state in TRAINED:
                break
        return found

    def outdated(self, keep: int) -> list[Night]:
        """Nights that trained, newest first, after the newest `keep`; no more than one invocation can have missed."""
        trained = (night for _, night in self._backwards() if night.state in TRAINED)
        return list(islice(trained, keep, keep + MOST_MISSED + 1))

    def _backwards(self) -> Iterator[tuple[date, Night]]:
        for day in reversed(self.dates()):
            night = self.read(day)
            if night is not None:
                yield day, night

    def write(self, night: Night) -> Night:
        """Raises Busy when the ledger is not as this process left it: somebody else runs this night."""
        try:
            version = self.store.compare_and_swap(_key(night.day), to_json(night), self.versions.get(night.day))
        except AlreadyExists as error:
            where = self.store.location(_key(night.day))
            if self.read(night.day) == night:  # it was us, and the reply was lost
                return night
            raise Busy(f"{where} was written by another process: let that one go on") from error
        self.versions[night.day] = version
        return night

    # --- stopping the holder ------------------------------------------------------------------------------------------

    def ask_to_stop(self) -> None:
        """Whoever holds the lease now."""
        try:
            holder = read_document(self.store, LEASE, Holder)
        except (NotFound, DataError):
            return
        self.store.put_json(STOP, {"token": holder.token})

    def is_asked_to_stop(self, token: str) -> bool:
        try:
            return bool(self.store.read_json(STOP).get("token") == token)
        except NotFound:
            return False
