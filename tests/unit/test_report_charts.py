"""Charts hold the points of their data at the right places, in words and on hover."""

import math
import re
from xml.etree import ElementTree

import pytest

from pipeline.report.anchor_chart import anchor_chart
from pipeline.report.content import Anchor, Chart, MetricRow, Series
from pipeline.report.line_chart import line_chart

pytestmark = pytest.mark.unit


def chart(*series: Series, log: bool = False) -> Chart:
    return Chart("Loss", "step", "nats", series, log)


def points(svg: str, index: int = 0) -> list[list[tuple[float, float]]]:
    """Strokes of the index-th curve as drawing coordinates."""
    path = ElementTree.fromstring(svg).findall("path")[index].get("d")
    return [[tuple(map(float, p.split())) for p in re.split("l0 0L?|L", s) if p] for s in path.split("M")[1:]]


def test_points_lie_where_the_axes_say():
    svg = line_chart(chart(Series("a", (0, 50, 100), (0, 10, 5))))
    (stroke,) = points(svg)
    assert len(stroke) == 3
    (x0, y0), (x1, y1), (x2, y2) = stroke
    assert x0 < x1 < x2
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.11)
    assert y0 - y1 == pytest.approx(2 * (y0 - y2), abs=0.21)  # the page's y grows downwards
    ticks = {t.text: float(t.get("y")) - 3.5 for t in ElementTree.fromstring(svg).iter("text") if t.get("x") == "38"}
    assert ticks["10"] == pytest.approx(y1, abs=0.11)
    assert ticks["0"] == pytest.approx(y0, abs=0.11)


def test_log_scale_spaces_equal_ratios_equally():
    (stroke,) = points(line_chart(chart(Series("a", (0, 1, 2), (1, 10, 100)), log=True)))
    ys = [y for _, y in stroke]
    assert ys[0] - ys[1] == pytest.approx(ys[1] - ys[2], abs=0.11)


def test_gaps_lift_the_pen():
    series = Series("a", tuple(range(6)), (1, 2, math.nan, 3, math.inf, 4))
    assert [len(stroke) for stroke in points(line_chart(chart(series)))] == [2, 1, 1]
    assert [len(s) for s in points(line_chart(chart(Series("a", (0, 1, 2, 3), (1, -2, 0, 3)), log=True)))] == [1, 1]


def test_nothing_to_draw_draws_nothing():
    assert line_chart(chart()) == ""
    assert line_chart(chart(Series("a", (), ()))) == ""
    assert line_chart(chart(Series("a", (1, 2), (math.nan, math.nan)))) == ""
    assert line_chart(chart(Series("a", (1, 2), (-1, 0)), log=True)) == ""


def test_an_empty_curve_does_not_shift_the_colours_of_the_others():
    svg = ElementTree.fromstring(line_chart(chart(Series("a", (), ()), Series("b", (0, 1), (1, 2)))))
    assert svg.findall("path")[1].get("class") == "line c1"
    assert {circle.get("class") for circle in svg.iter("circle")} == {"c1"}


def test_a_single_point_and_a_flat_line_have_an_axis():
    for series in (Series("a", (5,), (3,)), Series("a", (5, 6), (0, 0)), Series("a", (5, 6), (1e-3, 1e-3))):
        for log in (False, True):
            svg = line_chart(chart(series, log=log))
            assert "nan" not in svg
            assert "inf" not in svg


def test_values_on_hover():
    svg = ElementTree.fromstring(line_chart(chart(Series("a", (0, 10), (0.5, 0.25)), Series("b", (0, 10), (1, 2)))))
    titles = [title.text for title in svg.iter("title")]
    assert titles == ["step 0\na: 0.5 nats\nb: 1 nats", "step 10\na: 0.25 nats\nb: 2 nats"]
    bands = [(float(r.get("x")), float(r.get("width"))) for r in svg.iter("rect")]
    assert bands[0][0] + bands[0][1] == pytest.approx(bands[1][0], abs=0.11)  # no hole between


