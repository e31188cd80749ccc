"""Samples + dataset -> scores between a floor and two ceilings, on the features of one named network.

Every side is measured against the whole training split, and every side has the same n images:

    samples    the first n that the generation could make, in order of sample id
    floor      the first n held-out real images: what perfect samples would get
    blurred    the same images under a 3x3 box blur     noise    uniform noise

Ray Data tasks turn parts of at most one shard into sketches, which stay at rest; a last one merges them. Sketches of
equal images are equal bits however they were merged, so the scores are the same bits for any number of workers, and
nothing is read twice, ever.
"""

import pickle
import time
from collections.abc import Iterator
from typing import Any

import ray
import ray.data

from pipeline.cluster import cluster
from pipeline.config.root import Config
from pipeline.errors import DataError
from pipeline.evaluation.context import MEASURED, REFERENCE, EvaluationContext, open_context
from pipeline.evaluation.extractor import extractor_of
from pipeline.evaluation.likelihood import heldout_bits
from pipeline.evaluation.results import (
    Evaluation,
    ExtractorRecord,
    evaluation_key,
    read_evaluation,
    stored_feature_stats,
    write_evaluation,
)
from pipeline.evaluation.tasks import compute_feature_stats, score_feature_stats
from pipeline.log import replay
from pipeline.metrics.feature_stats import Kind, Score
from pipeline.metrics.reference_images import BLUR_NAME, NOISE_NAME
from pipeline.progress import Progress

__all__ = ["evaluate"]


def evaluate(config: Config, samples: str, dataset: str, dry_run: bool = False) -> dict[str, Any]:
    """Measure sealed samples; a result that is there already is returned as it is.

    Raises DataError for unsealed samples, a missing dataset, images of different kinds, or fewer than 2 images a side.
    """
    context = _open(config, samples, dataset)
    done = read_evaluation(context.samples, context.digest)
    if done is not None:
        return {**_result(context, done, "already done"), "images": 0, "seconds": 0.0}
    if dry_run:
        training = f"{context.manifest.rows('train'):,} training images"
        sides = f"{context.n:,} of {context.num_usable:,} samples against {training}"
        return {"summary": f"would measure {sides} on features of {context.extractor_id} -> {context.samples.uri}"}
    started = time.monotonic()
    with cluster(config.ray, config.ray.max_workers + 1):
        record = extractor_of(context)
        images = _sketch(context, record.weights_sha256)
        scores: tuple[Score, ...] = ray.get(ray.remote(num_cpus=1)(score_feature_stats).remote(context, record))
        scores += tuple(heldout_bits(context))
    evaluation = write_evaluation(context.samples, scores, _protocol(context, record, scores))
    return {**_result(context, evaluation, "evaluated"), "images": images, "seconds": time.monotonic() - started}


def _open(config: Config, samples: str, dataset: str) -> EvaluationContext:
    context = open_context(config, samples, dataset)
    if context.n < 2:
        raise DataError(
            f"scores need 2 images a side: {context.samples.uri} has {context.num_usable} usable samples, "
            f"{context.dataset.uri} has {context.manifest.rows('heldout')} held-out images "
            "(ingest.heldout_share keeps more)"
        )
    asked = config.evaluate.num_images
    if asked is not None and context.n < asked:  # scores at another n are other scores
        raise DataError(
            f"evaluate.num_images asks for {asked:,} images a side: {context.samples.uri} has {context.num_usable:,} "
            f"usable samples, {context.dataset.uri} has {context.manifest.rows('heldout'):,} held-out images "
            f"(leave the setting out for {context.n:,})"
        )
    return context


