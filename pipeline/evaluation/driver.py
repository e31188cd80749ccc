"""`ddpm evaluate`: score generated samples against the training split, beside a floor and two ceilings.

Every side is compared with the whole training split:

    samples    the first n usable samples, in order of sample id
    floor      the first n held-out real images: the score of perfect samples
    blurred    the held-out images after a 3x3 box blur (ceiling)
    noise      n images of uniform noise (ceiling)

A dataset with fewer than n held-out images has a floor of all of them, and none with fewer than 2. The blurred images
are then the first n training images.

Ray Data tasks compute feature statistics per image set (at most one shard) and store them; the last task merges the
statistics. Merging is exact, so scores are bit-identical for any number of workers, and a later evaluation never reads
an image again.
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
from pipeline.evaluation.context import MIN_IMAGES, REFERENCE, EvaluationContext, open_context
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


def evaluate(config: Config, samples: str, dataset: str, dry_run: bool = False) -> dict[str, Any]:
    """Score sealed samples. Returns a stored result when the same evaluation has run before.

    Raises DataError for unsealed samples, a missing dataset, different image shapes, or too few samples or
    training images.
    """
    context = _open(config, samples, dataset)
    done = read_evaluation(context.samples, context.digest)
    if done is not None:
        return {**_result(context, done, "already done"), "images": 0, "seconds": 0.0}
    if dry_run:
        training = f"{context.manifest.rows('train'):,} training images"
        sides = f"{context.n:,} of {context.num_usable:,} samples against {training}"
        return {"summary": f"would score {sides} on features of {context.extractor_id} -> {context.samples.uri}"}
    started = time.monotonic()
    with cluster(config.ray, config.ray.max_workers + 1):
        record = extractor_of(context)
        images = _compute_missing(context, record.weights_sha256)
        scores: tuple[Score, ...] = ray.get(ray.remote(num_cpus=1)(score_feature_stats).remote(context, record))
        scores += tuple(heldout_bits(context))
    evaluation = write_evaluation(context.samples, scores, _protocol(context, record, scores))
    return {**_result(context, evaluation, "evaluated"), "images": images, "seconds": time.monotonic() - started}


def _open(config: Config, samples: str, dataset: str) -> EvaluationContext:
    context = open_context(config, samples, dataset)
    if min(context.n, context.manifest.rows(REFERENCE)) < MIN_IMAGES:
        raise DataError(
            f"scores need {MIN_IMAGES} images per side: {context.samples.uri} has {context.num_usable} usable samples, "
            f"{context.dataset.uri} has {context.manifest.rows(REFERENCE)} training images"
        )
    wanted = config.evaluate.num_images
    if wanted is not None and context.n < wanted:  # scores at different n are not comparable
        raise DataError(
            f"evaluate.num_images is {wanted:,}, but {context.samples.uri} has {context.num_usable:,} usable samples: "
            "generate more, or omit the setting"
        )
    return context


def _compute_missing(context: EvaluationContext, weights_sha256: str) -> int:
    """Compute and store the feature statistics that are missing. Returns the number of images read."""
    image_sets = [one for side in (REFERENCE, *context.measured) for one in context.image_sets(side)]
    folders = {(one.store, one.key.rpartition("/")[0]) for one in image_sets}
    present = {(store, key) for store, folder in folders for key in stored_feature_stats(store, folder)}
    missing = [one for one in image_sets if (one.store, one.key) not in present]
    total = sum(one.count for one in missing)
    if not missing:
        return 0
    items = [{"image_set": pickle.dumps(one)} for one in missing]
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
    """All fields of an Evaluation except scores and table."""
    return {
        "id": context.digest,
        **context.protocol(record),
        "n": context.n,
        "warnings": (*_missing_heldout(context), *_warnings(context, record, scores)),
    }


def _missing_heldout(context: EvaluationContext) -> Iterator[str]:
    """Which baselines lack held-out images, and what replaces the images."""
    heldout, n = context.manifest.rows("heldout"), context.n
    if context.floor_n == n:
        return
    blurred = min(n, context.manifest.rows(context.blurred_split))
    replaced = f"the blurred images are the first {blurred:,} training images"
    count = f"{heldout:,} held-out image{'' if heldout == 1 else 's'}"
    if context.floor_n:
        yield f"the floor has n = {heldout:,}, because the dataset has only {count} for {n:,} samples; {replaced}"
    else:
        yield f"no floor: the dataset has {count} (ingest.heldout_share above 0 gives one); {replaced}"


def _warnings(context: EvaluationContext, record: ExtractorRecord, scores: tuple[Score, ...]) -> Iterator[str]:
    """Limits on how far the Frechet distances can be trusted."""
    distances = {s.kind: s for s in scores if s.metric == scores[0].metric}
    n = min(distances["samples"].n, distances["samples"].reference_n)
    if n <= record.feature_dim:
        yield (
            f"{n} images for {record.feature_dim} features: {scores[0].metric} is biased far upward, only its order is "
            f"meaningful (raise n with {'ingest.heldout_share and ' if 'floor' in distances else ''}more samples)"
        )
    if context.config.evaluate.extrapolate and not any(s.metric.endswith("-infinity") for s in scores):
        yield f"{n} images are too few to extrapolate {scores[0].metric} over {record.feature_dim} features"
    if "floor" in distances and not distances["floor"].value < min(
        distances["blurred"].value, distances["noise"].value
    ):
        yield "held-out real images score no better than a ceiling: this extractor cannot distinguish these images"


def _result(context: EvaluationContext, evaluation: Evaluation, state: str) -> dict[str, Any]:
    name = evaluation.frechet_name
    value: dict[Kind, float] = {s.kind: s.value for s in evaluation.scores if s.metric == name}
    of = next(s for s in evaluation.scores if (s.metric, s.kind) == (name, "samples"))
    interval = "" if of.low is None or of.high is None else f" [{of.low:.4g}, {of.high:.4g}]"
    floor = next((s for s in evaluation.scores if (s.metric, s.kind) == (name, "floor")), None)
    text = (
        f"{state}: {name} {value['samples']:.4g}{interval} at n = {evaluation.n:,} "
        f"({_floor_text(floor, evaluation.n)}; {BLUR_NAME} {value['blurred']:.4g}; {NOISE_NAME} {value['noise']:.4g})"
    )
    if evaluation.failed:
        text += f", {evaluation.failed:,} failed samples excluded"
    uri = context.samples.location(evaluation_key(evaluation.id))
    return {
        "state": state,
        "uri": uri,
        "digest": evaluation.id,
        "metric": name,
        "value": value["samples"],
        "interval": None if of.low is None else [of.low, of.high],
        "floor": value.get("floor"),
        "floor_n": floor.n if floor else 0,
        "ceilings": {BLUR_NAME: value["blurred"], NOISE_NAME: value["noise"]},
        "scores": {s.metric: s.value for s in evaluation.scores if s.kind in ("samples", "heldout")},
        "n": evaluation.n,
        "failed": evaluation.failed,
        "extractor": context.extractor_id,
        "extractor_accuracy": evaluation.heldout_accuracy,
        "warnings": list(evaluation.warnings),
        "summary": "\n".join([f"{text} -> {uri}", *(f"warning: {line}" for line in evaluation.warnings)]),
    }


def _floor_text(floor: Score | None, n: int) -> str:
    if floor is None:
        return "no floor"
    return f"floor {floor.value:.4g}" + ("" if floor.n == n else f" at n = {floor.n:,}")
