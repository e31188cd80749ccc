"""Request tables: check the rows, fill in defaults, and map sample ids to requests.

The ids of a request begin at the sum of the counts of all earlier requests, so ids depend only on the table. Pure:
`pipeline.generation.request_table` does the reading.
"""

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date, time
from decimal import Decimal
from functools import cached_property
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.config.generation import SAMPLERS
from pipeline.errors import DataError
from pipeline.schema import REQUESTS

Int64Array = npt.NDArray[np.int64]
MAX_LISTED = 1000
MAX_DIGITS = 25
CHUNK_ROWS = 65_536
REQUIRED = ("request_id", "count")
"""Required columns. Optional: label, guidance, seed, steps, sampler. All others become JSON in the samples."""


@dataclass(frozen=True)
class BadRow:
    """A row that could not be parsed."""

    reason: str


Row = Mapping[str, Any] | BadRow
"""Column to value; None means missing."""


@dataclass(frozen=True)
class RequestRules:
    """Limits and defaults for the rows. guidance_error: why the model cannot be guided, None when it can."""

    num_classes: int | None
    num_timesteps: int
    guidance_error: str | None
    sampler: str
    steps: int
    seed: int
    guidance: float | None


def normalise_requests(rows: Iterable[tuple[int, Row]], unit: str, rules: RequestRules) -> pa.Table:
    """Rows (number in the source, values) -> a table of schema REQUESTS.

    unit: "line" or "row", for messages. Raises DataError that lists every bad row with number and reason.
    """
    chunks, numbers = [], []
    bad: dict[int, str] = {}
    rows = iter(rows)
    while part := list(islice(rows, CHUNK_ROWS)):
        numbers.append(np.array([number for number, _ in part], np.int64))
        checked = [_checked(row, rules) for _, row in part]
        bad |= {number: reason for (number, _), (_, reason) in zip(part, checked, strict=True) if reason}
        chunks.append(pa.Table.from_pylist([values for values, _ in checked], schema=REQUESTS))
    if not chunks:
        raise DataError("the table has no requests")
    table = pa.concat_tables(chunks)
    for number, reason in _duplicates(table, np.concatenate(numbers), unit):
        bad[number] = f"{bad[number]}; {reason}" if number in bad else reason
    if bad:
        lines = [f"{unit} {number}: {reason}" for number, reason in sorted(bad.items())[:MAX_LISTED]]
        more = [f"... and {len(bad) - MAX_LISTED:,} more"] if len(bad) > MAX_LISTED else []
        raise DataError("\n".join([f"{len(bad):,} of {table.num_rows:,} requests are invalid:", *lines, *more]))
    total = sum(table["count"].to_pylist())
    if total >= 2**63:
        raise DataError(f"the requests add up to {total:,} samples; ids have 64 bits")
    return table


def _duplicates(table: pa.Table, numbers: Int64Array, unit: str) -> Iterator[tuple[int, str]]:
    """Rows that repeat a request_id. Dictionary codes follow first appearance, so a new id is a new maximum."""
    codes = table["request_id"].combine_chunks().dictionary_encode().indices.fill_null(-1).to_numpy()
    highest = np.maximum.accumulate(np.concatenate([[-1], codes]))[:-1]
    first = np.flatnonzero(codes > highest)
    for row in np.flatnonzero((codes <= highest) & (codes >= 0)):
        name = table["request_id"][int(row)].as_py()
        yield int(numbers[row]), f"request_id {name!r} repeats {unit} {numbers[first[codes[row]]]}"


def _checked(row: Row, rules: RequestRules) -> tuple[dict[str, Any], str]:
    """The columns of REQUESTS and ''; of an invalid row its request_id, so that duplicates are found, and why."""
    if isinstance(row, BadRow):
        return {}, row.reason
    reasons: list[str] = []
    values: dict[str, Any] = {}
    for name, check in _COLUMNS.items():
        given = row.get(name)
        try:
            values[name] = check(None if _is_missing(name, given) else given, rules)
        except ValueError as error:
            reasons.append(f"{name} {error}")
    try:
        values["extra"] = _extra(row)
    except ValueError as error:
        reasons.append(str(error))
    return ({"request_id": values.get("request_id")} if reasons else values), "; ".join(reasons)


# --- one column ------------------------------------------------------------------------------------------------------


def _is_missing(column: str, value: Any) -> bool:
    """Whether a cell holds no value, in any of the forms that data frames write: empty, NaN, <NA>, None, null."""
    if isinstance(value, str):
        text = value.strip().lower()
        return text == "" or (column != "request_id" and text in _NO_VALUE)
    return value is None or (isinstance(value, float | Decimal) and math.isnan(value))


_NO_VALUE = ("nan", "<na>", "none", "null")
_EXACT = 2**53
"""Above this a float stands for several whole numbers: its digits are lost."""


