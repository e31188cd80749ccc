"""Due and missed nights by catch-up policy, unchanged inputs, and the ledger's JSON at rest."""

import json
from datetime import date, timedelta

import pytest
from light_nights import ALL_DONE

from pipeline.nightly.ledger import STAGES, Night, newer_settled, nights_due, unchanged
from pipeline.nightly.stage_results import StageResults
from pipeline.storage.documents import parse, to_json

pytestmark = pytest.mark.unit

D = date(2026, 11, 24)


def without(done, *stages):
    return StageResults(**{name: getattr(done, name) for name in STAGES if name not in stages})


def day(offset: int) -> date:
    return D + timedelta(days=offset)


def ledgers(**states: str) -> dict[date, Night]:
    """ledgers(m3="held"): the night three days before D."""
    found = {}
    for name, state in states.items():
        when = day(-int(name[1:]))
        found[when] = Night(name="n", date=when.isoformat(), state=state, done=ALL_DONE)
    return found


def days(*offsets: int) -> tuple[date, ...]:
    return tuple(day(offset) for offset in offsets)


@pytest.mark.parametrize(
    ("known", "policy", "run", "missed"),
    [
        ({}, "latest", days(0), ()),
        ({}, "all", days(0), ()),
        ({"m1": "promoted"}, "latest", days(0), ()),
        ({"m3": "held"}, "latest", days(0), days(-2, -1)),
        ({"m3": "held"}, "none", days(0), days(-2, -1)),
        ({"m3": "held"}, "all", days(-2, -1, 0), ()),
        ({"m3": "held", "m2": "failed"}, "all", days(-2, -1, 0), ()),
        ({"m3": "held", "m2": "failed"}, "latest", days(0), days(-2, -1)),
        ({"m2": "running"}, "all", days(-2, -1, 0), ()),
        ({"m2": "running"}, "latest", days(0), days(-2, -1)),
        ({"m3": "failed", "m1": "skipped"}, "all", days(0), ()),
        ({"m0": "held"}, "all", (), ()),
        ({"m0": "missed"}, "latest", (), ()),
        ({"m0": "failed"}, "latest", days(0), ()),
    ],
)
def test_what_is_due_today(known, policy, run, missed):
    assert nights_due(D, D, ledgers(**known), policy) == (run, missed)


@pytest.mark.parametrize(
    ("known", "policy", "run", "missed"),
    [
        ({}, "none", (), days(0)),
        ({"m2": "held"}, "none", (), days(-1, 0)),
        ({"m0": "running"}, "none", days(0), ()),
        ({"m0": "failed"}, "none", days(0), ()),
        ({"m2": "held"}, "latest", days(0), days(-1)),
        ({"m2": "held"}, "all", days(-1, 0), ()),
    ],
)
def test_what_is_due_the_day_after(known, policy, run, missed):
    assert nights_due(D, day(1), ledgers(**known), policy) == (run, missed)


def test_a_night_without_its_report_is_finished_when_asked_for():
    night = Night(name="n", date=D.isoformat(), state="promoted", done=without(ALL_DONE, "report", "retention"))
    assert nights_due(D, day(3), {D: night}, "none") == (days(0), ())
    assert (night.is_settled, night.is_complete, night.next_stage) == (True, False, "report")


def test_a_scheduler_that_was_off_for_a_year_catches_up_with_a_month():
    due = nights_due(D, D, ledgers(m365="held"), "all")
    assert (due.run[0], due.run[-1], len(due.run)) == (day(-31), D, 32)


def test_an_older_night_is_newer_settled():
    assert newer_settled(D, ledgers(m1="held")) is None
    later = {day(1): Night(name="n", date="2026-11-25", state="failed")}
    assert newer_settled(D, later) is None
    later[day(2)] = Night(name="n", date="2026-11-26", state="skipped")
    assert newer_settled(D, later) == day(2)


def night(offset: int, state: str, data: str, settings: str = "s") -> Night:
    done = {"snapshot": {"digest": data}}
    return Night(name="n", date=day(offset).isoformat(), state=state, settings=settings, done=done)


@pytest.mark.parametrize(
    ("earlier", "same"),
    [
        ([], False),
        ([night(-1, "promoted", "a")], True),
        ([night(-1, "held", "a")], True),
        ([night(-1, "failed", "a")], False),
        ([night(-1, "promoted", "b")], False),
        ([night(-1, "promoted", "a", "other")], False),
        ([night(-3, "promoted", "a"), night(-1, "skipped", "a")], True),
        ([night(-3, "promoted", "a"), night(-1, "held", "b")], False),
        ([night(1, "promoted", "a")], False),
    ],
)
def test_unchanged_is_against_the_last_night_that_trained(earlier, same):
    found = unchanged(night(0, "running", "a"), {n.day: n for n in earlier})
    assert (found is not None) == same
    if same:
        assert "nothing changed since the night of 2026-11-2" in found


EVIDENCE = {"model": "v000002", "metric": "KD-x", "value": 0.25, "floor": 0.1, "ceilings": {"noise": 5.0}, "n": 400}
AT_REST = {
    "kind": "night",
    "schema_version": 1,
    "name": "n",
    "date": "2026-11-24",
    "state": "held",
    "reason": "worse",
    "settings": "s",
    "champion": 1,
    "record": 2,
    "attempts": 1,
    "began": "2026-11-24T03:00:00+00:00",
    "ended": "2026-11-24T03:30:00+00:00",
    "done": {
        "snapshot": {"digest": "d", "generation": 2, "train": 9, "heldout": 1, "state": "committed", "uri": "u"},
        "train": {
            "run": "runs/n",
            "checkpoint": "c",
            "step": 12,
            "images": 96,
            "loss": None,
            "dataset_digest": "d",
            "parent": 1,
            "state": "finished",
        },
        "export": {"version": 2, "digest": "m", "sha256": "w"},
        "samples": {"challenger": "samples/2", "champion": "samples/1"},
        "evaluate": {
            "challenger": {**EVIDENCE, "protocol": {"samples.seed": 0, "reference": None}},
            "champion": {**EVIDENCE, "protocol": {"samples.seed": 0, "reference": None}},
            "difference": {"value": 0.5, "low": 0.25, "high": 0.75, "confidence": 0.95, "groups": 20},
            "metrics": {"KD-x": 0.25},
        },
        "gate": {"decision": "hold", "reason": "worse"},
        "promote": {"state": "held", "reason": "worse", "champion": 1},
        "report": {"error": "no space"},
        "retention": {"removed": ["runs/old"]},
    },
    "warnings": ["report: no space"],
}
"""As ledgers at rest: every key that a stage writes."""


@pytest.mark.parametrize("stages", range(len(STAGES) + 1))
def test_a_ledger_at_rest_is_read_and_written_back_byte_for_byte(stages):
    data = (json.dumps({**AT_REST, "done": dict(list(AT_REST["done"].items())[:stages])}, indent=1) + "\n").encode()
    assert to_json(parse(Night, data, "state.json")) == data


def test_the_next_stage_is_the_first_that_is_not_done():
    ledger = Night(name="n", date=D.isoformat())
    seen = []
    while (stage := ledger.next_stage) is not None:
        seen.append(stage)
        ledger = ledger.after(stage, getattr(ALL_DONE, stage))
    assert tuple(seen) == STAGES
