"""A score on a horizontal scale between its floor and its ceilings, as inline SVG."""

import math
from dataclasses import dataclass
from typing import Final
from xml.etree.ElementTree import Element

from pipeline.report.render.content import Anchor, MetricRow
from pipeline.report.render.scales import figures
from pipeline.report.render.svg import WIDTH, add, axis_around, canvas, to_text

_TRACK: Final = 32.0  # height of the line
_FIRST_LABEL: Final = 18.0  # from the line down to the first row of labels
_ROW: Final = 16.0
_CHARACTER: Final = 6.2  # average width of a character of the label font, in drawing units
_DOT: Final = 5.5


@dataclass(frozen=True)
class _Flag:
    """A label with its pole at `x`. Its text is in row `row`, right ("start") or left ("end") of `text_x`."""

    text: str
    x: float
    text_x: float
    side: str
    row: int


def anchor_chart(row: MetricRow) -> str:
    """The score as one <svg> (logarithmic when all values are positive), or "" without floor and ceilings."""
    anchors = ((row.floor,) if row.floor else ()) + row.ceilings
    values = [anchor.value for anchor in anchors] + [row.value, *(row.interval or ())]
    if not anchors or not all(math.isfinite(value) for value in values):
        return ""
    axis = axis_around(values, 10, WIDTH - 10, log=min(values) > 0, margin=0.06)
    flags = _flags([(axis.at(anchor.value), _label(anchor)) for anchor in anchors])
    compared = ", ".join(_label(anchor) for anchor in anchors)
    scale = "Logarithmic" if axis.log else "Linear"
    height = _TRACK + _FIRST_LABEL + 5 + _ROW * max(flag.row for flag in flags)
    svg = canvas(height, row.name, f"{figures(row.value)}; to compare: {compared}. {scale} scale.", "anchors")
    add(svg, "line", class_="track", x1=axis.start, x2=axis.end, y1=_TRACK, y2=_TRACK)
    for anchor, flag in zip(anchors, flags, strict=True):
        _draw_flag(add(svg, "g", class_="floor" if anchor is row.floor else "ceiling"), flag)
    if row.interval:
        low, high = map(axis.at, row.interval)
        add(svg, "line", class_="interval", x1=low, x2=high, y1=_TRACK, y2=_TRACK)
    _draw_value(add(svg, "g", class_="value"), axis.at(row.value), row)
    return to_text(svg)


def _label(anchor: Anchor) -> str:
    return f"{anchor.name} {figures(anchor.value)}"


def _draw_flag(group: Element, flag: _Flag) -> None:
    baseline = _TRACK + _FIRST_LABEL + _ROW * flag.row
    add(group, "line", x1=flag.x, x2=flag.x, y1=_TRACK - 5, y2=baseline)
    add(group, "text", flag.text, x=flag.text_x, y=baseline, text_anchor=flag.side)
    add(group, "title", flag.text)


def _draw_value(group: Element, x: float, row: MetricRow) -> None:
    text = figures(row.value)
    half = len(text) * _CHARACTER * 0.6
    add(group, "circle", cx=x, cy=_TRACK, r=_DOT)
    add(group, "text", text, x=min(max(x, half), WIDTH - half), y=_TRACK - 13, text_anchor="middle")
    add(group, "title", f"{row.name} {text}")


def _flags(labels: list[tuple[float, str]]) -> list[_Flag]:
    """A flag for each (x, text), in the same order.

    Text points towards the middle. Flags are placed from the middle outwards, each in the first row without overlap,
    so that no pole crosses the text of another flag.
    """
    taken: dict[int, list[tuple[float, float]]] = {}
    flags: dict[int, _Flag] = {}
    for index in sorted(range(len(labels)), key=lambda i: abs(labels[i][0] - WIDTH / 2)):
        x, text = labels[index]
        width = len(text) * _CHARACTER
        if x < WIDTH / 2:
            side, text_x = "start", min(x + 4, WIDTH - width)
            left, right = text_x, text_x + width
        else:
            side, text_x = "end", max(x - 4, width)
            left, right = text_x - width, text_x
        row = 0
        while any(left - 8 < end and start < right + 8 for start, end in taken.get(row, [])):
            row += 1
        taken.setdefault(row, []).append((left, right))
        flags[index] = _Flag(text, x, text_x, side, row)
    return [flags[index] for index in range(len(labels))]
