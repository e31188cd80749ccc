"""Reads and writes the ledgers of nights: one small JSON document a date, written only by the lease holder.

<root>/nightly/<name>/lease.json            one night at a time, whatever its date
<root>/nightly/<name>/stop.json             request to the lease holder with this token to stop
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

STATE = "state.json"
REPORT = "report.html"
STOP = "stop.json"
_STATE = re.compile(r"^(\d{4}-\d{2}-\d{2})/state\.json$")


def _key(day: date) -> str:
    return f"{day.isoformat()}/{STATE}"


@dataclass
class Ledgers:
    """All ledgers of one name. versions: store version of each ledger as last read or written by this process.

    Writes compare against `versions`, so a process that lost the lease cannot overwrite its successor.
    """

    store: Store
    versions: dict[date, str] = field(default_factory=dict)

    def dates(self) -> list[date]:
        """Dates that have a ledger, ascending."""
        return sorted(as_date(match[1]) for entry in self.store.list() if (match := _STATE.match(entry.key)))

    def read(self, day: date) -> Night | None:
        """None without a ledger. Raises DataError for an unreadable one."""
        try:
            data, version = self.store.read_versioned(_key(day))
        except NotFound:
            return None
        self.versions[day] = version
        return parse(Night, data, self.store.location(_key(day)))

    def recent(self, day: date) -> dict[date, Night]:
        """Ledgers that `nights_due` and `unchanged` need: from the newest back to a night before `day` that trained."""
        found: dict[date, Night] = {}
        for other, night in self._newest_first():
            found[other] = night
            if other < day and night.state in TRAINED:
                break
        return found

    def outdated(self, keep: int) -> list[Night]:
        """Trained nights beyond the newest `keep`, newest first; at most one catch-up's worth."""
        trained = (night for _, night in self._newest_first() if night.state in TRAINED)
        return list(islice(trained, keep, keep + MOST_MISSED + 1))

    def _newest_first(self) -> Iterator[tuple[date, Night]]:
        for day in reversed(self.dates()):
            night = self.read(day)
            if night is not None:
                yield day, night

    def write(self, night: Night) -> Night:
        """Raises Busy when another process has written this ledger since it was read here."""
        try:
            version = self.store.compare_and_swap(_key(night.day), to_json(night), self.versions.get(night.day))
        except AlreadyExists as error:
            where = self.store.location(_key(night.day))
            if self.read(night.day) == night:  # this process wrote it and the reply was lost
                return night
            raise Busy(f"{where} was written by another process, which is running this night: let it finish") from error
        self.versions[night.day] = version
        return night

    # --- stopping the lease holder ------------------------------------------------------------------------------------

    def request_stop(self) -> None:
        """Ask the current lease holder to stop; without a holder, nothing."""
        try:
            holder = read_document(self.store, LEASE, Holder)
        except (NotFound, DataError):
            return
        self.store.put_json(STOP, {"token": holder.token})

    def stop_requested(self, token: str) -> bool:
        """Whether another process asked the lease holder with this token to stop."""
        try:
            return bool(self.store.read_json(STOP).get("token") == token)
        except NotFound:
            return False
