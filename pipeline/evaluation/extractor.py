"""Provide the feature extractor of an evaluation: train a classifier on the dataset, or copy a weights file."""

from collections.abc import Sequence

import numpy as np
import ray
from numpy.typing import NDArray

from pipeline.errors import DataError
from pipeline.evaluation.context import MAX_CLASSIFIER_IMAGES, EvaluationContext
from pipeline.evaluation.pretrained_weights import given_weights
from pipeline.evaluation.results import ExtractorRecord, keep_pretrained, keep_weights, read_record, write_extractor
from pipeline.evaluation.stored_images import Pixels, decode_column, first_rows, read_usable
from pipeline.ingest.manifest import ShardEntry
from pipeline.metrics.classifier import train_classifier
from pipeline.metrics.features import Extractor
from pipeline.metrics.pretrained import load_extractor
from pipeline.progress import Progress

Labels = NDArray[np.int64]


def extractor_of(context: EvaluationContext) -> ExtractorRecord:
    """The record of the evaluation's extractor. Trains or copies the extractor when the dataset folder has none."""
    found = read_record(context.dataset, context.extractor_id)
    if found is not None:
        return found
    if context.pretrained:
        return _copy_pretrained(context)
    record: ExtractorRecord = ray.get(ray.remote(num_cpus=1)(_train_extractor).remote(context))
    return record


def _copy_pretrained(context: EvaluationContext) -> ExtractorRecord:
    """Verify the configured weights and copy them into the dataset folder. Raises ConfigError, DataError."""
    evaluate = context.config.evaluate
    weights = given_weights(evaluate, context.config.storage)
    if weights.sha256 != context.made_from["weights"]:
        raise DataError(f"{weights.where} changed during the evaluation")
    extractor = load_extractor(evaluate.extractor, weights.data, evaluate.input_size, weights.where)
    record = _record(context, extractor, heldout_accuracy=None, input_size=evaluate.input_size)
    return keep_pretrained(context.dataset, record, weights.data)


def _record(
    context: EvaluationContext,
    extractor: Extractor,
    heldout_accuracy: float | None,
    heldout_images: int = 0,
    train_images: int = 0,
    input_size: int | None = None,
) -> ExtractorRecord:
    return ExtractorRecord(
        id=context.extractor_id,
        name=extractor.name,
        weights_sha256=extractor.weights_sha256,
        preprocessing=extractor.preprocessing,
        feature_dim=extractor.feature_dim,
        heldout_accuracy=heldout_accuracy,
        heldout_images=heldout_images,
        train_images=train_images,
        input_size=input_size,
        made_from=context.made_from,
    )


def _train_extractor(context: EvaluationContext) -> ExtractorRecord:
    """Ray task: train the classifier on the training split, store it, and measure its accuracy on held-out ones."""
    images, labels = _load(context, context.manifest.split("train"))
    progress = Progress("extractor", context.config.evaluate.classifier_epochs, "epochs")
    trained = train_classifier(
        images, labels, context.config.evaluate, lambda e: progress.update(e.epoch, f"accuracy {e.accuracy:.3f}")
    )
    progress.close()
    classifier = keep_weights(context.dataset, context.extractor_id, trained.to_bytes())
    heldout, heldout_labels = _load(context, context.manifest.split("heldout"))
    accuracy = classifier.evaluate_accuracy(heldout, heldout_labels) if len(heldout) else None
    return write_extractor(context.dataset, _record(context, classifier, accuracy, len(heldout), len(images)))


def _load(context: EvaluationContext, shards: Sequence[ShardEntry]) -> tuple[Pixels, Labels | None]:
    """The first MAX_CLASSIFIER_IMAGES images of some shards, with labels when the dataset has classes."""
    rows = min(sum(shard.rows for shard in shards), MAX_CLASSIFIER_IMAGES)
    images, labels = np.empty((rows, *context.shape), np.uint8), np.empty(rows, np.int64)
    start = 0
    for _, shard, count in first_rows(shards, rows):
        table = read_usable(context.dataset, shard, ("image", "label"), count=count)
        here = slice(start, start + count)
        images[here] = decode_column(table, context.shape)
        if context.labelled:
            labels[here] = table["label"].to_numpy()
        start += count
    return images, labels if context.labelled else None
