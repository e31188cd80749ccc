"""Line and dot charts as inline SVG; hovering over the plot shows the values."""

import math
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Final
from xml.etree.ElementTree import Element

from pipeline.report.render.content import QUIET, Chart, Series
from pipeline.report.render.scales import figures, short, thinned
from pipeline.report.render.svg import WIDTH, Axis, add, axis_around, canvas, stroke, to_text

ELLIPSIS: Final = "\N{HORIZONTAL ELLIPSIS}"
_HEIGHT: Final = 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, WIDTH - 14, 10, _HEIGHT - 36
_MAX_BANDS, _MAX_MARKS = 120, 600  # hover bands, and marks in all bands together
_MAX_TIP_LINES, _MAX_TIP_LENGTH = 13, 30  # lines of a tooltip, and characters per line
_DOT_MARGIN: Final = 0.04  # keeps dots away from the edges; curves fill the width


@dataclass(frozen=True)
class _Plot:
    """A chart while it is drawn: series with gaps and fewer points, their style classes, and the axes."""

    svg: Element
    chart: Chart
    series: list[Series]
    looks: list[str]
    x: Axis
    y: Axis

    def points(self, series: Series) -> Iterator[tuple[float, float] | None]:
        """Drawing positions of the points; None for a gap."""
        for x, y in zip(series.x, series.y, strict=True):
            yield None if math.isnan(y) else (self.x.at(x), self.y.at(y))


def looks(chart: Chart) -> list[str]:
    """Style classes of each series, for the curve and for the legend."""
    places = [index if series.look is None else series.look for index, series in enumerate(chart.series)]
    return ["quiet" if place == QUIET else stroke(place) for place in places]


def line_chart(chart: Chart) -> str:
    """The chart as one <svg>, or "" when it has no value that can be drawn."""
    drawable = [_drawable(series, chart.log) for series in chart.series]
    every_y = [v for series in drawable for v in series.y if not math.isnan(v)]
    if not every_y:
        return ""
    plot = _Plot(
        canvas(_HEIGHT, chart.title, _description(chart, drawable), "lines"),
        chart,
        [_thin(series) for series in drawable],
        looks(chart),
        axis_around([v for s in drawable for v in s.x], _LEFT, _RIGHT, chart.log_x, _DOT_MARGIN if chart.dots else 0.0),
        axis_around(every_y, _BOTTOM, _TOP, chart.log, margin=0.06),
    )
    _draw_axes(plot)
    for series, look in zip(plot.series, plot.looks, strict=True):
        _draw_series(plot, series, look)
    _draw_bands(plot)
    return to_text(plot.svg)


def _drawable(series: Series, log: bool) -> Series:
    """Values that the scale cannot show become gaps (NaN)."""
    y = tuple(v if math.isfinite(v) and (v > 0 or not log) else math.nan for v in series.y)
    return replace(series, y=y)


def _thin(series: Series) -> Series:
    x, y = thinned(series.x, series.y)
    return replace(series, x=tuple(x), y=tuple(y))


def _description(chart: Chart, drawable: list[Series]) -> str:
    """Text alternative: range and end points of each series."""
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


def _draw_axes(plot: _Plot) -> None:
    group = add(plot.svg, "g", class_="axes", aria_hidden="true")
    for tick in plot.y.ticks(6):
        y = plot.y.at(tick)
        add(group, "line", class_="grid", x1=_LEFT, x2=_RIGHT, y1=y, y2=y)
        add(group, "text", short(tick), x=_LEFT - 6, y=y + 3.5, text_anchor="end")
    add(group, "line", class_="base", x1=_LEFT, x2=_RIGHT, y1=_BOTTOM, y2=_BOTTOM)
    for tick in plot.x.ticks(6):
        x = plot.x.at(tick)
        add(group, "line", class_="base", x1=x, x2=x, y1=_BOTTOM, y2=_BOTTOM + 4)
        anchor = "end" if x > _RIGHT - 12 else "middle"
        add(group, "text", short(tick), x=x + (4 if anchor == "end" else 0), y=_BOTTOM + 15, text_anchor=anchor)
    middle = (_LEFT + _RIGHT) / 2
    add(group, "text", plot.chart.x_label, class_="name", x=middle, y=_HEIGHT - 5, text_anchor="middle")


def _draw_series(plot: _Plot, series: Series, look: str) -> None:
    """One path with a break at each gap; the round line cap draws a point between two gaps as a dot."""
    commands, connected = [], False
    for point in plot.points(series):
        if point is not None:
            place = "{:.1f} {:.1f}".format(*point)
            commands.append(f"L{place}" if connected else f"M{place}l0 0")
        connected = point is not None
    add(plot.svg, "path", class_=f"line {look}{' muted' if series.muted else ''}", d="".join(commands))
    if plot.chart.dots and not series.muted:
        for point in plot.points(series):
            if point is not None:
                add(plot.svg, "circle", class_=f"dot {look}", r=2.6, cx=point[0], cy=point[1])


def _draw_bands(plot: _Plot) -> None:
    """Transparent columns over the plot; the column under the pointer shows its points and their values."""
    chart = plot.chart
    places = sorted({x for series in plot.series for x in series.x})
    most = max(20, min(_MAX_BANDS, _MAX_MARKS // len(plot.series)))
    places = places[:: math.ceil(len(places) / most)]
    xs = [plot.x.at(place) for place in places]
    edges = [float(_LEFT), *((a + b) / 2 for a, b in pairwise(xs)), float(_RIGHT)]
    for place, x, (left, right) in zip(places, xs, pairwise(edges), strict=True):
        band = add(plot.svg, "g", class_="band")
        add(band, "rect", x=left, width=max(right - left, 0.1), y=_TOP, height=_BOTTOM - _TOP)
        add(band, "line", x1=x, x2=x, y1=_TOP, y2=_BOTTOM)
        lines = [f"{chart.x_label} {figures(place)}"]
        for series, look in zip(plot.series, plot.looks, strict=True):
            near = _nearest(series.x, place, exact=chart.dots and not series.muted)
            if near is not None and not math.isnan(series.y[near]):
                value = series.y[near]
                add(band, "circle", class_=look, r=3, cx=plot.x.at(series.x[near]), cy=plot.y.at(value))
                lines.append(_tip_line(series.label, f"{figures(value)} {chart.unit}".rstrip()))
        _draw_tip(band, x, lines)


def _tip_line(label: str, value: str) -> str:
    """Label and value; a long label is shortened."""
    length = _MAX_TIP_LENGTH - len(value) - 2
    return f"{label if len(label) <= length else label[: max(length - 1, 1)] + ELLIPSIS}: {value}"


def _draw_tip(band: Element, x: float, lines: list[str]) -> None:
    """The tooltip, on the side of the pointer with more space."""
    left = x > (_LEFT + _RIGHT) / 2
    tip = add(band, "text", class_="tip", text_anchor="end" if left else "start")
    for row, line in enumerate(lines[:_MAX_TIP_LINES]):
        add(tip, "tspan", line, x=x + (-7 if left else 7), y=_TOP + 11 + 13 * row)


def _nearest(values: tuple[float, ...], value: float, exact: bool) -> int | None:
    """Index of the nearest of some ascending values; exact: of an equal value, in any order, or None."""
    if exact:
        return values.index(value) if value in values else None
    right = bisect_left(values, value)
    candidates = [index for index in (right - 1, right) if 0 <= index < len(values)]
    return min(candidates, key=lambda index: abs(values[index] - value), default=None)
