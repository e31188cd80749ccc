"""The page is self-contained, escapes all text, and omits sections without content."""

import base64
import io
import re
from html.parser import HTMLParser
from importlib.resources import files

import numpy as np
import pytest
from PIL import Image

from pipeline.images.png import encode_png
from pipeline.report.render.content import (
    Anchor,
    Chart,
    Fact,
    MetricRow,
    Picture,
    Report,
    Series,
    ThroughputRow,
    Verdict,
    Verification,
)
from pipeline.report.render.page import render

pytestmark = pytest.mark.unit
VOID = {"meta", "link", "img", "br"}


class Page(HTMLParser):
    """Checks that every element is closed in order, and collects attributes and visible text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags, self.attributes, self.text, self._open = [], [], "", []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.text += data


def picture(name: str, level: int) -> Picture:
    return Picture(f"caption {name}", f"alt {name}", encode_png(np.full((4, 4), level, np.uint8)))


FULL = Report(
    title="digits",
    subtitle="a subtitle",
    verdict=Verdict("good", "all is well"),
    facts=(Fact("Dataset", "digits@12ab"),),
    samples=(picture("bulk", 10),),
    metrics=(
        MetricRow("FD-class-cnn", 5.25, 1234, "train split", Anchor("floor", 1.5), (Anchor("noise", 46.5),), (5, 6)),
    ),
    charts=(
        Chart("Loss", "step", "MSE", (Series("raw", (0, 1), (2, 1), muted=True), Series("mean", (0, 1), (2, 0.75)))),
    ),
    grids=(picture("step 1", 20), picture("step 2", 30)),
    throughput=(ThroughputRow("Training", 951.0, "img/s", "2 workers"),),
    verification=Verification(True, "4,096 of 4,096", (Fact("Shards", "4 of 4"),)),
    config_yaml="train:\n  lr: 0.0002\n",
)


def test_all_content_is_on_the_page():
    page = Page(render(FULL))
    for said in (
        "digits", "a subtitle", "all is well", "digits@12ab", "caption bulk", "FD-class-cnn", "5.25", "n = 1,234",
        "train split", "5 to 6", "floor 1.5", "noise 46.5", "Loss", "0.75 MSE", "raw", "caption step 2", "951 img/s",
        "2 workers", "4,096 of 4,096", "4 of 4", "lr: 0.0002",
    ):  # fmt: skip
        assert said in page.text, said


def test_images_are_the_given_bytes():
    sources = [value for name, value in Page(render(FULL)).attributes if name == "src"]
    images = [base64.b64decode(source.removeprefix("data:image/png;base64,")) for source in sources]
    assert images == [p.png for p in (*FULL.samples, *FULL.grids)]
    assert [Image.open(io.BytesIO(data)).getpixel((0, 0)) for data in images] == [10, 20, 30]


def test_every_picture_and_chart_has_a_text_alternative():
    page = Page(render(FULL))
    assert page.tags.count("img") == len([1 for name, value in page.attributes if name == "alt" and value])
    svgs = re.findall(r'<svg[^>]* aria-label="[^"]+"><title>[^<]+</title><desc>[^<]+</desc>', render(FULL))
    assert page.tags.count("svg") == len(svgs) == 2


def test_the_page_is_self_contained():
    text = render(FULL)
    page = Page(text)
    links = [value for name, value in page.attributes if name in ("src", "href", "action", "srcset", "data")]
    assert links
    assert all(link.startswith("data:") for link in links)
    assert "script" not in page.tags
    assert "default-src 'none'" in text
    for remote in ("http:", "https:", "@import", "url(", "@font-face"):
        assert remote not in text, remote


def test_a_section_without_content_is_omitted():
    text = render(Report(title="only a title"))
    page = Page(text)
    assert not {"section", "h2", "figure", "table", "dl", "svg", "img", "pre"} & set(page.tags)
    full = render(FULL)
    for field, heading in {
        "samples": "Samples", "metrics": "Quality", "charts": "Training", "grids": "Samples during training",
        "throughput": "Throughput", "verification": "Verification", "config_yaml": "Configuration",
    }.items():  # fmt: skip
        empty = getattr(Report(title=""), field)
        without = render(Report(**{**FULL.__dict__, field: empty}))
        assert f"<h2>{heading}</h2>" in full
        assert f"<h2>{heading}</h2>" not in without
        assert full.count("<section>") - without.count("<section>") == 1


def test_a_chart_without_points_is_omitted():
    empty = Chart("Nothing", "step", "", (Series("a", (0,), (float("nan"),)),))
    assert "Nothing" not in render(Report(title="t", charts=(empty,)))


def test_every_text_is_escaped():
    evil = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)> {{ 7*7 }}"
    report = Report(
        title=evil,
        subtitle=evil,
        verdict=Verdict("bad", evil),
        facts=(Fact(evil, evil),),
        samples=(Picture(evil, evil, b""),),
        metrics=(MetricRow(evil, 1.0, 1, evil, Anchor(evil, 2.0), note=evil),),
        charts=(Chart(evil, evil, evil, (Series(evil, (0, 1), (1, 2)), Series(evil, (0, 1), (1, 2))), note=evil),),
        grids=(Picture(evil, evil, b""),),
        throughput=(ThroughputRow(evil, 1.0, evil, evil),),
        verification=Verification(False, evil, (Fact(evil, evil),)),
        config_yaml=evil,
    )
    text = render(report)
    page = Page(text)
    assert "script" not in page.tags
    assert page.tags.count("img") == 2
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert "49" not in re.sub(r"\d+\.\d", "", page.text)
    assert page.text.count(evil) >= 15


def test_equal_reports_give_equal_pages():
    assert render(FULL) == render(Report(**FULL.__dict__))


def test_the_package_contains_the_template():
    folder = files("pipeline.report.render") / "templates"
    assert {entry.name for entry in folder.iterdir()} >= {"report.html", "report.css"}