def test_hover_finds_the_nearest_point_of_another_curve():
    svg = ElementTree.fromstring(line_chart(chart(Series("a", (0, 10), (1, 1)), Series("b", (1, 8, 30), (5, 6, 7)))))
    assert "step 10\na: 1 nats\nb: 6 nats" in [title.text for title in svg.iter("title")]


def test_long_curves_stay_small_and_keep_their_spike():
    y = [1.0] * 50_000
    y[33_333] = 9.0
    svg = line_chart(chart(Series("a", tuple(range(50_000)), tuple(y))))
    (stroke,) = points(svg)
    assert len(stroke) <= 1000
    assert min(y for _, y in stroke) < 25
    assert len(svg) < 80_000


def test_description_says_the_curve_in_words():
    svg = ElementTree.fromstring(line_chart(chart(Series("every step", (0, 1, 2), (3, 1, 2)), log=True)))
    description = svg.find("desc").text
    assert svg.get("role") == "img"
    assert "every step: 3 points, from 3 at step 0 to 2 at 2, lowest 1, highest 3." in description
    assert "nats" in description
    assert "Logarithmic" in description


def test_text_cannot_leave_its_place():
    evil = '</svg><script>alert("1")</script>'
    svg = line_chart(Chart(evil, evil, evil, (Series(evil, (0, 1), (1, 2)),)))
    assert "<script" not in svg
    assert evil in next(ElementTree.fromstring(svg).iter("title")).text
    row = MetricRow(evil, 1.0, 5, evil, Anchor(evil, 0.5))
    assert "<script" not in anchor_chart(row)


ROW = MetricRow("FD-x", 10.0, 100, "p", Anchor("floor", 1.0), (Anchor("blur", 100.0), Anchor("noise", 1000.0)))


def positions(row: MetricRow) -> dict[str, float]:
    svg = ElementTree.fromstring(anchor_chart(row))
    places = {g.find("text").text: float(g.find("line").get("x1")) for g in svg.iter("g") if g.find("line") is not None}
    places["value"] = float(next(svg.iter("circle")).get("cx"))
    return places


def test_a_score_stands_between_floor_and_ceilings_by_logarithm():
    places = positions(ROW)
    assert places["floor 1"] < places["value"] < places["blur 100"] < places["noise 1,000"]
    assert places["value"] - places["floor 1"] == pytest.approx(places["blur 100"] - places["value"], abs=0.11)
    assert places["noise 1,000"] - places["blur 100"] == pytest.approx(places["blur 100"] - places["value"], abs=0.11)


def test_negative_scores_fall_back_to_a_linear_scale():
    row = MetricRow("KD-x", 0.0, 100, "p", Anchor("floor", -1.0), (Anchor("noise", 3.0),))
    places = positions(row)
    assert places["noise 3"] - places["value"] == pytest.approx(3 * (places["value"] - places["floor −1"]), abs=0.3)
    assert "Linear scale" in anchor_chart(row)


def test_labels_do_not_cover_each_other():
    near = MetricRow(
        "FD-x", 1.0, 9, "p", Anchor("floor: real held-out", 1.0), (Anchor("a long name", 1.01), Anchor("c", 1.02))
    )
    svg = ElementTree.fromstring(anchor_chart(near))
    texts = [g.find("text") for g in svg.iter("g") if g.get("class") in ("floor", "ceiling")]
    assert len({(t.get("y"), t.get("text-anchor")) for t in texts}) >= 2
    height = float(svg.get("viewBox").split()[3])
    assert all(float(t.get("y")) < height for t in texts)


def test_no_anchor_or_no_number_draws_nothing():
    assert anchor_chart(MetricRow("FD-x", 1.0, 9, "p")) == ""
    assert anchor_chart(MetricRow("FD-x", math.nan, 9, "p", Anchor("floor", 1.0))) == ""


def test_series_must_pair_up():
    with pytest.raises(ValueError, match="2 x and 1 y"):
        Series("a", (0, 1), (1,))
