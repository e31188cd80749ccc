"""Request rows: valid values, invalid ones with line and reason, and the request of a sample id."""

import json
import tracemalloc
from datetime import date
from decimal import Decimal

import numpy as np
import pytest

from pipeline.errors import DataError
from pipeline.generation.requests import BadRow, RequestRules, Requests, normalise_requests
from pipeline.schema import REQUESTS

pytestmark = pytest.mark.unit

RULES = RequestRules(
    num_classes=3, num_timesteps=100, guidance_error=None, sampler="ddim", steps=10, seed=7, guidance=None
)
PLAIN = RequestRules(
    num_classes=None, num_timesteps=100, guidance_error="no classes", sampler="ddim", steps=10, seed=7, guidance=None
)


def table(*rows, rules=RULES, unit="line"):
    return normalise_requests(enumerate(rows, start=2), unit, rules)


def refused(*rows, rules=RULES):
    with pytest.raises(DataError) as caught:
        table(*rows, rules=rules)
    return str(caught.value).splitlines()


def test_what_a_row_does_not_say_is_filled_in_and_text_is_read():
    asked = table(
        {"request_id": "a", "count": "3", "label": "2", "guidance": "1.5", "seed": "", "steps": None},
        {"request_id": 17, "count": 2.0, "sampler": "heun", "seed": 2**63 - 1},
    )
    assert asked.schema.equals(REQUESTS)
    assert [tuple(row.values()) for row in asked.to_pylist()] == [
        ("a", 3, 2, 1.5, 7, 10, "ddim", None),
        ("17", 2, None, None, 2**63 - 1, 10, "heun", None),
    ]


@pytest.mark.parametrize("three", [3, 3.0, "3", "3.0", " 3. ", "+3", "3e0", Decimal(3), Decimal("3.0")])
def test_a_whole_number_has_many_forms(three):
    (row,) = table({"request_id": "a", "count": three, "label": 2.0, "seed": three, "steps": three}).to_pylist()
    assert (row["count"], row["label"], row["seed"], row["steps"]) == (3, 2, 3, 3)


@pytest.mark.parametrize("empty", [None, "", " ", "NaN", "nan", "<NA>", "None", "null", float("nan"), Decimal("nan")])
def test_an_empty_cell_is_no_value_in_every_optional_column(empty):
    names = ("label", "guidance", "seed", "steps", "sampler")
    asked = table({"request_id": "a", "count": 1, **dict.fromkeys(names, empty)})
    assert asked.to_pylist() == table({"request_id": "a", "count": 1}).to_pylist()


def test_a_request_may_be_called_none():
    assert table({"request_id": "None", "count": 1})["request_id"].to_pylist() == ["None"]


def test_other_columns_are_carried_as_json():
    row = {"request_id": "a", "count": 1, "prompt": "elf", "when": date(2026, 1, 2), "tags": [1, {"x": None}]}
    assert json.loads(table(row)["extra"][0].as_py()) == {
        "prompt": "elf",
        "when": "2026-01-02",
        "tags": [1, {"x": None}],
    }
    assert "cannot be stored" in refused({"request_id": "a", "count": 1, "blob": b"x"})[1]
    assert "cannot be stored" in refused({"request_id": "a", "count": 1, "score": float("inf")})[1]
    empty = table({"request_id": "a", "count": 1, "score": float("nan"), "more": [{"x": float("nan")}]})
    assert json.loads(empty["extra"][0].as_py()) == {"score": None, "more": [{"x": None}]}


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"label": 3}, "label 3 is unknown: the classes of the model are 0..2"),
        ({"label": -1}, "label -1 is unknown"),
        ({"label": "cat"}, "label must be a whole number (got 'cat')"),
        ({"count": 0}, "count must be at least 1 (got 0)"),
        ({"count": -4}, "count must be at least 1 (got -4)"),
        ({"count": 1.5}, "count must be a whole number (got 1.5)"),
        ({"count": True}, "count must be a whole number (got True)"),
        ({"count": None}, "count is missing"),
        ({"count": 2**63}, "count must be at least 1"),
        ({"request_id": ""}, "request_id is missing"),
        ({"request_id": 1.5}, "request_id must be a text or a whole number (got 1.5)"),
        ({"guidance": True}, "guidance must be a finite number, at least 0 (got True)"),
        ({"count": float("nan")}, "count is missing"),
        ({"count": "2.5"}, "count must be a whole number (got '2.5')"),
        ({"count": Decimal("2.5")}, "count must be a whole number"),
        ({"count": "1e999999999"}, "count must be a whole number"),
        ({"count": float("inf")}, "count must be a whole number (got inf)"),
        ({"label": 2.5}, "label must be a whole number (got 2.5)"),
        ({"steps": "2.5"}, "steps must be a whole number (got '2.5')"),
        ({"seed": 0.5}, "seed must be a whole number (got 0.5)"),
        ({"seed": 2.0**60}, "seed 1.152921504606847e+18 is a float above 2^53, which loses digits"),
        ({"seed": "1.152921504606847e+18"}, "seed 1.152921504606847e+18 is a float above 2^53"),
        ({"request_id": float("nan")}, "request_id is missing"),
        ({"guidance": "inf"}, "guidance must be a finite number"),
        ({"guidance": -1}, "guidance must be a finite number"),
        ({"guidance": "much"}, "guidance must be a finite number"),
        ({"seed": -1}, "seed must lie in 0..2^63-1 (got -1)"),
        ({"seed": 2**63}, "seed must lie in"),
        ({"steps": 101}, "steps must lie in 1..100 (got 101)"),
        ({"sampler": "euler"}, "sampler 'euler' is unknown: one of ddpm, ddim, dpm++2m, dpm++2m-sde, heun"),
    ],
)
def test_a_bad_value_is_told_with_line_and_reason(values, reason):
    lines = refused({"request_id": "good", "count": 1}, {"request_id": "bad", "count": 1, **values})
    assert lines[0] == "1 of 2 requests are invalid:"
    assert lines[1].startswith(f"line 3: {reason}")
    assert len(lines) == 2


