"""Typed results of a night's stages, as the ledger `state.json` keeps them under `done`.

A field with a default is a fact for people and reports; no later stage reads it. Unset fields are not written, so a
ledger keeps exactly the keys that its stages wrote.
"""

from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict

from pipeline.nightly.gate import Difference, Evidence, Verdict

T = TypeVar("T")


class StageResult(BaseModel):
    """Immutable, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class SnapshotResult(StageResult):
    """Committed dataset version. digest: of its manifest; train, heldout: rows of each split."""

    digest: str
    generation: int | None = None
    train: int | None = None
    heldout: int | None = None
    state: str = ""
    uri: str = ""


class TrainResult(StageResult):
    """Newest checkpoint of the night's run. run: key below the root; parent: version that training started from."""

    run: str
    checkpoint: str  # URI
    step: int
    images: int
    loss: float | None = None
    dataset_digest: str
    parent: int | None
    state: str = ""


class ExportResult(StageResult):
    """Registered model version. digest: of the model; sha256: of the weights' file."""

    version: int
    digest: str = ""
    sha256: str = ""


class SamplesResult(StageResult):
    """Samples folders of both models: keys below the root."""

    challenger: str
    champion: str | None


class Comparison(StageResult):
    """Scores of challenger and champion for the gate. metrics: every score of the challenger, for the record."""

    challenger: Evidence
    champion: Evidence | None
    difference: Difference | None
    metrics: dict[str, float]


class PromoteResult(StageResult):
    """Decision as carried out. champion: after it; record: number of the registry's record, when promoted."""

    state: Literal["promoted", "held"]
    reason: str
    champion: int | None
    record: int | None = None


class ReportResult(StageResult):
    """`error` instead of `uri` when the report failed."""

    uri: str | None = None
    error: str | None = None


class RetentionResult(StageResult):
    """removed: keys below the root of deleted runs and samples folders; `error` instead when deletion failed."""

    removed: tuple[str, ...] = ()
    error: str | None = None


class StageResults(StageResult):
    """Results by stage, in the order in which the stages run; None: not done."""

    snapshot: SnapshotResult | None = None
    train: TrainResult | None = None
    export: ExportResult | None = None
    samples: SamplesResult | None = None
    evaluate: Comparison | None = None
    gate: Verdict | None = None
    promote: PromoteResult | None = None
    report: ReportResult | None = None
    retention: RetentionResult | None = None


def finished(result: T | None) -> T:
    """The result of an earlier stage, which exists whenever a later stage runs."""
    assert result is not None, "stages run in order"
    return result
