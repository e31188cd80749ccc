"""Charts draw the points of their data at the right positions, in the text alternative and in tooltips."""

import math
import re
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa
import pytest
from drawn import tips

from pipeline.report.curves import training_charts, training_rate
from pipeline.report.render.anchor_chart import anchor_chart
from pipeline.report.render.chart_table import MOST_ROWS, chart_table
from pipeline.report.render.content import Anchor, Chart, MetricRow, Report, Series
from pipeline.report.render.line_chart import line_chart
from pipeline.report.render.page import render
from pipeline.schema import METRICS

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


def test_gaps_break_the_line():
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
    drawn = line_chart(chart(Series("a", (0, 10), (0.5, 0.25)), Series("b", (0, 10), (1, 2))))
    assert tips(drawn) == ["step 0\na: 0.5 nats\nb: 1 nats", "step 10\na: 0.25 nats\nb: 2 nats"]
    svg = ElementTree.fromstring(drawn)
    assert svg.find("title").text == "Loss"
    bands = [(float(r.get("x")), float(r.get("width"))) for r in svg.iter("rect")]
    assert bands[0][0] + bands[0][1] == pytest.approx(bands[1][0], abs=0.11)  # no hole between


def test_hover_finds_the_nearest_point_of_another_curve():
    svg = line_chart(chart(Series("a", (0, 10), (1, 1)), Series("b", (1, 8, 30), (5, 6, 7))))
    assert "step 10\na: 1 nats\nb: 6 nats" in tips(svg)


def test_many_curves_and_long_names_stay_within_the_drawing():
    many = [Series(f"run {'x' * 50} {i}", tuple(range(200)), (1.0,) * 200) for i in range(30)]
    svg = line_chart(chart(*many))
    told = tips(svg)
    assert len(told) * len(many) <= 30 * 20
    assert max(len(line) for tip in told for line in tip.split("\n")) <= 30
    assert max(tip.count("\n") for tip in told) < 13


def test_a_chart_is_a_table_too():
    every = Series("every step", tuple(range(100)), (9.0,) * 100, muted=True)
    y = [1.0] * 100
    y[33], y[34] = 7.0, 0.5
    table = chart_table(chart(every, Series("a", tuple(range(100)), tuple(y)), Series("b", (0, 50), (2.0, math.nan))))
    assert table.columns == ("step", "a, nats", "b, nats")
    assert len(table.rows) <= MOST_ROWS + 6
    rows = {row[0]: row[1:] for row in table.rows}
    assert (rows["0"], rows["33"], rows["34"], rows["99"]) == (("1", "2"), ("7", "–"), ("0.5", "–"), ("1", "–"))
    assert chart_table(chart(every)).rows[0] == ("0", "9")
    assert len(chart_table(chart(Series("a", (0, 1), (1, 2)))).rows) == 2


def test_long_curves_stay_small_and_keep_their_spike():
    y = [1.0] * 50_000
    y[33_333] = 9.0
    svg = line_chart(chart(Series("a", tuple(range(50_000)), tuple(y))))
    (stroke,) = points(svg)
    assert len(stroke) <= 1000
    assert min(y for _, y in stroke) < 25
    assert len(svg) < 80_000


def test_the_text_alternative_describes_the_curve():
    svg = ElementTree.fromstring(line_chart(chart(Series("every step", (0, 1, 2), (3, 1, 2)), log=True)))
    description = svg.find("desc").text
    assert svg.get("role") == "img"
    assert "every step: 3 points, from 3 at step 0 to 2 at 2, lowest 1, highest 3." in description
    assert "nats" in description
    assert "Logarithmic" in description


def test_text_is_escaped():
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


NEW_COLUMNS = ("skew_seconds", "slowest_rank", "loss_by_t")


def metrics(sizes, **columns):
    """METRICS of steps 1, 2, ...: the world size of each, and whole columns by name."""
    steps = len(sizes)
    plain = {"epoch": 0, "loss": 0.5, "lr": 1e-3, "grad_norm": 1.0, "step_seconds": 2.0, "data_wait_seconds": 0.1}
    values = {name: [value] * steps for name, value in plain.items()}
    values |= {"step": list(range(1, steps + 1)), "images": [32 * s for s in range(1, steps + 1)], "world_size": sizes}
    values |= {name: [None] * steps for name in NEW_COLUMNS} | columns
    return pa.table(values, schema=METRICS)


def titled(charts, title):
    return next((chart for chart in charts if chart.title == title), None)


