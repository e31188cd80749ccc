"""Curves over steps, as inline SVG with values on hover."""

import math
from bisect import bisect_left
from dataclasses import replace
from itertools import islice, pairwise
from typing import Final
from xml.etree.ElementTree import Element

from pipeline.report.render.content import QUIET, Chart, Series
from pipeline.report.render.scales import figures, short, thinned
from pipeline.report.render.svg import WIDTH, Axis, add, axis_around, canvas, stroke, written

__all__ = ["line_chart", "looks"]

ELLIPSIS: Final = "\N{HORIZONTAL ELLIPSIS}"
_HEIGHT: Final = 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 14, 10, 36
_MOST_BANDS, _MOST_MARKS = 120, 600  # columns of values, and values in all of them together
_MOST_TOLD, _LONGEST_TOLD = 13, 30  # lines of a column's values, and characters of a line


def _drawable(series: Series, log: bool) -> Series:
    """Values that the scale cannot show become gaps."""
    y = tuple(v if math.isfinite(v) and (v > 0 or not log) else math.nan for v in series.y)
    return replace(series, y=y)


def looks(chart: Chart) -> list[str]:
    """Style classes of each series, for its curve and for the legend."""
    places = [index if series.look is None else series.look for index, series in enumerate(chart.series)]
    return ["quiet" if place == QUIET else stroke(place) for place in places]


def line_chart(chart: Chart) -> str:
    """The chart as one <svg>, or "" when no value of it can be drawn."""
    drawable = [_drawable(series, chart.log) for series in chart.series]
    every_y = [v for series in drawable for v in series.y if not math.isnan(v)]
    if not every_y:
        return ""
    svg = canvas(_HEIGHT, chart.title, _description(chart, drawable), "lines")
    x_axis = axis_around([v for s in drawable for v in s.x], _LEFT, WIDTH - _RIGHT, chart.log_x, _margin(chart))
    y_axis = axis_around(every_y, _HEIGHT - _BOTTOM, _TOP, chart.log, margin=0.06)
    _draw_axes(svg, x_axis, y_axis, chart.x_label)
    thin = [_thin(series) for series in drawable]
    for series, look in zip(thin, looks(chart), strict=True):
        _draw_line(svg, series, x_axis, y_axis, look)
        if chart.dots and not series.muted:
            _draw_dots(svg, series, x_axis, y_axis, look)
    _draw_bands(svg, thin, x_axis, y_axis, chart)
    return written(svg)


def _margin(chart: Chart) -> float:
    """Curves fill the width; dots do not stand on the edge."""
    return 0.04 if chart.dots else 0.0


def _thin(series: Series) -> Series:
    x, y = thinned(series.x, series.y)
    return replace(series, x=tuple(x), y=tuple(y))


def _description(chart: Chart, drawable: list[Series]) -> str:
    parts = []
    for series in drawable:
        points = [(x, y) for x, y in zip(series.x, series.y, strict=True) if not math.isnan(y)]
        if not points:
            continue
        lowest, highest = min(y for _, y in points), max(y for _, y in points)
        parts.append(
            f"{series.label}: {len(points)} points, from {figures(points[0][1])} at {chart.x_label} "
            f"{figures(points[0][0])} to {figures(points[-1][1])} at {figures(points[-1][0])}, "
            f"lowest {figures(lowest)}, highest {figures(highest)}."
        )
    scale = " Logarithmic scale." if chart.log else ""
    return f"{' '.join(parts)} Unit: {chart.unit}.{scale}"


def _draw_axes(svg: Element, x_axis: Axis, y_axis: Axis, x_label: str) -> None:
    group = add(svg, "g", class_="axes", aria_hidden="true")
    for tick in y_axis.ticks(6):
        y = y_axis.at(tick)
        add(group, "line", class_="grid", x1=_LEFT, x2=WIDTH - _RIGHT, y1=y, y2=y)
        add(group, "text", short(tick), x=_LEFT - 6, y=y + 3.5, text_anchor="end")
    base = _HEIGHT - _BOTTOM
    add(group, "line", class_="base", x1=_LEFT, x2=WIDTH - _RIGHT, y1=base, y2=base)
    for tick in x_axis.ticks(6):
        x = x_axis.at(tick)
        add(group, "line", class_="base", x1=x, x2=x, y1=base, y2=base + 4)
        anchor = "end" if x > WIDTH - _RIGHT - 12 else "middle"
        add(group, "text", short(tick), x=x + (4 if anchor == "end" else 0), y=base + 15, text_anchor=anchor)
    middle = (_LEFT + WIDTH - _RIGHT) / 2
    add(group, "text", x_label, class_="name", x=middle, y=_HEIGHT - 5, text_anchor="middle")


