"""The gate: promote the challenger or keep the champion, from two evaluations under one protocol. Pure.

The score is a kernel distance (lower is better, unbiased at every n). Both models draw the same sample ids from the
same noise, so the gate tests the paired difference, with a jackknife interval over groups of sample ids.
"""

from typing import Any, Literal

from pipeline.config.base import Section
from pipeline.config.nightly import GateConfig
from pipeline.errors import DataError

MOST_NAMED = 8


class Evidence(Section):
    """One model's score with floor and ceilings. protocol: everything that decides the score except the model."""

    model: str
    metric: str
    value: float
    floor: float
    ceilings: dict[str, float]
    n: int
    protocol: dict[str, Any]


class Difference(Section):
    """Challenger minus champion over equal sample ids. low, high: jackknife interval, leaving out each group of ids."""

    value: float
    low: float
    high: float
    confidence: float
    groups: int


class Verdict(Section):
    """Decision of the gate with its reason."""

    decision: Literal["promote", "hold"]
    reason: str


def different_protocol(ours: Evidence, theirs: Evidence) -> list[str]:
    """Protocol fields that differ between the two evaluations, each with both values."""
    one, other = ({"metric": e.metric, "n": e.n, **e.protocol} for e in (ours, theirs))
    different = [name for name in sorted(one.keys() | other.keys()) if one.get(name) != other.get(name)]
    return [f"{name}: {one.get(name)!r}, champion {other.get(name)!r}" for name in different]


def gate(challenger: Evidence, champion: Evidence | None, difference: Difference | None, rules: GateConfig) -> Verdict:
    """Promote or hold, with the reason. Raises DataError naming the fields when the two protocols differ.

    Without a champion the challenger must beat the lowest ceiling (or gate.ceiling). With a champion the upper end of
    the difference's interval must be at most `tolerance` times the distance from floor to ceiling.
    """
    ceiling = min(challenger.ceilings.values())
    if champion is not None:
        different = different_protocol(challenger, champion)
        if different:
            raise DataError(
                f"{challenger.model} and champion {champion.model} were evaluated under different protocols and cannot "
                "be compared: " + "; ".join(different[:MOST_NAMED])
            )
    if not challenger.floor < ceiling:
        return Verdict(
            decision="hold",
            reason=f"{challenger.metric} scores held-out real images ({challenger.floor:.4g}) no better than degraded "
            f"ones ({ceiling:.4g}): this metric cannot judge these images",
        )
    if champion is None:
        return _first(challenger, ceiling if rules.ceiling is None else rules.ceiling)
    if difference is None or difference.confidence != rules.confidence:
        raise DataError(f"{challenger.model} has no interval of the difference at confidence {rules.confidence}")
    return _compared(challenger, champion, difference, rules.tolerance * (ceiling - challenger.floor))


def _first(challenger: Evidence, ceiling: float) -> Verdict:
    figures = f"{challenger.metric} {challenger.value:.4g} at n = {challenger.n:,}"
    is_better = challenger.value < ceiling
    reason = f"{figures} is {'' if is_better else 'not '}better than the ceiling {ceiling:.4g}; no champion yet"
    return Verdict(decision="promote" if is_better else "hold", reason=reason)


def _compared(challenger: Evidence, champion: Evidence, difference: Difference, margin: float) -> Verdict:
    figures = (
        f"{challenger.metric} {challenger.value:.4g} against {champion.value:.4g} of {champion.model} at n = "
        f"{challenger.n:,}: difference {difference.value:+.4g}, {100 * difference.confidence:g} % interval "
        f"{difference.low:+.4g} to {difference.high:+.4g}"
    )
    decision: Literal["promote", "hold"] = "promote" if difference.high <= margin else "hold"
    if decision == "promote":
        finding = "significantly better" if difference.high < 0 else f"not worse by more than {margin:.4g}"
    else:
        finding = "significantly worse" if difference.low > 0 else f"it may be worse by more than {margin:.4g}"
    return Verdict(decision=decision, reason=f"{figures}: {finding}")
