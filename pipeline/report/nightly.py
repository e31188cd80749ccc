"""Report content of a night: verdict, champion against challenger, and the result of each stage."""

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any, Final

from pipeline.nightly.gate import Difference
from pipeline.nightly.ledger import CLOSING_STAGES, STAGES, Night
from pipeline.nightly.stage_results import Comparison
from pipeline.report.render.content import Fact, Table, Verdict
from pipeline.report.render.scales import NO_VALUE, figures

_KINDS: Final[Mapping[str, str]] = {"promoted": "good", "skipped": "good", "failed": "bad"}
_MAX_LENGTH: Final = 160  # characters of the result of a stage


def night_verdict(night: Night) -> Verdict:
    """Good: promoted or skipped. Bad: failed. Warning: held, missed or running."""
    kind = _KINDS.get(night.state, "warning")
    reason = f": {night.reason}" if night.reason else ""
    return Verdict(kind, f"{night.state.capitalize()}{reason}.")  # type: ignore[arg-type]


def night_facts(night: Night) -> Iterator[Fact]:
    """Date, champion before and after, duration, number of attempts."""
    yield Fact("Night", f"{night.date} of {night.name}")
    yield Fact("Champion before", _version(night.champion))
    if night.done.promote is not None:
        yield Fact("Champion after", _version(night.done.promote.champion))
    if night.began and night.ended:
        took = datetime.fromisoformat(night.ended) - datetime.fromisoformat(night.began)
        yield Fact("Duration", f"{took.total_seconds() / 60:,.1f} min")
    yield Fact("Attempts", f"{night.attempts}")


def night_tables(night: Night) -> tuple[Table, ...]:
    """Champion against challenger (once evaluated), then the stages."""
    found = night.done.evaluate
    return (*([_comparison(night, found)] if found else []), _stages(night))


def _comparison(night: Night, found: Comparison) -> Table:
    """One column per model; the note states the difference with its interval."""
    challenger, champion = found.challenger, found.champion
    version = None if night.done.export is None else night.done.export.version
    models = [challenger, *([champion] if champion else [])]
    heads = [f"Challenger {_version(version)}", *([f"Champion {_version(night.champion)}"] if champion else [])]
    rows: list[tuple[str, ...]] = [
        (challenger.metric, *(figures(model.value) for model in models)),
        ("Floor: real held-out images", *(figures(model.floor) for model in models)),
        *(
            (f"Ceiling: {name}", *(figures(model.ceilings.get(name, float("nan"))) for model in models))
            for name in challenger.ceilings
        ),
        ("Images per side", *(f"{model.n:,}" for model in models)),
    ]
    return Table("Champion against challenger", ("", *heads), tuple(rows), note=_difference(found.difference))


def _difference(difference: Difference | None) -> str:
    if difference is None:
        return "No comparison: there is no champion, or its evaluation used another protocol."
    return (
        f"Challenger minus champion: {figures(difference.value)}, {100 * difference.confidence:g} % interval "
        f"{figures(difference.low)} to {figures(difference.high)} (jackknife over {difference.groups} "
        "groups of sample ids; both models use the same noise per id). Lower is better."
    )


def _stages(night: Night) -> Table:
    done = night.model_dump(mode="json", include={"done"})["done"]
    rows = tuple((stage, _result_text(stage, done.get(stage))) for stage in STAGES if stage not in CLOSING_STAGES)
    note = " ".join(f"Warning: {line}." for line in night.warnings)
    return Table("Stages", ("Stage", "Result"), rows, words=2, note=note)


def _result_text(stage: str, result: Mapping[str, Any] | None) -> str:
    """The ledger entry of a stage in one line; the evaluation also has a table."""
    if result is None:
        return NO_VALUE
    if stage == "evaluate":
        result = result.get("metrics", {})
    pairs = ", ".join(f"{name.replace('_', ' ')} {_brief(value)}" for name, value in result.items())
    return pairs if len(pairs) <= _MAX_LENGTH else f"{pairs[: _MAX_LENGTH - 1]}\N{HORIZONTAL ELLIPSIS}"


def _brief(value: Any) -> str:
    if isinstance(value, float):
        return figures(value)
    if isinstance(value, list):
        return f"{len(value)}"
    if value is None:
        return "none"
    text = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
    return text[:12] if len(text) == 64 and " " not in text else text


def _version(number: int | None) -> str:
    return "none" if number is None else f"v{number}"
