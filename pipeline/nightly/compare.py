"""Input of the gate from two evaluated samples folders: scores, protocols, paired difference.

Reads the feature statistics that `evaluate` stored, so it needs no Ray.
"""

from typing import Any, NamedTuple

from pipeline.config.base import digest_of
from pipeline.config.root import Config
from pipeline.errors import DataError
from pipeline.evaluation.context import MIN_IMAGES, REFERENCE, EvaluationContext, Side
from pipeline.evaluation.results import Evaluation, read_evaluation
from pipeline.generation.commit import read_sealed
from pipeline.ingest.dataset import read_dataset
from pipeline.metrics.feature_stats import Score
from pipeline.metrics.paired_difference import paired_difference
from pipeline.metrics.reference_images import BLUR_NAME, NOISE_NAME
from pipeline.metrics.reservoir import Reservoir
from pipeline.nightly.gate import Difference, Evidence, different_protocol
from pipeline.nightly.stage_results import Comparison
from pipeline.storage.store import resolve

_OF_THE_MODEL = {
    "model_uri",
    "model_digest",
    "diffusion",
    "num_classes",
    "null_label",
    "weights",
    "variance",
    "schema_version",
}
"""Fields of a sample plan that identify the model; all others belong to the protocol."""


class EvaluatedSamples(NamedTuple):
    """name: of the model version; uri: of its samples folder, which `evaluate` has scored."""

    name: str
    uri: str


class _Evaluated(NamedTuple):
    context: EvaluationContext
    evaluation: Evaluation
    evidence: Evidence


def too_few_heldout(dataset: str, heldout: int) -> DataError:
    """The gate measures its tolerance from the floor, so it cannot judge without one."""
    return DataError(
        f"the gate needs a floor, the score of at least {MIN_IMAGES} held-out images, but {dataset} has {heldout}: "
        "raise ingest.heldout_share under another nightly.name (a dataset keeps the settings that it was made with)"
    )


def compare(
    config: Config, dataset: str, challenger: EvaluatedSamples, champion: EvaluatedSamples | None
) -> Comparison:
    """dataset: URI. Different protocols get no interval of the difference: the gate then names the fields that differ.

    Raises DataError when samples were not evaluated on the newest version of the dataset, or are too few.
    """
    one = _read(config, dataset, challenger)
    metrics = {s.metric: s.value for s in one.evaluation.scores if s.kind == "samples"}
    if champion is None:
        return Comparison(challenger=one.evidence, champion=None, difference=None, metrics=metrics)
    other = _read(config, dataset, champion)
    difference = None
    if not different_protocol(one.evidence, other.evidence):
        difference = _difference(one.context, other.context, config.gate.confidence)
    return Comparison(challenger=one.evidence, champion=other.evidence, difference=difference, metrics=metrics)


def _read(config: Config, dataset: str, samples: EvaluatedSamples) -> _Evaluated:
    store, data = resolve(samples.uri, config.storage), resolve(dataset, config.storage)
    plan, sealed = read_sealed(store)
    context = EvaluationContext(config, store, data, plan, sealed, read_dataset(data))
    evaluation = read_evaluation(store, context.digest)
    if evaluation is None:
        raise DataError(f"{store.uri} has no evaluation against the newest version of {data.uri}: run ddpm evaluate")
    return _Evaluated(context, evaluation, _evidence(samples.name, context, evaluation))


def _evidence(name: str, context: EvaluationContext, evaluation: Evaluation) -> Evidence:
    scores = {s.kind: s for s in evaluation.scores if s.metric.startswith(("KD-", "KID"))}
    of: Score = scores["samples"]
    if "floor" not in scores:
        raise too_few_heldout(context.dataset.uri, context.manifest.rows("heldout"))
    return Evidence(
        model=name,
        metric=of.metric,
        value=of.value,
        floor=scores["floor"].value,
        ceilings={BLUR_NAME: scores["blurred"].value, NOISE_NAME: scores["noise"].value},
        n=evaluation.n,
        protocol=_protocol(context, evaluation),
    )


def _protocol(context: EvaluationContext, evaluation: Evaluation) -> dict[str, Any]:
    plan = {k: v for k, v in context.plan.model_dump(mode="json").items() if k not in _OF_THE_MODEL}
    names = ("dataset_digest", "reference", "failed", "extractor", "weights_sha256", "preprocessing", "feature_dim")
    measured = evaluation.model_dump(mode="json", include=set(names))
    return {**{f"samples.{k}": v for k, v in plan.items()}, **measured, "settings": digest_of(context.made_from)[:16]}


def _difference(challenger: EvaluationContext, champion: EvaluationContext, confidence: float) -> Difference:
    real = _reservoir(challenger, REFERENCE)
    found = paired_difference(_reservoir(challenger, "samples"), _reservoir(champion, "samples"), real, confidence)
    return Difference(**found._asdict(), confidence=confidence)


def _reservoir(context: EvaluationContext, side: Side) -> Reservoir:
    return context.stored_stats(side).reservoir
