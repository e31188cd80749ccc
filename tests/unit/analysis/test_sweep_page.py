"""The page of a sweep: the numbers of its table, the right point on top, and rates that leave start-up out."""

import re
from xml.etree import ElementTree

import pyarrow as pa
import pytest
from drawn import tips

from pipeline.analysis.sweep_page import best_row, sweep_lines, sweep_page
from pipeline.report.curves import steady_rate
from pipeline.report.render.content import Chart, Series
from pipeline.report.render.line_chart import line_chart, looks
from pipeline.report.render.page import render
from pipeline.report.render.svg import stroke
from pipeline.schema import SWEEP

pytestmark = pytest.mark.unit


def row(sampler="ddim", steps=10, fd=5.0, **changes):
    values = {
        "sampler": sampler,
        "steps": steps,
        "ema": "ema",
        "eta": 0.0,
        "seed": 3,
        "samples": 600,
        "failed": 0,
        "evaluations": 2 * steps - 1 if sampler == "heun" else steps,
        "metric": "FD-class-cnn",
        "fd": fd,
        "floor": 0.75,
        "blurred": 80.0,
        "noise": 46.0,
        "n": 500,
        "reference_n": 1300,
        "extractor": "class-cnn",
        "weights_sha256": "ab" * 32,
        "kernel_metric": "KD-class-cnn",
        "kd": 0.25,
        "kd_spread": 0.0625,
        "img_s": 120.0,
        "actors": 2,
        "actor_seconds": 2 / 120,
        "point": f"points/{sampler}-{steps}-ema",
        "plan": "p",
        "evaluation": "e",
    }
    return {**values, **changes}


def table(*rows):
    return pa.Table.from_pylist(list(rows), schema=SWEEP)


ROWS = (row(fd=9.0), row(steps=20, fd=4.0), row("heun", 5, fd=2.5), row("heun", 20, fd=2.5))


def page(*rows, warnings=()):
    return sweep_page(table(*rows), {"Model": "m", "Dataset": "d"}, warnings)


def shard_log(*shards):
    columns = ("started", "seconds", "img_s")
    return pa.table({name: [float(shard[i]) for shard in shards] for i, name in enumerate(columns)})


# --- the page --------------------------------------------------------------------------------------------------------


def test_of_equal_distances_the_cheaper_point_is_best():
    best = best_row(ROWS)
    assert (best["sampler"], best["steps"]) == ("heun", 5)
    told = page(*ROWS).verdict
    assert told.kind == "good"
    assert "Best: heun, 5 steps, ema, 9 network evaluations an image. FD-class-cnn 2.5 at n = 500" in told.text


def test_a_table_row_a_point_with_what_is_unbeaten_marked():
    (points,) = page(*ROWS).tables
    by_name = {(cells[0], cells[2]): dict(zip(points.columns, cells, strict=True)) for cells in points.rows}
    assert {key: bool(cells["Unbeaten"]) for key, cells in by_name.items()} == {
        ("ddim", "10"): False,  # heun's 5 steps are better and cheaper
        ("ddim", "20"): False,
        ("heun", "5"): True,
        ("heun", "20"): False,  # as good as 5 steps, and dearer
    }
    heun = by_name["heun", "20"]
    assert (heun["Evaluations"], heun["FD-class-cnn"], heun["n"]) == ("39", "2.5", "500")
    assert heun["KD-class-cnn \N{PLUS-MINUS SIGN} sd"] == "0.25 \N{PLUS-MINUS SIGN} 0.06"
    assert (heun["img/s"], heun["Actors"], heun["Actor-s"]) == ("120", "2", "0.01667")
    assert "Failed" not in points.columns
    assert "Failed" in page(row(), row(steps=20, failed=2, n=498)).tables[0].columns


def test_one_line_a_sampler_and_weights_in_order_of_cost_with_the_floor_behind():
    by_evaluations, by_seconds = page(*ROWS).charts
    assert [(s.label, s.x, s.y) for s in by_evaluations.series[:2]] == [
        ("ddim", (10, 20), (9.0, 4.0)),
        ("heun", (9, 39), (2.5, 2.5)),
    ]
    floor = by_evaluations.series[-1]
    assert (floor.x, floor.y, floor.muted) == ((9, 39), (0.75, 0.75), True)
    assert by_evaluations.log_x
    assert by_evaluations.log  # 9 is more than ten times 0.75
    assert not page(row(fd=6.0), row(fd=4.0, steps=20)).charts[0].log
    assert by_seconds.series[0].x == (2 / 120, 2 / 120)
    labels = [s.label for s in page(row(), row(ema="raw")).charts[0].series]
    assert labels[:2] == ["ddim, ema", "ddim, raw"]


def test_it_says_that_noise_is_common_and_what_the_floor_and_ceilings_are():
    text = render(page(*ROWS))
    assert "sample ids, 0 to 599, from the same noise (seed 3)" in text
    for value in ("0.75", ">80<", ">46<", "Quality against cost", "class-cnn abababab", "n = 500 against 1,300"):
        assert value in text
    assert not re.search(r"(src|href)=\"(?!data:)", text)
    assert "\nTraining\n" not in text


def test_points_without_a_shard_log_are_in_all_but_the_chart_of_seconds():
    lost = {"img_s": None, "actors": None, "actor_seconds": None}
    assert len(page(row(**lost), row(steps=20, **lost)).charts) == 1
    partly = page(row(**lost), row(steps=20, fd=4.0))
    assert partly.charts[1].series[0].y == (4.0,)
    assert partly.tables[0].rows[0][-4:-1] == ("\N{EN DASH}",) * 3