def test_loss_by_timestep_is_the_mean_of_each_tenth_over_phases_of_doubling_length():
    losses = np.random.default_rng(0).uniform(0.01, 1.0, (16, 10))
    losses[8:, 3] = np.nan  # no image fell there in the whole last half
    losses[9, 7] = np.nan
    lists = [None, *[[None if np.isnan(v) else v for v in row] for row in losses]]  # the first step has no list at all
    chart = titled(training_charts({"a": metrics([1] * 17, loss_by_t=lists)}), "Loss by timestep")
    labels = [series.label for series in chart.series]
    assert labels == ["steps 10 to 17", "steps 6 to 9", "steps 4 to 5", "steps 2 to 3"]
    for series, rows in zip(chart.series, (slice(8, 16), slice(4, 8), slice(2, 4), slice(0, 2)), strict=True):
        assert series.x == (5, 15, 25, 35, 45, 55, 65, 75, 85, 95)
        expected = [np.mean([v for v in column if not np.isnan(v)] or [np.nan]) for column in losses[rows].T]
        np.testing.assert_allclose(series.y, expected, rtol=1e-12)
    assert np.isnan(chart.series[0].y[3])
    html = render(Report("r", charts=(chart,)))
    assert "t = 0 has the least noise" in html
    assert 'class="last"' not in html, "the last value of a profile is not the current state of the run"


def test_loss_by_timestep_of_several_runs_covers_the_last_half():
    lists = [[float(step)] * 10 for step in range(1, 9)]
    tables = {name: metrics([1] * 8, loss_by_t=lists) for name in ("a", "b")}
    tables["old"] = metrics([1] * 8).drop_columns(NEW_COLUMNS)
    chart = titled(training_charts(tables), "Loss by timestep")
    assert [series.label for series in chart.series] == ["a", "b"]
    assert all(series.y == (6.5,) * 10 for series in chart.series)


def test_loss_by_timestep_of_short_runs():
    for steps, labels in ((1, ["steps 1 to 1"]), (2, ["steps 2 to 2", "steps 1 to 1"])):
        table = metrics([1] * steps, loss_by_t=[[0.5] * 10] * steps)
        assert [s.label for s in titled(training_charts({"a": table}), "Loss by timestep").series] == labels


def test_rank_skew_is_of_the_steps_with_several_ranks():
    sizes = [2, 2, 1, 2, 4]
    table = metrics(sizes, skew_seconds=[0.1, 0.2, 0.0, None, 0.5], slowest_rank=[1, 0, 0, None, 1])
    chart = titled(training_charts({"a": table}), "Rank skew")
    (series,) = chart.series
    assert (series.x, series.y) == ((1, 2, 5), (0.1, 0.2, 0.5))
    assert chart.unit == "s"
    assert "13.3% of the time of these steps; rank 1 is the slowest in 67% of them." in chart.note


def test_long_skew_has_means_before_every_step():
    skew = [step / 100 for step in range(1, 301)]
    chart = titled(training_charts({"a": metrics([2] * 300, skew_seconds=skew)}), "Rank skew")
    every, means = chart.series
    assert (every.muted, means.muted) == (True, False)
    assert every.y == tuple(skew)
    assert means.y[0] == pytest.approx(np.mean(skew[:3]))


def test_a_single_worker_has_no_skew_and_older_runs_have_neither_chart():
    alone = metrics([1] * 4, skew_seconds=[0.0] * 4, slowest_rank=[0] * 4)
    for table in (alone, metrics([2] * 4), metrics([2] * 4).drop_columns(NEW_COLUMNS)):
        charts = training_charts({"a": table})
        assert titled(charts, "Rank skew") is None
        assert titled(charts, "Loss by timestep") is None
        assert all(line_chart(chart) for chart in charts)
    mixed = pa.concat_tables([metrics([2] * 4).drop_columns(NEW_COLUMNS), alone], promote_options="default")
    assert titled(training_charts({"a": mixed}), "Rank skew") is None


def test_a_note_lists_changes_of_the_world_size():
    sizes = [2] * 3 + [1] * 2 + [4]
    said = "World size 2 → 1 at step 4, 1 → 4 at step 6."
    assert titled(training_charts({"a": metrics(sizes)}), "Training speed").note == said
    shuffled = metrics(sizes).take([5, 0, 3, 1, 4, 2])
    assert titled(training_charts({"a": shuffled}), "Training speed").note == said
    both = training_charts({"a": metrics(sizes), "b": metrics([2] * 6)})
    assert titled(both, "Training speed").note == f"a: {said}"
    assert titled(training_charts({"a": metrics([2] * 6)}), "Training speed").note == ""
    restless = titled(training_charts({"a": metrics([1, 2] * 8)}), "Training speed").note
    assert restless.endswith("2 → 1 at step 7 and 9 more.")
    assert training_rate("a", metrics(sizes)).note.startswith("2 then 1 then 4 workers")
