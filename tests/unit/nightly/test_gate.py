"""The gate: promote and hold by interval, floor and ceilings; refusal of different protocols."""

import pytest

from pipeline.config.nightly import GateConfig
from pipeline.errors import DataError
from pipeline.nightly.gate import Difference, Evidence, gate

pytestmark = pytest.mark.unit


def evidence(model="v2", value=0.5, **changes) -> Evidence:
    values = {
        "model": model,
        "metric": "KD-class-cnn",
        "value": value,
        "floor": 0.1,
        "ceilings": {"blurred": 1.1, "noise": 5.0},
        "n": 400,
        "protocol": {"dataset": "d1", "seed": 0, "steps": 50},
    }
    return Evidence(**{**values, **changes})


def difference(low, high, confidence=0.95) -> Difference:
    return Difference(value=(low + high) / 2, low=low, high=high, confidence=confidence, groups=20)


@pytest.mark.parametrize(
    ("low", "high", "tolerance", "decision", "why"),
    [
        (-0.3, -0.1, 0.0, "promote", "significantly better"),
        (-0.3, 0.0, 0.0, "promote", "not worse"),
        (-0.3, 0.001, 0.0, "hold", "may be worse"),
        (-0.3, 0.009, 0.01, "promote", "not worse by more than 0.01"),  # 0.01 of (1.1 - 0.1)
        (-0.3, 0.011, 0.01, "hold", "may be worse by more than 0.01"),
        (0.1, 0.3, 0.01, "hold", "significantly worse"),
        (0.001, 0.009, 0.01, "promote", "not worse"),
    ],
)
def test_the_whole_interval_must_be_below_the_tolerance(low, high, tolerance, decision, why):
    rules = GateConfig(tolerance=tolerance)
    verdict = gate(evidence(), evidence("v1", 0.6), difference(low, high), rules)
    assert verdict.decision == decision
    assert why in verdict.reason
    assert "0.5 against 0.6 of v1 at n = 400" in verdict.reason


@pytest.mark.parametrize(("value", "decision"), [(1.0, "promote"), (1.1, "hold"), (2.0, "hold")])
def test_without_a_champion_the_lower_ceiling_counts(value, decision):
    verdict = gate(evidence(value=value), None, None, GateConfig())
    assert (verdict.decision, "1.1" in verdict.reason) == (decision, True)


def test_a_stated_ceiling_counts_instead():
    assert gate(evidence(value=0.5), None, None, GateConfig(ceiling=0.4)).decision == "hold"
    assert gate(evidence(value=3.0), None, None, GateConfig(ceiling=4.0)).decision == "promote"


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"protocol": {"dataset": "d0", "seed": 0, "steps": 50}}, "dataset: 'd1', champion 'd0'"),
        ({"protocol": {"dataset": "d1", "seed": 7, "steps": 50}}, "seed: 0, champion 7"),
        ({"protocol": {"dataset": "d1", "seed": 0}}, "steps: 50, champion None"),
        ({"n": 399}, "n: 400, champion 399"),
        ({"metric": "KD-rotation-cnn"}, "metric: 'KD-class-cnn'"),
    ],
)
def test_unequal_protocols_are_refused_by_name(changes, named):
    with pytest.raises(DataError, match="under different protocols") as caught:
        gate(evidence(), evidence("v1", **changes), difference(-1, -0.5), GateConfig())
    assert named in str(caught.value)


def test_a_metric_that_cannot_rank_real_images_promotes_nobody():
    blind = {"floor": 1.2}
    assert gate(evidence(**blind), None, None, GateConfig()).decision == "hold"
    verdict = gate(evidence(**blind), evidence("v1", **blind), difference(-1, -0.5), GateConfig())
    assert (verdict.decision, "cannot judge" in verdict.reason) == ("hold", True)


def test_a_comparison_needs_the_interval_that_was_asked_for():
    for given in (None, difference(-1, -0.5, confidence=0.5)):
        with pytest.raises(DataError, match="no interval"):
            gate(evidence(), evidence("v1"), given, GateConfig())
