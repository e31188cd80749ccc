"""Read the points and tooltips of a drawn chart."""

import re
from xml.etree import ElementTree


def tips(svg: str) -> list[str]:
    """The tooltip of each hover band of a chart, one line per series."""
    texts = [text for text in ElementTree.fromstring(svg).iter("text") if text.get("class") == "tip"]
    return ["\n".join(line.text for line in text.iter("tspan")) for text in texts]


def points(html: str, title: str) -> list[int]:
    """How many points each curve of a page's chart draws, without the zero-length start of each pen stroke."""
    svg = re.search(rf'<svg[^>]*aria-label="{re.escape(title)}\..*?</svg>', html, re.DOTALL)[0]
    return [len(re.findall(r"[ML]", d)) for d in re.findall(r'<path[^>]* d="([^"]+)"', svg)]
