"""Every figure that a page takes from a results file is the one in the newest file."""

import json

import pytest
from figures import PAGES, corrected, marks, measured, outdated
from outcome import newest
from scaling import PAGE, tables, with_tables

pytestmark = pytest.mark.unit

VALUES = {("commit", "requests"): 4.0162, ("train", "share"): 0.9912, ("million", "rate"): 1241.8, ("a", "n"): 12}


def value_of(script, figure):
    return float(VALUES[script, figure])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_hold_what_was_measured(page):
    assert outdated(page.read_text(), measured) == [], "python benchmarks/figures.py --write"


def test_tables_are_those_of_the_results():
    text = PAGE.read_text()
    assert with_tables(text, tables()) == text, "python benchmarks/scaling.py --write"
    with pytest.raises(KeyError):
        with_tables("<!-- table: other -->\n<!-- end -->", tables())


def test_some_figure_is_marked():
    assert sum(1 for page in PAGES for _ in marks(page.read_text())) >= 10


@pytest.mark.parametrize(
    "text",
    [
        "takes 4.02<!-- results: commit/requests --> requests",
        "takes 4<!-- results: commit/requests --> requests",
        "**99.1 %**<!-- results: train/share 100x -->",
        "loses 0.9 %<!-- results: train/share 100-100x -->",
        "1,242 img/s<!-- results: million/rate -->",
        "| 0.8 ms<!-- results: million/rate 1000x --> |".replace("1000x", "1/x").replace("0.8 ms", "0.0008 s"),
        "12<!-- results: a/n --> of 4.016<!-- results: commit/requests -->",
    ],
)
def test_figures_that_are_right(text):
    assert outdated(text, value_of) == []
    assert corrected(text, value_of) == text


def test_a_figure_that_is_not_is_told_and_corrected():
    text = "takes 4.05<!-- results: commit/requests --> requests, 1,300 img/s<!-- results: million/rate -->"
    assert outdated(text, value_of) == [
        "commit/requests: 4.05 there, 4.02 measured",
        "million/rate: 1,300 there, 1,242 measured",
    ]
    right = "takes 4.02<!-- results: commit/requests --> requests, 1,242 img/s<!-- results: million/rate -->"
    assert corrected(text, value_of) == right


@pytest.mark.parametrize("text", ["fast<!-- results: train/share -->", "0.99 | fast<!-- results: train/share -->"])
def test_a_comment_without_a_number_is_refused(text):
    with pytest.raises(ValueError, match="right behind a number"):
        outdated(text, value_of)


def test_the_newest_result_counts(tmp_path):
    for day, value in (("2026-01-02", 2), ("2026-01-01", 1)):
        (tmp_path / f"{day}-2-mine.json").write_text(json.dumps({"a": {"value": value}}))
    (tmp_path / "2026-01-03-2-not-mine.json").write_text("{}")
    assert newest("mine", tmp_path)["a"]["value"] == 2
    with pytest.raises(FileNotFoundError, match=r"benchmarks/other\.py --save"):
        newest("other", tmp_path)
