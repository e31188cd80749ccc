"""What the tasks of an evaluation do: train the extractor, and turn images into sketches."""

import pickle
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.engine.images import decode_pixels
from pipeline.errors import DataError
from pipeline.manifests import ShardEntry
from pipeline.metrics.anchors import blurred, noise_images
from pipeline.metrics.features import Classifier, fingerprint_of, train_classifier
from pipeline.metrics.sketch import Sketch
from pipeline.progress import Progress
from pipeline.schema import STATUS_OK
from pipeline.stages.evaluate_plan import MAX_CLASSIFIER_IMAGES, Job, Part
from pipeline.storage.evaluations import (
    ExtractorRecord,
    extractor_folder,
    keep_weights,
    read_extractor,
    write_extractor,
    write_sketch,
)
from pipeline.storage.shards import read_parquet
from pipeline.storage.store import Store

__all__ = ["sketch_part", "train_extractor"]

Pixels = NDArray[np.uint8]
Labels = NDArray[np.int64]


def train_extractor(job: Job) -> ExtractorRecord:
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
        images[start:stop] = _decoded(table, job.shape)
        if job.labelled:
            labels[start:stop] = table["label"].to_numpy()
        start = stop
    return images, labels if job.labelled else None


def sketch_part(batch: pa.Table, job: Job, weights_sha256: str) -> pa.Table:
    """Column part (a pickled Part) -> column images (how many it has); its sketch is stored."""
    part: Part = pickle.loads(batch["part"][0].as_py())
    classifier = _classifier(job.dataset, job.extractor_id, weights_sha256)
    ids, images = _images(job, part)
    features = classifier.features(images)
    sketch = Sketch.of(fingerprint_of(classifier, job.reference), job.config.evaluate.seed, ids, features)
    write_sketch(part.home, part.key, sketch)
    return pa.table({"images": [len(ids)]})


@lru_cache(maxsize=1)
def _classifier(dataset: Store, extractor_id: str, weights_sha256: str) -> Classifier:
    """Once a process. The hash is there so that a process never serves an extractor that was since replaced."""
    found = read_extractor(dataset, extractor_id)
    if found is None or found[0].weights_sha256 != weights_sha256:
        raise DataError(f"{dataset.location(extractor_folder(extractor_id))} changed during the evaluation")
    return found[1]


def _images(job: Job, part: Part) -> tuple[NDArray[np.int64], Pixels]:
    """Ids int64 [take] and images uint8 [take, H, W, C] of one part."""
    if part.shard is None:
        ids = np.arange(part.first_id, part.first_id + part.take)
        return ids, noise_images(part.take, job.shape, job.config.evaluate.seed, part.first_id)
    store = job.samples if part.side == "samples" else job.dataset
    table = read_parquet(store, part.shard)
    if part.side == "samples":
        table = table.filter(pc.equal(table["status"], STATUS_OK))
    table = table.slice(0, part.take)
    if len(table) != part.take:
        raise DataError(f"{store.location(part.shard.key)} has {len(table)} usable rows, not {part.take}: verify it")
    images = _decoded(table, job.shape)
    return table["sample_id"].to_numpy(), blurred(images) if part.side == "blurred" else images


def _decoded(table: pa.Table, shape: tuple[int, int, int]) -> Pixels:
    """Column image -> uint8 [rows, H, W, C]. Raises DataError on an image of another shape."""
    pngs = pc.struct_field(table["image"], "bytes")
    images = [decode_pixels(png.as_py(), shape[0] * shape[1]) for png in pngs]
    other = next((image.shape for image in images if image.shape != shape), None)
    if other is not None:
        raise DataError(f"an image is {other} where its manifest says {shape}")
    return np.stack(images)
