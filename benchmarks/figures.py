"""Compares the figures on the pages with the results files that the figures come from, and updates the pages.

    python benchmarks/figures.py [--write]

In Markdown an invisible comment follows such a figure:

    driver and Ray take 1.0 %<!-- results: overhead/pipeline_over_bare 100-100x --> of the time
    a shard takes 4.02<!-- results: commit/requests_a_shard --> requests

The comment names the script and the figure in its newest result (benchmarks/results/<date>-<cores>-<script>.json).
An optional second word is the conversion: `100x` is a hundred times the value, `100-100x` a hundred minus a hundred
times the value, `1/x` the inverse. The number before the comment must be the converted value, rounded to the shown
places. Without --write the script lists the differences and exits with 1; with --write it replaces the numbers. A test
compares too.
"""

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent))

from outcome import RESULTS, figures_of, newest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "benchmarks" / "README.md", *(ROOT / "docs").glob("*.md")])

_MARK = re.compile(
    r"(?P<number>-?\d[\d,]*(?:\.\d+)?)(?P<unit>(?:\s?[^\d\s<|]{1,8}){0,2})"
    r"<!-- results: (?P<script>[\w-]+)/(?P<figure>[\w.+-]+)(?: (?P<how>\S+))? -->"
)
_TOLD = re.compile(r"<!-- results:")
_SCALED = re.compile(r"^(?:(?P<from>[\d.]+)-)?(?P<factor>[\d.]+)x$")


class Mark(NamedTuple):
    """A figure on a page: the number in the text, its position, script and figure of its result, conversion."""

    number: str
    span: tuple[int, int]
    script: str
    figure: str
    how: str


def marks(text: str) -> Iterator[Mark]:
    """All marked figures. Raises ValueError when a comment has no number before it."""
    found = list(_MARK.finditer(text))
    if len(found) != len(_TOLD.findall(text)):
        raise ValueError("a <!-- results: script/figure --> stands right behind a number and at most a unit")
    for match in found:
        yield Mark(match["number"], match.span("number"), match["script"], match["figure"], match["how"] or "x")


def told(value: float, how: str) -> float:
    """The converted value. Raises ValueError for an unknown conversion."""
    if how == "1/x":
        return 1 / value
    if how == "x":
        return value
    if match := _SCALED.match(how):
        scaled = float(match["factor"]) * value
        return scaled if match["from"] is None else float(match["from"]) - scaled
    raise ValueError(f"how a figure is told is x, 1/x, 100x or 100-100x, not {how!r}")


def like(number: str, value: float) -> str:
    """The value with the decimals and the grouping of `number`."""
    places = len(number.partition(".")[2])
    return f"{value:,.{places}f}"


def corrected(text: str, value_of: Callable[[str, str], float]) -> str:
    """The text with every marked number replaced by the value of the results."""
    for mark in reversed(list(marks(text))):
        start, stop = mark.span
        text = text[:start] + like(mark.number, told(value_of(mark.script, mark.figure), mark.how)) + text[stop:]
    return text


def outdated(text: str, value_of: Callable[[str, str], float]) -> list[str]:
    """One line for each number that differs from the results."""
    found = []
    for mark in marks(text):
        should = like(mark.number, told(value_of(mark.script, mark.figure), mark.how))
        if should.replace(",", "") != mark.number.replace(",", ""):
            found.append(f"{mark.script}/{mark.figure}: {mark.number} there, {should} measured")
    return found


def measured(script: str, figure: str) -> float:
    """A figure of the newest result of a script. Raises KeyError, FileNotFoundError."""
    return float(figures_of(newest(script, RESULTS))[figure]["value"])


def main() -> int:
    write, differ = "--write" in sys.argv[1:], 0
    for page in PAGES:
        text = page.read_text()
        for line in outdated(text, measured):
            differ += 1
            print(f"{page.relative_to(ROOT)}: {line}")
        if write and (new := corrected(text, measured)) != text:
            page.write_text(new)
    return int(bool(differ) and not write)


if __name__ == "__main__":
    sys.exit(main())
