"""Five-field cron expressions: one parser and one set of run times for every scheduler.

Fields: minute 0-59, hour 0-23, day of month 1-31, month 1-12 or JAN-DEC, day of week 0-7 or SUN-SAT (0 and 7 are
Sunday); lists, ranges and steps. When day of month and day of week are both given, a day that matches either one has a
run, as in cron. Times are local times of a zone. At a clock change, a skipped time runs later on the same day by the
length of the gap, and a repeated time runs once. So a daily time runs exactly once on every day.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from itertools import takewhile
from typing import Annotated, NamedTuple, Self
from zoneinfo import ZoneInfo

from pydantic import AfterValidator

_MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
_WEEKDAYS = ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT")
_PART = re.compile(r"(\*|[A-Za-z0-9]+)(?:-([A-Za-z0-9]+))?(?:/([0-9]+))?$")
_PLAIN = re.compile(r"(?:\*|[0-9]+|[0-9]+-[0-9]+|(?:\*|[0-9]+-[0-9]+)/[0-9]+)$")
_FIELDS: tuple[tuple[str, int, int, tuple[str, ...]], ...] = (
    ("minute", 0, 59, ()),
    ("hour", 0, 23, ()),
    ("day of month", 1, 31, ()),
    ("month", 1, 12, _MONTHS),
    ("day of week", 0, 7, _WEEKDAYS),
)
_HORIZON_DAYS = 3000  # the next 29 February is at most eight years away


class ClockChange(NamedTuple):
    """A scheduled local time that one day has never (`twice` is False), or twice."""

    day: date
    at: time
    twice: bool


@dataclass(frozen=True)
class Cron:
    """A parsed expression. `days` or `weekdays` (0 is Sunday) is None when its field is '*'."""

    minutes: tuple[int, ...]
    hours: tuple[int, ...]
    days: tuple[int, ...] | None
    months: tuple[int, ...]
    weekdays: tuple[int, ...] | None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises ValueError naming the bad field, or when no date ever matches."""
        words = text.split()
        if len(words) != len(_FIELDS):
            raise ValueError("must have five fields: minute, hour, day of month, month, day of week")
        values = [_values(word, *field) for word, field in zip(words, _FIELDS, strict=True)]
        days = None if words[2] == "*" else values[2]
        weekdays = None if words[4] == "*" else tuple(sorted({day % 7 for day in values[4]}))
        cron = cls(values[0], values[1], days, values[3], weekdays)
        if days and weekdays and (words[2][0] == "*" or words[4][0] == "*"):
            raise ValueError("a step in one of day of month and day of week beside the other: cron programs disagree")
        if next(cron._days(date(2024, 1, 1)), None) is None:
            raise ValueError("names a day that no month has")
        return cron

    def runs(self, after: datetime, zone: tzinfo) -> Iterator[datetime]:
        """Every run time strictly after `after` (timezone-aware), in order, in `zone`."""
        # Start a day early: a clock change may have moved a skipped time past midnight.
        for day in self._days(after.astimezone(zone).date() - timedelta(days=1)):
            local = (datetime.combine(day, time(h, m), zone) for h in self.hours for m in self.minutes)
            for instant in sorted({at.astimezone(UTC) for at in local}):
                if instant > after:
                    yield instant.astimezone(zone)

    def clock_changes(self, after: datetime, zone: tzinfo) -> Iterator[ClockChange]:
        """Scheduled times after `after` that a clock change skips or repeats; none for a schedule of every hour."""
        if len(self.hours) == 24:
            return
        for day in self._days(after.astimezone(zone).date() + timedelta(days=1)):
            ends = [datetime.combine(day + timedelta(days=n), time(), zone).utcoffset() for n in (0, 1)]
            if ends[0] == ends[1]:
                continue
            for at in (time(hour, minute) for hour in self.hours for minute in self.minutes):
                local = datetime.combine(day, at, zone)
                if local.astimezone(UTC).astimezone(zone).replace(tzinfo=None) != local.replace(tzinfo=None):
                    yield ClockChange(day, at, twice=False)
                elif local.utcoffset() != local.replace(fold=1).utcoffset():
                    yield ClockChange(day, at, twice=True)

    def last_until(self, moment: datetime, zone: tzinfo, within: timedelta) -> datetime | None:
        """The last run time in (moment - within, moment], or None."""
        past = takewhile(lambda run: run <= moment, self.runs(moment - within, zone))
        return max(past, default=None)

    def _days(self, start: date) -> Iterator[date]:
        for offset in range(_HORIZON_DAYS):
            day = start + timedelta(days=offset)
            if day.month in self.months and self._matches(day):
                yield day

    def _matches(self, day: date) -> bool:
        by_day = self.days is not None and day.day in self.days
        by_weekday = self.weekdays is not None and day.isoweekday() % 7 in self.weekdays
        return by_day or by_weekday or (self.days is None and self.weekdays is None)


def portable(text: str) -> str:
    """A valid expression in the form that every cron program reads alike.

    Fields with names, the weekday 7 or a step without a range become lists of numbers: Kubernetes (robfig/cron) refuses
    7, and cronie reads 5/10 as 5.
    """
    words = []
    for word, field in zip(text.split(), _FIELDS, strict=True):
        weekday = field[3] is _WEEKDAYS
        values = _values(word, *field)
        plain = all(_PLAIN.match(part) for part in word.split(",")) and not (weekday and "7" in word)
        numbers = sorted({value % 7 for value in values}) if weekday else values
        words.append(word if plain else ",".join(map(str, numbers)))
    return " ".join(words)


def _values(word: str, name: str, low: int, high: int, names: tuple[str, ...]) -> tuple[int, ...]:
    """The values of one field, sorted: minute '*/15' -> (0, 15, 30, 45)."""
    found: set[int] = set()
    for part in word.split(","):
        match = _PART.match(part)
        if match is None or (match[1] == "*" and match[2]):
            raise ValueError(f"{name} {part!r} is no number, range or step")
        step = int(match[3] or 1)
        first = low if match[1] == "*" else _number(match[1], name, low, names)
        last = _number(match[2], name, low, names) if match[2] else first
        if not match[2] and (match[1] == "*" or match[3]):
            last = 6 if names is _WEEKDAYS else high
        if not low <= first <= last <= high or step < 1:
            raise ValueError(f"{name} {part!r} must lie in {low}-{high}")
        found |= set(range(first, last + 1, step))
    return tuple(sorted(found))


def _number(word: str, name: str, low: int, names: tuple[str, ...]) -> int:
    if word.upper() in names:
        return names.index(word.upper()) + low
    if not word.isdigit():
        raise ValueError(f"{name} {word!r} is no number{f' or {names[0]}-{names[-1]}' if names else ''}")
    return int(word)


def _checked_zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (KeyError, ValueError, OSError) as error:
        raise ValueError("must be the name of a time zone, such as UTC or Europe/Berlin") from error
    return name


TimeZone = Annotated[str, AfterValidator(_checked_zone)]
"""A time zone name of the IANA database, such as Europe/Berlin."""