def _integer(value: Any) -> int:
    """Accepts 3, 3.0, '3', '3.0' and decimals; a data frame makes floats of integers beside an empty cell.

    Raises ValueError.
    """
    if type(value) is int:
        return value
    if isinstance(value, str) and re.fullmatch(r"[+-]?[0-9]{1,30}", value.strip()):
        return int(value)
    try:
        number = Decimal("nan" if isinstance(value, bool) else value.strip() if isinstance(value, str) else value)
    except (ArithmeticError, TypeError, ValueError):
        number = Decimal("nan")
    if not number.is_finite() or number.adjusted() > MAX_DIGITS or number % 1:
        raise ValueError(f"must be a whole number (got {value!r})")
    if isinstance(value, float | str) and abs(number) > _EXACT:
        raise ValueError(f"{value} is a float above 2^53, which loses digits: write a whole number")
    return int(number)


def _request_id(value: Any, rules: RequestRules) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ValueError("is missing" if value is None else f"must be a text or a whole number (got {value!r})")
    return str(value)


def _count(value: Any, rules: RequestRules) -> int:
    if value is None:
        raise ValueError("is missing")
    count = _integer(value)
    if not 1 <= count < 2**63:
        raise ValueError(f"must be at least 1 (got {count})")
    return count


def _label(value: Any, rules: RequestRules) -> int | None:
    if value is None:
        return None
    label = _integer(value)
    if rules.num_classes is None:
        raise ValueError(f"{label}: the model has no classes")
    if not 0 <= label < rules.num_classes:
        raise ValueError(f"{label} is unknown: the classes of the model are 0..{rules.num_classes - 1}")
    return label


def _guidance(value: Any, rules: RequestRules) -> float | None:
    if value is None:
        return rules.guidance
    try:
        guidance = float("nan" if isinstance(value, bool) else value)
    except (TypeError, ValueError):
        guidance = math.nan
    if not (math.isfinite(guidance) and guidance >= 0):
        raise ValueError(f"must be a finite number, at least 0 (got {value!r})")
    if rules.guidance_error is not None:
        raise ValueError(f"{guidance:g}: {rules.guidance_error}")
    return guidance


def _seed(value: Any, rules: RequestRules) -> int:
    seed = rules.seed if value is None else _integer(value)
    if not 0 <= seed < 2**63:
        raise ValueError(f"must lie in 0..2^63-1 (got {seed})")
    return seed


def _steps(value: Any, rules: RequestRules) -> int:
    steps = rules.steps if value is None else _integer(value)
    if not 1 <= steps <= rules.num_timesteps:
        raise ValueError(f"must lie in 1..{rules.num_timesteps} (got {steps})")
    return steps


def _sampler(value: Any, rules: RequestRules) -> str:
    sampler = rules.sampler if value is None else value.strip() if isinstance(value, str) else value
    if sampler not in SAMPLERS:
        raise ValueError(f"{sampler!r} is unknown: one of {', '.join(SAMPLERS)}")
    return str(sampler)


_COLUMNS: dict[str, Callable[[Any, RequestRules], Any]] = {
    "request_id": _request_id,
    "count": _count,
    "label": _label,
    "guidance": _guidance,
    "seed": _seed,
    "steps": _steps,
    "sampler": _sampler,
}


def _extra(row: Mapping[str, Any]) -> str | None:
    """All other columns as one JSON object, keys sorted, dates and decimals as text, NaN as null. Raises ValueError."""
    extra = {name: _without_nan(value) for name, value in row.items() if name not in _COLUMNS}
    if not extra:
        return None
    try:
        return json.dumps(extra, sort_keys=True, default=_plain, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"columns {', '.join(sorted(extra))} cannot be stored as JSON: {error}") from error


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nan(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_without_nan(inner) for inner in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _plain(value: Any) -> str:
    if isinstance(value, date | time | Decimal):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")


# --- the table in use ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Requests:
    """A checked table (schema REQUESTS). Takes some 60 bytes a row besides request ids and extra columns."""

    table: pa.Table

    @cached_property
    def starts(self) -> Int64Array:
        """First sample id of each request, and the end: int64 [R + 1]."""
        return np.concatenate([[0], np.cumsum(self._numpy("count"))]).astype(np.int64)

    @property
    def num_samples(self) -> int:
        return int(self.starts[-1])

    @cached_property
    def bounds(self) -> Int64Array:
        """First sample id of each segment, and the end: int64 [S + 1].

        A segment is a run of consecutive requests with equal sampler, steps and guidance.
        """
        sampler = self.table["sampler"].combine_chunks().dictionary_encode().indices.to_numpy()
        settings = (sampler, self._numpy("steps"), self._numpy("guidance", -1.0))
        changes = np.logical_or.reduce([column[1:] != column[:-1] for column in settings])
        found: Int64Array = self.starts[np.concatenate([[True], changes, [True]])]
        return found

    @cached_property
    def labels(self) -> Int64Array:
        """int64 [R]; -1 without a label."""
        return self._numpy("label", -1).astype(np.int64)

    @cached_property
    def seeds(self) -> Int64Array:
        return self._numpy("seed")

    def indices(self, ids: range) -> Int64Array:
        """Index of the request of each sample: int64 [len(ids)]."""
        found: Int64Array = np.searchsorted(self.starts, np.arange(ids.start, ids.stop), side="right") - 1
        return found

    def _numpy(self, name: str, null: float | None = None) -> npt.NDArray[Any]:
        column = self.table[name]
        return np.asarray((column if null is None else column.fill_null(null)).to_numpy())
