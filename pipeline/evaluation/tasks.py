"""Ray tasks of an evaluation: compute the feature statistics of one image set, and score the merged statistics."""

import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.errors import DataError
from pipeline.evaluation.context import REFERENCE, EvaluationContext, ImageSet
from pipeline.evaluation.results import ExtractorRecord, cached_extractor, extractor_folder
from pipeline.evaluation.stored_images import Pixels, decode_column, read_usable
from pipeline.log import collect
from pipeline.metrics.feature_stats import FeatureStats, Kind, Score
from pipeline.metrics.features import Extractor, ExtractorOutput, fingerprint_of
from pipeline.metrics.protocol import Fingerprint
from pipeline.metrics.reference_images import blurred, noise_images
from pipeline.metrics.scoring import score

_BLOCK_ROWS = 256


def compute_feature_stats(batch: pa.Table, context: EvaluationContext, weights_sha256: str) -> pa.Table:
    """Column image_set (one pickled ImageSet) -> columns images (its size) and warnings (pickled).

    Stores the feature statistics.
    """
    warnings = collect(task="features")
    image_set: ImageSet = pickle.loads(batch["image_set"][0].as_py())
    extractor = cached_extractor(context.dataset, context.extractor_id, weights_sha256)
    stats = feature_stats_of(extractor, fingerprint_of(extractor, context.reference), context, image_set)
    image_set.store.put(image_set.key, stats.to_bytes())  # a repeated task writes the same bytes
    return pa.table({"images": [image_set.count], "warnings": [pickle.dumps(warnings.take())]})


def feature_stats_of(
    extractor: Extractor, fingerprint: Fingerprint, context: EvaluationContext, image_set: ImageSet
) -> FeatureStats:
    """Feature statistics of one image set. A thread decodes the next block while the extractor runs on this one."""
    ids, pixels_of = _open_images(context, image_set)
    images = np.empty((image_set.count, *context.shape), np.uint8)

    def decode(start: int) -> Pixels:
        block = images[start : start + _BLOCK_ROWS]
        block[:] = pixels_of(start, start + len(block))
        return block

    with ThreadPoolExecutor(1, "decode") as decoder:
        answers = [extractor.extract(block) for block in decoder.map(decode, range(0, len(images), _BLOCK_ROWS))]
    features = np.concatenate([answer.features for answer in answers])
    probabilities = [answer.probabilities for answer in answers if answer.probabilities is not None]
    answer = ExtractorOutput(features, np.concatenate(probabilities) if probabilities else None)
    return FeatureStats.of(fingerprint, context.config.evaluate.seed, ids, images, answer)


def _open_images(
    context: EvaluationContext, image_set: ImageSet
) -> tuple[NDArray[np.int64], Callable[[int, int], Pixels]]:
    """Ids int64 [N] of an image set, and a function (start, stop) -> pixels uint8 [stop - start, H, W, C]."""
    first, shape, seed = image_set.first_id, context.shape, context.config.evaluate.seed
    if image_set.shard is None:
        ids = np.arange(first, first + image_set.count)
        return ids, lambda start, stop: noise_images(stop - start, shape, seed, first + start)
    table = read_usable(image_set.store, image_set.shard, count=image_set.count)

    def decode(start: int, stop: int) -> Pixels:
        pixels = decode_column(table.slice(start, stop - start), shape)
        return blurred(pixels) if image_set.side == "blurred" else pixels

    return table["sample_id"].to_numpy(), decode


def score_feature_stats(context: EvaluationContext, record: ExtractorRecord) -> tuple[Score, ...]:
    """Scores of every measured side against the training split, from merged feature statistics.

    Runs as a Ray task, so that the number of compute threads is 1 on every machine. Raises DataError when the stored
    statistics come from other weights than the extractor's.
    """
    reference = context.stored_stats(REFERENCE)
    if reference.moments.fingerprint.weights_sha256 != record.weights_sha256:
        raise DataError(
            f"{context.dataset.location(extractor_folder(record.id))} holds feature statistics from other weights of "
            f"{record.name}: delete that folder and the metrics/ folder of the samples"
        )
    measured: dict[Kind, FeatureStats] = {kind: context.stored_stats(kind) for kind in context.measured}
    return tuple(score(reference, measured, context.config.evaluate.extrapolate))