def test_different_n_and_warnings_of_the_evaluation_are_told():
    uneven = page(row(), row(steps=20, fd=4.0, n=498)).verdict
    assert uneven.kind == "warning"
    assert "different n" in uneven.text
    assert page(row(), warnings=["the extractor cannot judge"]).verdict.kind == "warning"


def test_lines_of_a_terminal_stand_in_columns():
    head, first, *_ = lines = sweep_lines(table(*ROWS))
    assert len(lines) == 5
    assert len({len(line) for line in lines}) == 1
    assert head.split() == ["sampler", "steps", "weights", "evaluations", "FD-class-cnn", "img/s"]
    assert first.split() == ["ddim", "10", "ema", "10", "9", "120"]


def test_without_a_floor_the_page_has_no_level_and_the_verdict_says_so():
    rows = [row(fd=9.0, floor=None), row(steps=20, fd=4.0, floor=None)]
    schema = SWEEP.set(SWEEP.get_field_index("floor"), SWEEP.field("floor").with_nullable(True))
    made = sweep_page(pa.Table.from_pylist(rows, schema=schema), {}, ("no floor: the dataset has 0 held-out images",))
    assert [series.label for series in made.charts[0].series] == ["ddim"]
    assert "n = 500: no floor, blurred images 80" in made.verdict.text
    assert "No floor: the dataset has 0 held-out images." in made.verdict.text
    assert [fact.value for fact in made.facts if fact.name.startswith("Floor")] == ["\N{EN DASH}"]


# --- charts ----------------------------------------------------------------------------------------------------------


def test_a_logarithmic_x_axis_spaces_equal_ratios_equally_and_dots_lie_on_points():
    series = Series("a", (10.0, 100.0, 1000.0), (1.0, 2.0, 3.0))
    svg = ElementTree.fromstring(line_chart(Chart("FD", "evaluations", "", (series,), log_x=True, dots=True)))
    dots = [(float(c.get("cx")), float(c.get("cy"))) for c in svg.findall("circle")]
    assert dots[1][0] - dots[0][0] == pytest.approx(dots[2][0] - dots[1][0], abs=0.11)
    path = svg.find("path").get("d")
    points = [tuple(map(float, p.split())) for p in re.split("l0 0L?|L", path[1:]) if p]
    assert points == dots


def test_the_pointer_is_told_only_of_points_that_are_there():
    """Another sampler's nearest point has another cost."""
    series = (
        Series("a", (10.0,), (1.0,)),
        Series("b", (19.0,), (2.0,)),
        Series("floor", (10.0, 19.0), (0.5, 0.5), True),
    )
    told = tips(line_chart(Chart("FD", "evaluations", "", series, log_x=True, dots=True)))
    assert [tip.splitlines()[1:] for tip in told] == [["a: 1", "floor: 0.5"], ["b: 2", "floor: 0.5"]]


def test_fifteen_curves_look_different():
    assert len({stroke(i) for i in range(15)}) == 15


def test_colours_are_samplers_and_dashes_are_weights_in_drawing_and_legend():
    rows = [row(s, ema=w) for s in ("ddim", "heun") for w in ("ema", "raw")]
    chart = page(*rows).charts[0]
    assert looks(chart) == ["c0", "c0 d1", "c1", "c1 d1", "quiet"]
    lines = [p.get("class") for p in ElementTree.fromstring(line_chart(chart)).findall("path")]
    assert lines == ["line c0", "line c0 d1", "line c1", "line c1 d1", "line quiet muted"]
    legend = re.search(r'<ul class="legend">(.*?)</ul>', render(page(*rows)), re.S)[1]
    assert re.findall('class="([^"]*)"', legend) == [*looks(chart)[:4], "quiet muted"]


def test_a_line_follows_its_steps_even_where_more_of_them_were_faster():
    slow, fast = row(actor_seconds=0.5), row(steps=20, fd=4.0, actor_seconds=0.25)
    chart = page(fast, slow).charts[1]
    assert (chart.series[0].x, chart.series[0].y) == ((0.5, 0.25), (5.0, 4.0))
    told = tips(line_chart(chart))
    assert ["ddim: 4" in told[0], "ddim: 5" in told[1]] == [True, True]


# --- rates -----------------------------------------------------------------------------------------------------------


def test_rate_while_all_actors_are_at_work():
    # Two actors; the second starts at 10 and ends at 25, when the first is alone: 5 + 10 img/s from 10 to 25.
    assert steady_rate(shard_log((0, 20, 5), (10, 15, 10), (20, 20, 5))) == (pytest.approx(15.0), 2)


def test_time_between_invocations_is_no_part_of_the_rate():
    assert steady_rate(shard_log((0, 10, 4), (90_000, 10, 4))) == (pytest.approx(4.0), 1)


def test_first_shards_are_left_out_where_there_are_enough():
    """The first took 40 seconds of compilation."""
    assert steady_rate(shard_log((0, 40, 1), (40, 10, 6), (50, 10, 6))) == (pytest.approx(6.0), 1)
    rate, _ = steady_rate(shard_log((0, 40, 1), (40, 10, 6)))
    assert rate == pytest.approx((40 * 1 + 10 * 6) / 50)


def test_clocks_that_disagree_by_microseconds_are_not_a_second_actor():
    rate, actors = steady_rate(shard_log((0, 10.00001, 3), (10, 10.00001, 3), (20, 10, 3)))
    assert (round(rate, 2), actors) == (3.0, 1)


def test_no_shards_have_no_rate():
    assert steady_rate(shard_log()) is None
    assert steady_rate(shard_log((5, 0, 0))) is None
