"""The extractor of an evaluation: trained on the data set's training split, or put beside it from a weights file."""

from collections.abc import Sequence

import numpy as np
import pyarrow.compute as pc
import ray
from numpy.typing import NDArray

from pipeline.errors import DataError
from pipeline.evaluation.context import MAX_CLASSIFIER_IMAGES, EvaluationContext
from pipeline.evaluation.pretrained_weights import given_weights
from pipeline.evaluation.results import ExtractorRecord, keep_pretrained, keep_weights, read_record, write_extractor
from pipeline.images.png import decode_batch
from pipeline.ingest.manifest import ShardEntry
from pipeline.metrics.classifier import train_classifier
from pipeline.metrics.pretrained import load_extractor
from pipeline.progress import Progress
from pipeline.storage.files import read_parquet

__all__ = ["extractor_of"]

Pixels = NDArray[np.uint8]
Labels = NDArray[np.int64]


def extractor_of(context: EvaluationContext) -> ExtractorRecord:
    """The record of the job's extractor, which is trained or put beside the data set when it is not there yet."""
    found = read_record(context.dataset, context.extractor_id)
    if found is not None:
        return found
    if context.pretrained:
        return _place_pretrained(context)
    record: ExtractorRecord = ray.get(ray.remote(num_cpus=1)(_train_extractor).remote(context))
    return record


def _place_pretrained(context: EvaluationContext) -> ExtractorRecord:
    """Check the weights that the settings name and keep them beside the data set. Raises ConfigError, DataError."""
    evaluate = context.config.evaluate
    weights = given_weights(evaluate, context.config.storage)
    if weights.sha256 != context.made_from["weights"]:
        raise DataError(f"{weights.where} changed during the evaluation")
    extractor = load_extractor(evaluate.extractor, weights.data, evaluate.input_size, weights.where)
    record = ExtractorRecord(
        id=context.extractor_id,
        name=extractor.name,
        weights_sha256=extractor.weights_sha256,
        preprocessing=extractor.preprocessing,
        feature_dim=extractor.feature_dim,
        heldout_accuracy=None,
        heldout_images=0,
        train_images=0,
        input_size=evaluate.input_size,
        made_from=context.made_from,
    )
    return keep_pretrained(context.dataset, record, weights.data)


def _train_extractor(context: EvaluationContext) -> ExtractorRecord:
    """A task: train the classifier on the training split, store it, and say how well it does on held-out images."""
    images, labels = _load(context, context.manifest.split("train"))
    progress = Progress("extractor", context.config.evaluate.classifier_epochs, "epochs")
    trained = train_classifier(
        images, labels, context.config.evaluate, lambda e: progress.update(e.epoch, f"accuracy {e.accuracy:.3f}")
    )
    progress.close()
    classifier = keep_weights(context.dataset, context.extractor_id, trained.to_bytes())
    heldout, heldout_labels = _load(context, context.manifest.split("heldout"))
    record = ExtractorRecord(
        id=context.extractor_id,
        name=classifier.name,
        weights_sha256=classifier.weights_sha256,
        preprocessing=classifier.preprocessing,
        feature_dim=classifier.feature_dim,
        heldout_accuracy=classifier.evaluate_accuracy(heldout, heldout_labels),
        heldout_images=len(heldout),
        train_images=len(images),
        made_from=context.made_from,
    )
    return write_extractor(context.dataset, record)


def _load(context: EvaluationContext, shards: Sequence[ShardEntry]) -> tuple[Pixels, Labels | None]:
    """The first MAX_CLASSIFIER_IMAGES of some shards (which are in random order), with labels when there are any."""
    rows = min(sum(shard.rows for shard in shards), MAX_CLASSIFIER_IMAGES)
    images, labels = np.empty((rows, *context.shape), np.uint8), np.empty(rows, np.int64)
    start = 0
    for shard in shards:
        table = read_parquet(context.dataset, shard, ["image", "label"]).slice(0, rows - start)
        stop = start + len(table)
        images[start:stop] = decode_batch(pc.struct_field(table["image"], "bytes").to_pylist(), context.shape)
        if context.labelled:
            labels[start:stop] = table["label"].to_numpy()
        start = stop
    return images, labels if context.labelled else None
