"""Recognise the columns of a table that hold labels or splits, by name."""

import re
from collections.abc import Iterable, Sequence
from typing import Any, Final

LABEL_NAMES: Final = ("label", "labels", "class", "cls", "category", "class_name", "target", "y")
SPLIT_NAMES: Final = ("split", "subset", "partition", "fold")
_NUMBER: Final = re.compile(r"(-?\d+)(?:\.0*)?", re.ASCII)
_LIKE: Final = re.compile(
    r"(.*[_ -])?(label|labels|class|classes|category|target|species|breed)([_ -](id|idx|index|name|names|text))?", re.I
)


def label_like(names: Sequence[str]) -> list[str]:
    """The columns whose name says that they hold labels, usual names first: label, class_id, fine_label, ..."""
    lower = {name.strip().lower(): name for name in names}
    usual = [lower[name] for name in LABEL_NAMES if name in lower]
    return [*usual, *(name for name in names if name not in usual and _LIKE.fullmatch(name.strip()))]


def split_column(names: Sequence[str]) -> str | None:
    """The column that names splits."""
    lower = {name.strip().lower(): name for name in names}
    return next((lower[name] for name in SPLIT_NAMES if name in lower), None)


def are_numbers(cells: Iterable[Any]) -> bool:
    """Whether all texts of a CSV column are whole numbers, such as "3", "-1", or pandas' "0.0" in columns with gaps."""
    texts = [cell for cell in cells if isinstance(cell, str) and cell != ""]
    return bool(texts) and all(_NUMBER.fullmatch(text) for text in texts)


def number_of(cell: Any) -> Any:
    """The number in a cell of a column for which `are_numbers` holds: "1.0" is 1, and "01" stays a text."""
    found = _NUMBER.fullmatch(cell) if isinstance(cell, str) else None
    return int(found[1]) if found and str(int(found[1])) == found[1] else cell