def _sketch(context: EvaluationContext, weights_sha256: str) -> int:
    """Make the sketches that are not there yet; returns how many images that took."""
    parts = [part for side in (REFERENCE, *MEASURED) for part in context.parts(side)]
    folders = {(part.home, part.key.rpartition("/")[0]) for part in parts}
    present = {(home, key) for home, folder in folders for key in stored_feature_stats(home, folder)}
    missing = [part for part in parts if (part.home, part.key) not in present]
    total = sum(part.take for part in missing)
    if not missing:
        return 0
    items = [{"part": pickle.dumps(part)} for part in missing]
    made = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        compute_feature_stats,
        fn_kwargs={"context": context, "weights_sha256": weights_sha256},
        batch_size=1,
        batch_format="pyarrow",
        compute=ray.data.TaskPoolStrategy(context.config.ray.max_workers),
    )
    progress, images = Progress("features", total, "img"), 0
    for row in made.iter_rows():
        replay(pickle.loads(row["warnings"]))
        images += row["images"]
        progress.update(images)
    progress.close()
    return images


# --- results ---------------------------------------------------------------------------------------------------------


def _protocol(context: EvaluationContext, record: ExtractorRecord, scores: tuple[Score, ...]) -> dict[str, Any]:
    """Fields of an Evaluation besides its scores."""
    return {
        "id": context.digest,
        "dataset_digest": context.manifest.digest(),
        "samples_plan": context.plan.fingerprint,
        "reference": REFERENCE,
        "n": context.n,
        "failed": context.sealed.failed,
        "extractor": record.name,
        "weights_sha256": record.weights_sha256,
        "preprocessing": record.preprocessing,
        "feature_dim": record.feature_dim,
        "heldout_accuracy": record.heldout_accuracy,
        "warnings": tuple(_warnings(context, record, scores)),
    }


def _warnings(context: EvaluationContext, record: ExtractorRecord, scores: tuple[Score, ...]) -> Iterator[str]:
    """What a reader must know before trusting the Frechet distances."""
    distances = {s.kind: s for s in scores if s.metric == scores[0].metric}
    n = min(distances["samples"].n, distances["samples"].reference_n)
    if n <= record.feature_dim:
        yield (
            f"{n} images are not more than the {record.feature_dim} features: {scores[0].metric} is biased far "
            "upward, and only its order means something (ingest.heldout_share and more samples raise n)"
        )
    if context.config.evaluate.extrapolate and not any(s.metric.endswith("-infinity") for s in scores):
        yield f"{n} images are too few to extrapolate {scores[0].metric} over {record.feature_dim} features"
    if not distances["floor"].value < min(distances["blurred"].value, distances["noise"].value):
        yield "held-out real images score no better than a ceiling: this extractor cannot judge these images"


def _result(context: EvaluationContext, evaluation: Evaluation, state: str) -> dict[str, Any]:
    name = evaluation.frechet_name
    value: dict[Kind, float] = {s.kind: s.value for s in evaluation.scores if s.metric == name}
    of = next(s for s in evaluation.scores if (s.metric, s.kind) == (name, "samples"))
    interval = "" if of.low is None or of.high is None else f" [{of.low:.4g}, {of.high:.4g}]"
    text = (
        f"{state}: {name} {value['samples']:.4g}{interval} at n = {evaluation.n:,} (floor {value['floor']:.4g}; "
        f"{BLUR_NAME} {value['blurred']:.4g}; {NOISE_NAME} {value['noise']:.4g})"
    )
    if evaluation.failed:
        text += f", {evaluation.failed:,} failed samples left out"
    uri = context.samples.location(evaluation_key(evaluation.id))
    return {
        "state": state,
        "uri": uri,
        "digest": evaluation.id,
        "metric": name,
        "value": value["samples"],
        "interval": None if of.low is None else [of.low, of.high],
        "floor": value["floor"],
        "ceilings": {BLUR_NAME: value["blurred"], NOISE_NAME: value["noise"]},
        "scores": {s.metric: s.value for s in evaluation.scores if s.kind in ("samples", "heldout")},
        "n": evaluation.n,
        "failed": evaluation.failed,
        "extractor": context.extractor_id,
        "extractor_accuracy": evaluation.heldout_accuracy,
        "warnings": list(evaluation.warnings),
        "summary": "\n".join([f"{text} -> {uri}", *(f"warning: {line}" for line in evaluation.warnings)]),
    }
