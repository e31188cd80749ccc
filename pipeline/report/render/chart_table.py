"""The values of a chart as a table, for readers who cannot see the chart or need the numbers."""

import math
from typing import Final

from pipeline.report.render.content import Chart, Series, Table
from pipeline.report.render.scales import NO_VALUE, figures

MOST_ROWS: Final = 40


def chart_table(chart: Chart) -> Table:
    """One row per x value, one column per foreground series (every series when none is in the foreground).

    More than MOST_ROWS x values are reduced to evenly spaced ones, plus the minimum and maximum of each series.
    """
    shown = [series for series in chart.series if not series.muted] or list(chart.series)
    values = [dict(zip(series.x, series.y, strict=True)) for series in shown]
    xs = sorted({x for series in shown for x in series.x})
    rows = tuple((figures(x), *(_cell(series.get(x, math.nan)) for series in values)) for x in _selected(xs, shown))
    note = "A selection: both ends, extremes and evenly spaced points." if len(xs) > MOST_ROWS else ""
    columns = (chart.x_label, *(f"{series.label}{f', {chart.unit}' if chart.unit else ''}" for series in shown))
    return Table(f"Values of {chart.title}", columns, rows, words=0, note=note)


def _selected(xs: list[float], shown: list[Series]) -> list[float]:
    if len(xs) <= MOST_ROWS:
        return xs
    even = {xs[round(i * (len(xs) - 1) / (MOST_ROWS - 1))] for i in range(MOST_ROWS)}
    return sorted(even | {x for series in shown for x in _extremes(series)})


def _extremes(series: Series) -> set[float]:
    """x of the minimum and the maximum of a series; empty when no value is finite."""
    points = [(y, x) for x, y in zip(series.x, series.y, strict=True) if math.isfinite(y)]
    return {min(points)[1], max(points)[1]} if points else set()


def _cell(value: float) -> str:
    return figures(value) if math.isfinite(value) else NO_VALUE
