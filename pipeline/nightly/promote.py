"""Manual registry operations: `ddpm models`, `ddpm promote`, `ddpm rollback`. No Ray."""

import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any, NamedTuple

from pipeline.config.root import Config
from pipeline.errors import ConfigError, GateNotPassed
from pipeline.model_store.mlflow_registry import mirror
from pipeline.model_store.register import Export, register
from pipeline.model_store.registry import ChangeRequest, Record, Registry, named_version, version_key
from pipeline.nightly.compare import EvaluatedSamples, compare
from pipeline.nightly.gate import gate
from pipeline.storage.store import resolve


class GateInputs(NamedTuple):
    """URIs that a gated promotion compares: the dataset and the evaluated samples of both models.

    champion: None when the registry has no champion.
    """

    dataset: str
    challenger: str
    champion: str | None


def promote(
    config: Config, model: str, export: Export, reason: str | None, inputs: GateInputs | None
) -> dict[str, Any]:
    """Make a version champion: by the gate when `inputs` are given, else by a person's decision with its reason.

    model: REGISTRY@challenger, REGISTRY@N, or REGISTRY@URI of a run or checkpoint, which becomes a new version first.
    Raises GateNotPassed, Busy when the champion changed since it was read, ConfigError, DataError.
    """
    if (reason is None) == (inputs is None):
        raise ConfigError(
            "ddpm promote needs either --reason (a person decides), or --samples and --dataset, and --against when "
            "there is a champion (the gate decides)"
        )
    registry, number = _version(config, model, export)
    head = registry.head()
    if head.champion == number:
        return _moved(config, registry, head, "already done")
    metrics: dict[str, Any] = {}
    if inputs is not None:
        reason, metrics = _pass_gate(config, number, head, inputs)
    change = ChangeRequest(reason or "", uuid.uuid4().hex, datetime.now(UTC), metrics)
    return _moved(config, registry, registry.promote(number, change, head.champion, head.number), "promoted")


def _version(config: Config, model: str, export: Export) -> tuple[Registry, int]:
    named = named_version(model, config.storage)
    if named is not None:
        return named[0], named[1].number
    place, at, source = model.partition("@")
    if not (place and at and source):
        raise ConfigError(f"{model!r}: write REGISTRY@challenger, REGISTRY@NUMBER or REGISTRY@URI of a run")
    registry = Registry(resolve(place, config.storage))
    return registry, register(config, registry, export, source, {"by": "ddpm promote"}).number


def _pass_gate(config: Config, number: int, head: Record, inputs: GateInputs) -> tuple[str, dict[str, Any]]:
    champion = None
    if head.champion is not None:
        name = version_key(head.champion)
        if inputs.champion is None:
            raise ConfigError(f"--against is missing: the evaluated samples of the champion {name}")
        champion = EvaluatedSamples(name, inputs.champion)
    challenger = EvaluatedSamples(version_key(number), inputs.challenger)
    found = compare(config, inputs.dataset, challenger, champion)
    verdict = gate(found.challenger, found.champion, found.difference, config.gate)
    if verdict.decision == "hold":
        raise GateNotPassed(f"{version_key(number)} is not promoted: {verdict.reason}")
    return verdict.reason, found.metrics


def rollback(
    config: Config,
    uri: str,
    version: int | None,
    reason: str,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> dict[str, Any]:
    """Make the previous champion, or the earlier champion `version`, champion again. Raises DataError, Busy."""
    registry = Registry(resolve(uri, config.storage))
    record = registry.rollback(version, ChangeRequest(reason, uuid.uuid4().hex, now(), {}))
    return _moved(config, registry, record, "rolled back")


def models(config: Config, uri: str) -> dict[str, Any]:
    """All versions, and all records with reason and metrics."""
    registry = Registry(resolve(uri, config.storage))
    records, numbers = registry.records(), registry.versions()
    head, warning = records[-1] if records else None, mirror(config, registry)
    champion, challenger = (head.champion, head.challenger) if head else (None, None)
    return {
        "uri": registry.store.uri,
        "champion": champion,
        "challenger": challenger,
        "versions": [registry.version(number).model_dump(mode="json", exclude={"files"}) for number in numbers],
        "records": [record.model_dump(mode="json") for record in records],
        "summary": "\n".join(
            [*_lines(registry.store.uri, numbers, records), *([] if warning is None else [f"warning: {warning}"])]
        ),
    }


def _lines(uri: str, numbers: list[int], records: list[Record]) -> Iterator[str]:
    head = records[-1] if records else None
    yield f"{uri}: {len(numbers)} version{'' if len(numbers) == 1 else 's'}"
    for number in numbers:
        names = [name for name in ("champion", "challenger") if head and getattr(head, name) == number]
        yield f"  {version_key(number)}  {' '.join(names)}".rstrip()
    for record in records:
        of = record.challenger if record.action == "challenge" else record.champion
        figures = ", ".join(f"{name} {value:.4g}" for name, value in record.metrics.items() if isinstance(value, float))
        yield f"{record.number:>4}  {record.at}  {record.action:<9}  {version_key(of or 0)}  {record.reason}" + (
            f"  [{figures}]" if figures else ""
        )


def _moved(config: Config, registry: Registry, record: Record, state: str) -> dict[str, Any]:
    number, warning = record.champion or 0, mirror(config, registry)
    summary = f"{state}: champion of {registry.store.uri} is {version_key(number)} (record {record.number})"
    return {
        "state": state,
        "uri": registry.folder(number).uri,
        "champion": number,
        "record": record.number,
        "reason": record.reason,
        "summary": summary if warning is None else f"{summary}\nwarning: {warning}",
    }
