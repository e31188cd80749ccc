"""A night's ledger as content: its verdict, champion against challenger, and what every stage did."""

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any, Final

from pipeline.nightly.gate import Difference
from pipeline.nightly.ledger import CLOSING_STAGES, STAGES, Night
from pipeline.nightly.stage_results import Comparison
from pipeline.report.render.content import Fact, Table, Verdict
from pipeline.report.render.scales import figures

__all__ = ["night_facts", "night_tables", "night_verdict"]

_KINDS: Final[Mapping[str, str]] = {"promoted": "good", "skipped": "good", "failed": "bad"}
_NOTHING: Final = "\N{EN DASH}"
_LONGEST: Final = 160  # characters of what a stage did


def night_verdict(night: Night) -> Verdict:
    """Good: promoted, or nothing to do. Bad: failed. A warning: held, missed, or still running."""
    kind = _KINDS.get(night.state, "warning")
    reason = f": {night.reason}" if night.reason else ""
    return Verdict(kind, f"{night.state.capitalize()}{reason}.")  # type: ignore[arg-type]


def night_facts(night: Night) -> Iterator[Fact]:
    """Date, champion before and after, how long, how often begun."""
    yield Fact("Night", f"{night.date} of {night.name}")
    yield Fact("Champion before", _version(night.champion))
    if night.done.promote is not None:
        yield Fact("Champion after", _version(night.done.promote.champion))
    if night.began and night.ended:
        took = datetime.fromisoformat(night.ended) - datetime.fromisoformat(night.began)
        yield Fact("Took", f"{took.total_seconds() / 60:,.1f} min")
    yield Fact("Begun", f"{night.attempts} time{'s' if night.attempts != 1 else ''}")


def night_tables(night: Night) -> tuple[Table, ...]:
    """Champion against challenger, when it came to that, then the stages."""
    found = night.done.evaluate
    return (*([_comparison(night, found)] if found else []), _stages(night))


def _comparison(night: Night, found: Comparison) -> Table:
    """A column a model; the last row is the difference with its interval."""
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
        ("Images a side", *(f"{model.n:,}" for model in models)),
    ]
    return Table("Champion against challenger", ("", *heads), tuple(rows), note=_difference(found.difference))


def _difference(difference: Difference | None) -> str:
    if difference is None:
        return "There is no champion to compare with, or the two were not measured alike."
    return (
        f"Challenger less champion: {figures(difference.value)}, {100 * difference.confidence:g} % interval "
        f"{figures(difference.low)} to {figures(difference.high)} by leaving out each of {difference.groups} "
        "groups of sample ids, which both drew from the same noise. Lower is better."
    )


def _stages(night: Night) -> Table:
    done = night.model_dump(mode="json", include={"done"})["done"]
    rows = tuple((stage, _told(stage, done.get(stage))) for stage in STAGES if stage not in CLOSING_STAGES)
    note = " ".join(f"Warning: {line}." for line in night.warnings)
    return Table("Stages", ("Stage", "What it did"), rows, words=2, note=note)


def _told(stage: str, result: Mapping[str, Any] | None) -> str:
    """A stage's entry of the ledger in a line; the evaluation has a table of its own."""
    if result is None:
        return _NOTHING
    if stage == "evaluate":
        result = result.get("metrics", {})
    pairs = ", ".join(f"{name.replace('_', ' ')} {_brief(value)}" for name, value in result.items())
    return pairs if len(pairs) <= _LONGEST else f"{pairs[: _LONGEST - 1]}\N{HORIZONTAL ELLIPSIS}"


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