def _draw_line(svg: Element, series: Series, x_axis: Axis, y_axis: Axis, colour: str) -> None:
    """One path; a NaN lifts the pen, and a point with gaps on both sides becomes a dot through its round cap."""
    commands, pen_down = [], False
    for x, y in zip(series.x, series.y, strict=True):
        if math.isnan(y):
            pen_down = False
            continue
        place = f"{x_axis.at(x):.1f} {y_axis.at(y):.1f}"
        commands.append(f"L{place}" if pen_down else f"M{place}l0 0")
        pen_down = True
    add(svg, "path", class_=f"line {colour}{' muted' if series.muted else ''}", d="".join(commands))


def _draw_dots(svg: Element, series: Series, x_axis: Axis, y_axis: Axis, colour: str) -> None:
    for x, y in zip(series.x, series.y, strict=True):
        if not math.isnan(y):
            add(svg, "circle", class_=f"dot {colour}", r=2.6, cx=x_axis.at(x), cy=y_axis.at(y))


def _draw_bands(svg: Element, shown: list[Series], x_axis: Axis, y_axis: Axis, chart: Chart) -> None:
    """Invisible columns over the plot: the one under the pointer shows its points and tells their values."""
    places = sorted({x for series in shown for x in series.x})
    most = max(20, min(_MOST_BANDS, _MOST_MARKS // len(shown)))
    places = places[:: math.ceil(len(places) / most)]
    xs = [x_axis.at(place) for place in places]
    edges = [float(_LEFT), *((a + b) / 2 for a, b in pairwise(xs)), float(WIDTH - _RIGHT)]
    for place, x, (left, right) in zip(places, xs, pairwise(edges), strict=True):
        band = add(svg, "g", class_="band")
        add(band, "rect", x=left, width=max(right - left, 0.1), y=_TOP, height=_HEIGHT - _TOP - _BOTTOM)
        add(band, "line", x1=x, x2=x, y1=_TOP, y2=_HEIGHT - _BOTTOM)
        lines = [f"{chart.x_label} {figures(place)}"]
        for series, look in zip(shown, looks(chart), strict=True):
            near = _at(series.x, place) if chart.dots and not series.muted else _nearest(series.x, place)
            value = math.nan if near is None else series.y[near]
            if near is not None and not math.isnan(value):
                add(band, "circle", class_=look, r=3, cx=x_axis.at(series.x[near]), cy=y_axis.at(value))
                lines.append(_told(series.label, f"{figures(value)} {chart.unit}".rstrip()))
        _draw_tip(band, x, lines)


def _told(label: str, value: str) -> str:
    room = _LONGEST_TOLD - len(value) - 2
    return f"{label if len(label) <= room else label[: max(room - 1, 1)] + ELLIPSIS}: {value}"


def _draw_tip(band: Element, x: float, lines: list[str]) -> None:
    """The values in words, on the side of the pointer where there is more room."""
    left = x > (_LEFT + WIDTH - _RIGHT) / 2
    place = x + (-7 if left else 7)
    tip = add(band, "text", class_="tip", text_anchor="end" if left else "start")
    for row, line in enumerate(islice(lines, _MOST_TOLD)):
        add(tip, "tspan", line, x=place, y=_TOP + 11 + 13 * row)


def _at(values: tuple[float, ...], value: float) -> int | None:
    return values.index(value) if value in values else None


def _nearest(ordered: tuple[float, ...], value: float) -> int | None:
    right = bisect_left(ordered, value)
    candidates = [index for index in (right - 1, right) if 0 <= index < len(ordered)]
    return min(candidates, key=lambda index: abs(ordered[index] - value), default=None)
