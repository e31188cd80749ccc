"""Writes a chart of the report as a standalone SVG file with styles and legend, for docs/."""

import re
from pathlib import Path
from xml.sax.saxutils import escape

from pipeline.report.render.content import Chart
from pipeline.report.render.line_chart import line_chart

COLOURS = ("#28608f", "#b3602a", "#47794b", "#7d5a94", "#b5407f")
STYLE = """
svg { background: #fcfbf9; }
text { font: 11px system-ui, sans-serif; fill: #666c72; }
line { stroke: #e3dfd8; stroke-width: 1; }
.base { stroke: #666c72; stroke-opacity: 0.55; }
.line { fill: none; stroke: var(--c); stroke-width: 1.6; stroke-linejoin: round; stroke-linecap: round; }
.quiet { --c: #666c72; stroke-dasharray: 2 3; }
"""
HEAD, LINE = 18, 14


def write_picture(chart: Chart, path: Path) -> None:
    """Title and legend above, then the chart; readable on light and dark pages. Raises ValueError for no values."""
    drawing = line_chart(chart)
    if not drawing:
        raise ValueError(f"nothing to draw in {chart.title!r}")
    height = HEAD + LINE * len(chart.series)
    looks = "".join(f".c{i} {{ --c: {colour}; }}\n" for i, colour in enumerate(COLOURS))
    unit = f" ({chart.unit})" if chart.unit else ""
    words = [f'<text x="8" y="13" style="font-weight:600;fill:#1f2225">{escape(chart.title + unit)}</text>']
    for place, series in enumerate(chart.series):
        y = HEAD + LINE * place + 9
        colour = COLOURS[place % len(COLOURS)]
        words.append(f'<rect x="8" y="{y - 6}" width="12" height="3" style="fill:{colour}"/>')
        words.append(f'<text x="26" y="{y}">{escape(series.label)}</text>')
    drawing = re.sub(r'<g class="band">.*?</g>', "", drawing, flags=re.DOTALL)  # an image on a page has no tooltips
    inner = drawing.replace(
        "<svg ", f'<svg xmlns="http://www.w3.org/2000/svg" y="{height}" width="380" height="220" ', 1
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 380 {220 + height}" width="760">'
        f"<style>{STYLE}{looks}</style>"
        f'<rect width="380" height="{220 + height}" style="fill:#fcfbf9"/>{"".join(words)}{inner}</svg>\n'
    )
