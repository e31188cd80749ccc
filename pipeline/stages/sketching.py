"""Images of an evaluation, as sketches: which there are to make, and the tasks that make and score them.

A `Job` cuts every side of the evaluation into parts of at most one shard, a function of manifests and settings alone.
"""

import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Final, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.config import Config, digest_of
from pipeline.engine.images import decode_pixels
from pipeline.errors import DataError
from pipeline.manifests import DatasetManifest, FileEntry, Marker, SampleManifest, SamplePlan, ShardEntry
from pipeline.metrics.anchors import blurred, noise_images
from pipeline.metrics.features import CLASS_CNN, ROTATION_CNN, Classifier, fingerprint_of, train_classifier
from pipeline.metrics.sketch import CONSTANTS, Kind, Score, Sketch, merge_all_sketches, score
from pipeline.progress import Progress
from pipeline.schema import STATUS_OK
from pipeline.storage.evaluations import (
    ExtractorRecord,
    extractor_folder,
    keep_weights,
    read_extractor,
    read_sketches,
    sketch_name,
    write_extractor,
    write_sketch,
)
from pipeline.storage.shards import read_parquet
from pipeline.storage.store import Store
from pipeline.storage.webdataset import read_samples

__all__ = ["MEASURED", "REFERENCE", "Job", "Part", "Side", "score_sketches", "sketch_part", "train_extractor"]

Pixels = NDArray[np.uint8]
Labels = NDArray[np.int64]
Side = Literal["train", "samples", "floor", "blurred", "noise"]

REFERENCE: Final[Literal["train"]] = "train"
MEASURED: Final[tuple[Kind, ...]] = ("samples", "floor", "blurred", "noise")
MAX_CLASSIFIER_IMAGES: Final = 100_000
"""The classifier is trained in one process; a dataset is in random order, so its first images stand for all."""
_NOISE_ROWS: Final = 1_024
_FILE: Final = set(FileEntry.model_fields)


@dataclass(frozen=True)
class Part:
    """Images that become one sketch: the first `take` usable rows of a shard at rest, or `take` images of noise."""

    side: Side
    first_id: int
    take: int
    shard: FileEntry | None
    home: Store  # where the sketch is kept, under `key`
    key: str


@dataclass(frozen=True)
class Job:
    """What is to be measured; everything here follows from the two manifests and the settings."""

    config: Config
    samples: Store
    dataset: Store
    plan: SamplePlan
    sealed: SampleManifest
    manifest: DatasetManifest

    @property
    def labelled(self) -> bool:
        return len(self.manifest.classes or ()) >= 2

    @property
    def num_usable(self) -> int:
        return self.sealed.rows - self.sealed.failed

    @property
    def n(self) -> int:
        """Images a side."""
        limit = self.config.evaluate.num_images
        return min(self.manifest.rows("heldout"), self.num_usable, *([limit] if limit else []))

    @cached_property
    def made_from(self) -> dict[str, Any]:
        """All that decides the extractor's weights and its sketches."""
        settings = self.config.evaluate.model_dump(mode="json", exclude={"num_images"})
        return {
            **settings,
            "name": CLASS_CNN if self.labelled else ROTATION_CNN,
            "dataset_digest": self.manifest.digest(),
            "max_images": MAX_CLASSIFIER_IMAGES,
            "score": CONSTANTS,
        }

    @cached_property
    def extractor_id(self) -> str:
        return f"{self.made_from['name']}-{digest_of(self.made_from)[:16]}"

    @cached_property
    def digest(self) -> str:
        """sha256 (hex) of all that decides the scores."""
        shards = [marker.sha256 for marker in self.sealed.shards]
        return digest_of([self.made_from, self.sealed.plan, shards, self.n])

    @property
    def reference(self) -> str:
        """The real images that every side is measured against, as a fingerprint names them."""
        return f"{self.manifest.digest()}/{REFERENCE}"

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.manifest.image_size, self.manifest.image_size, self.manifest.channels

    def parts(self, side: Side) -> list[Part]:
        """What one side is made of, in the order in which its sketches are merged."""
        folder = extractor_folder(self.extractor_id)
        if side == "samples":
            usable = [marker.rows - marker.failed for marker in self.sealed.shards]
            folder = f"metrics/moments-{self.extractor_id}"
            return list(_cut(side, self.sealed.shards, usable, self.n, self.samples, folder))
        if side == "noise":
            return self._noise(folder)
        shards = self.manifest.split("train" if side == "train" else "heldout")
        rows = [shard.rows for shard in shards]
        n = sum(rows) if side == "train" else self.n
        return list(_cut(side, shards, rows, n, self.dataset, folder))

    def _noise(self, folder: str) -> list[Part]:
        source = digest_of([self.config.evaluate.seed, self.shape])
        return [
            Part("noise", first, take, None, self.dataset, f"{folder}/{sketch_name('noise', i, take, source)}")
            for i, first in enumerate(range(0, self.n, _NOISE_ROWS))
            for take in [min(_NOISE_ROWS, self.n - first)]
        ]


def _cut(
    side: Side, shards: Sequence[ShardEntry | Marker], usable: Sequence[int], n: int, home: Store, folder: str
) -> Iterator[Part]:
    """The first n usable images of consecutive shards."""
    for number, (shard, rows) in enumerate(zip(shards, usable, strict=True)):
        take = min(rows, n)
        if take:
            key = f"{folder}/{sketch_name(side, number, take, shard.sha256)}"
            yield Part(side, shard.first_id, take, FileEntry(**shard.model_dump(include=_FILE)), home, key)
        n -= take


# --- tasks ------------------------------------------------------------------------------------------------------------


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
    if part.side == "samples":
        store, table = job.samples, read_samples(job.samples, part.shard, ["sample_id", "image", "status"])
        table = table.filter(pc.equal(table["status"], STATUS_OK))
    else:
        store, table = job.dataset, read_parquet(job.dataset, part.shard, ["sample_id", "image"])
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


def score_sketches(job: Job, record: ExtractorRecord) -> tuple[Score, ...]:
    """A task: every measured side against the training split, from sketches merged in the order of the parts.

    As a task it has one compute thread, wherever it runs. Raises DataError when the sketches were made with
    other weights than the extractor's.
    """
    merged = {
        side: merge_all_sketches(read_sketches((part.home, part.key) for part in job.parts(side)))
        for side in (REFERENCE, *MEASURED)
    }
    if merged[REFERENCE].moments.fingerprint.weights_sha256 != record.weights_sha256:
        raise DataError(
            f"{job.dataset.location(extractor_folder(record.id))} holds sketches of another training of {record.name}: "
            "delete that folder, and the samples' metrics"
        )
    return tuple(score(merged[REFERENCE], {kind: merged[kind] for kind in MEASURED}))
