"""The figures of a chart as a table, for whoever does not see it or wants the numbers."""

import math
from typing import Final

from pipeline.report.render.content import Chart, Series, Table
from pipeline.report.render.scales import figures

__all__ = ["chart_table"]

MOST_ROWS: Final = 40
_NOTHING: Final = "\N{EN DASH}"


def chart_table(chart: Chart) -> Table:
    """A row a place on the x axis, a column a series in the foreground (all, when there is none).

    Of more than MOST_ROWS places evenly chosen ones, with both ends and the lowest and highest point of each series.
    """
    shown = [series for series in chart.series if not series.muted] or list(chart.series)
    values = [dict(zip(series.x, series.y, strict=True)) for series in shown]
    rows = tuple(
        (figures(place), *(_cell(series.get(place, math.nan)) for series in values)) for place in _places(shown)
    )
    note = "" if len({x for s in shown for x in s.x}) <= MOST_ROWS else "Chosen points: ends, extremes, and between."
    columns = (chart.x_label, *(f"{series.label}{f', {chart.unit}' if chart.unit else ''}" for series in shown))
    return Table(f"Figures of {chart.title}", columns, rows, words=0, note=note)


def _places(shown: list[Series]) -> list[float]:
    places = sorted({x for series in shown for x in series.x})
    if len(places) <= MOST_ROWS:
        return places
    even = {places[round(i * (len(places) - 1) / (MOST_ROWS - 1))] for i in range(MOST_ROWS)}
    return sorted(even | {x for series in shown for x in _extremes(series)})


def _extremes(series: Series) -> set[float]:
    """Where a series is lowest and highest; nothing when it has no finite value."""
    points = [(y, x) for x, y in zip(series.x, series.y, strict=True) if math.isfinite(y)]
    return {min(points)[1], max(points)[1]} if points else set()


def _cell(value: float) -> str:
    return figures(value) if math.isfinite(value) else _NOTHING
