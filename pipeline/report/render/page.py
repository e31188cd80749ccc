"""Render a report as one self-contained HTML file: styles, charts and images inline, no scripts, no network."""

import base64
from functools import cache
from typing import Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from pipeline.report.render.anchor_chart import anchor_chart
from pipeline.report.render.chart_table import chart_table
from pipeline.report.render.content import Chart, MetricRow, Picture, Report
from pipeline.report.render.line_chart import line_chart, looks
from pipeline.report.render.scales import figures

_MARKS: Final = {"good": "\N{CHECK MARK}", "warning": "!", "bad": "\N{MULTIPLICATION X}"}


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("pipeline.report.render"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["figures"] = figures
    environment.filters["data_uri"] = _data_uri
    return environment.get_template("report.html")


def _data_uri(picture: Picture) -> str:
    return "data:image/png;base64," + base64.b64encode(picture.png).decode()


def _chart(chart: Chart) -> dict[str, Any]:
    """Template values of a chart: drawing, table, and the last value of the first foreground series."""
    front = next((series for series in chart.series if not series.muted), None)
    last = f"{figures(front.y[-1])} {chart.unit}".rstrip() if chart.ends and front and front.y else ""
    # Markup is safe here: the SVG was serialised from an XML tree, which escapes all text.
    svg = Markup(line_chart(chart))
    return {"chart": chart, "svg": svg, "looks": looks(chart), "last": last, "table": chart_table(chart)}


def _metric(row: MetricRow) -> dict[str, Any]:
    return {"row": row, "svg": Markup(anchor_chart(row))}


def render(report: Report) -> str:
    """The page as text (UTF-8); equal reports give equal text."""
    charts = [drawn for drawn in map(_chart, report.charts) if drawn["svg"]]
    metrics = [_metric(row) for row in report.metrics]
    return _template().render(report=report, charts=charts, metrics=metrics, marks=_MARKS)
