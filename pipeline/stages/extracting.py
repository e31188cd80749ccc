"""The extractor of an evaluation: trained on the data set's training split, or put beside it from a weights file."""

from collections.abc import Sequence

import numpy as np
import pyarrow.compute as pc
import ray
from numpy.typing import NDArray

from pipeline.engine.images import decode_batch
from pipeline.errors import DataError
from pipeline.manifests import ShardEntry
from pipeline.metrics.classifier import train_classifier
from pipeline.metrics.pretrained import load_extractor
from pipeline.progress import Progress
from pipeline.stages.sketching import MAX_CLASSIFIER_IMAGES, Job
from pipeline.storage.evaluations import ExtractorRecord, keep_pretrained, keep_weights, read_record, write_extractor
from pipeline.storage.pretrained import given_weights
from pipeline.storage.shards import read_parquet

__all__ = ["extractor_of"]

Pixels = NDArray[np.uint8]
Labels = NDArray[np.int64]


def extractor_of(job: Job) -> ExtractorRecord:
    """The record of the job's extractor, which is trained or put beside the data set when it is not there yet."""
    found = read_record(job.dataset, job.extractor_id)
    if found is not None:
        return found
    if job.pretrained:
        return _place_pretrained(job)
    record: ExtractorRecord = ray.get(ray.remote(num_cpus=1)(_train_extractor).remote(job))
    return record


def _place_pretrained(job: Job) -> ExtractorRecord:
    """Check the weights that the settings name and keep them beside the data set. Raises ConfigError, DataError."""
    evaluate = job.config.evaluate
    weights = given_weights(evaluate, job.config.storage)
    if weights.sha256 != job.made_from["weights"]:
        raise DataError(f"{weights.where} changed during the evaluation")
    extractor = load_extractor(evaluate.extractor, weights.data, evaluate.input_size, weights.where)
    record = ExtractorRecord(
        id=job.extractor_id,
        name=extractor.name,
        weights_sha256=extractor.weights_sha256,
        preprocessing=extractor.preprocessing,
        feature_dim=extractor.feature_dim,
        heldout_accuracy=None,
        heldout_images=0,
        train_images=0,
        input_size=evaluate.input_size,
        made_from=job.made_from,
    )
    return keep_pretrained(job.dataset, record, weights.data)


def _train_extractor(job: Job) -> ExtractorRecord:
    """A task: train the classifier on the training split, store it, and say how well it does on held-out images."""
    images, labels = _load(job, job.manifest.split("train"))
    progress = Progress("extractor", job.config.evaluate.classifier_epochs, "epochs")
    trained = train_classifier(
        images, labels, job.config.evaluate, lambda e: progress.update(e.epoch, f"accuracy {e.accuracy:.3f}")
    )
    progress.close()
    classifier = keep_weights(job.dataset, job.extractor_id, trained.to_bytes())
    heldout, heldout_labels = _load(job, job.manifest.split("heldout"))
    record = ExtractorRecord(
        id=job.extractor_id,
        name=classifier.name,
        weights_sha256=classifier.weights_sha256,
        preprocessing=classifier.preprocessing,
        feature_dim=classifier.feature_dim,
        heldout_accuracy=classifier.evaluate_accuracy(heldout, heldout_labels),
        heldout_images=len(heldout),
        train_images=len(images),
        made_from=job.made_from,
    )
    return write_extractor(job.dataset, record)


def _load(job: Job, shards: Sequence[ShardEntry]) -> tuple[Pixels, Labels | None]:
    """The first MAX_CLASSIFIER_IMAGES of some shards (which are in random order), with labels when there are any."""
    rows = min(sum(shard.rows for shard in shards), MAX_CLASSIFIER_IMAGES)
    images, labels = np.empty((rows, *job.shape), np.uint8), np.empty(rows, np.int64)
    start = 0
    for shard in shards:
        table = read_parquet(job.dataset, shard, ["image", "label"]).slice(0, rows - start)
        stop = start + len(table)
        images[start:stop] = decode_batch(pc.struct_field(table["image"], "bytes").to_pylist(), job.shape)
        if job.labelled:
            labels[start:stop] = table["label"].to_numpy()
        start = stop
    return images, labels if job.labelled else None
