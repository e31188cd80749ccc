"""Building blocks of inline SVG charts: canvas, elements and axes.

Charts are about as wide as a phone screen, so their text is readable there without zooming. Colours come from the
page's style sheet. Elements form an XML tree, so all text is escaped.
"""

import math
from dataclasses import dataclass
from typing import Final
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from pipeline.report.render.scales import linear_ticks, log_ticks

WIDTH: Final = 380
COLOURS: Final = 5
_DASHES: Final = 3


@dataclass(frozen=True)
class Axis:
    """Maps values in [low, high] to drawing units [start, end], linearly or by logarithm."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        place = (math.log(value) if self.log else value) - low
        return self.start + (self.end - self.start) * place / (high - low)

    def ticks(self, most: int) -> list[float]:
        return log_ticks(self.low, self.high, most) if self.log else linear_ticks(self.low, self.high, most - 1)


def axis_around(values: list[float], start: float, end: float, log: bool, margin: float) -> Axis:
    """An axis over finite `values`, longer by the share `margin` at both ends; its length is never 0."""
    low, high = min(values), max(values)
    if log:
        extra = max((high / low) ** margin, 1.05)
        return Axis(low / extra, high * extra, start, end, log=True)
    extra = (high - low) * margin if margin else 0.0
    if high == low:
        extra = abs(high) * 0.1 or 1.0
    return Axis(low - extra, high + extra, start, end)


def add(parent: Element, tag: str, text: str = "", **attributes: object) -> Element:
    """A child element; `class_` and `stroke_width` become `class` and `stroke-width`, numbers get one decimal."""
    named = {
        name.rstrip("_").replace("_", "-"): f"{value:.1f}" if isinstance(value, float) else str(value)
        for name, value in attributes.items()
    }
    child = ElementTree.SubElement(parent, tag, named)
    child.text = text or None
    return child


def stroke(index: int) -> str:
    """Style classes of the index-th curve in drawing and legend: COLOURS solid colours, then dashed ones."""
    dash = index // COLOURS % _DASHES
    return f"c{index % COLOURS} d{dash}" if dash else f"c{index % COLOURS}"


def canvas(height: float, name: str, description: str, kind: str) -> Element:
    svg = Element("svg", {"viewBox": f"0 0 {WIDTH} {height:g}", "role": "img", "class": f"chart {kind}"})
    svg.set("aria-label", f"{name}. {description}")
    add(svg, "title", name)
    add(svg, "desc", description)
    return svg


def to_text(svg: Element) -> str:
    return ElementTree.tostring(svg, encoding="unicode")