def test_every_bad_row_is_listed_in_order_and_every_fault_of_it():
    lines = refused(
        {"request_id": "a", "count": 0, "label": 9},
        {"request_id": "b", "count": 1},
        BadRow("is not JSON: oh"),
        {"request_id": "b", "count": 5},
        {"request_id": "a", "count": -5},
    )
    assert lines == [
        "4 of 5 requests are invalid:",
        "line 2: count must be at least 1 (got 0); label 9 is unknown: the classes of the model are 0..2",
        "line 4: is not JSON: oh",
        "line 5: request_id 'b' repeats line 3",
        "line 6: count must be at least 1 (got -5); request_id 'a' repeats line 2",
    ]


def test_a_model_without_classes_or_dropout_says_why():
    lines = refused(
        {"request_id": "a", "count": 1, "label": 0}, {"request_id": "b", "count": 1, "guidance": 2}, rules=PLAIN
    )
    assert lines[1:] == ["line 2: label 0: the model has no classes", "line 3: guidance 2: no classes"]


def test_nothing_and_too_much_are_refused():
    assert refused() == ["the table has no requests"]
    rows = [{"request_id": str(i), "count": 2**62} for i in range(2)]
    assert "ids have 64 bits" in refused(*rows)[0]


def test_ids_are_counted_up_over_the_rows():
    asked = Requests(table(*({"request_id": str(i), "count": c} for i, c in enumerate((3, 1, 2)))))
    assert asked.starts.tolist() == [0, 3, 4, 6]
    assert asked.indices(range(6)).tolist() == [0, 0, 0, 1, 2, 2]
    assert asked.indices(range(2, 5)).tolist() == [0, 1, 2]
    assert asked.bounds.tolist() == [0, 6]


def test_a_segment_ends_where_sampler_steps_or_guidance_change_and_nowhere_else():
    settings = [
        {"label": 1, "seed": 1},
        {"label": 2, "seed": 2},
        {"guidance": 2.0},
        {"guidance": 0.0},
        {},
        {"steps": 9},
        {"steps": 9, "sampler": "heun"},
    ]
    asked = Requests(table(*({"request_id": str(i), "count": 2, **s} for i, s in enumerate(settings))))
    assert asked.bounds.tolist() == [0, 4, 6, 8, 10, 12, 14]


def test_a_million_rows_are_checked_in_bounded_memory_and_time():
    """A tenth of a million here: Python holds a chunk of 65,536 at a time, the rest is Arrow's."""
    rows = ((i, {"request_id": f"r{i}", "count": 1 + i % 3, "label": i % 3}) for i in range(100_000))
    tracemalloc.start()
    asked = Requests(normalise_requests(rows, "row", RULES))
    assert tracemalloc.get_traced_memory()[1] < 80e6
    tracemalloc.stop()
    assert asked.num_samples == int(np.sum(1 + np.arange(100_000) % 3))
    assert asked.indices(range(asked.num_samples - 1, asked.num_samples)).tolist() == [99_999]
