"""Images of an evaluation, as sketches: which there are to make, and the tasks that make and score them.

A `Job` cuts every side of the evaluation into parts of at most one shard, a function of manifests and settings alone.
"""

import pickle
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from itertools import pairwise
from typing import Any, Final, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.config import Config, digest_of
from pipeline.engine.images import decode_batch
from pipeline.errors import DataError
from pipeline.manifests import DatasetManifest, FileEntry, Marker, SampleManifest, SamplePlan, ShardEntry
from pipeline.metrics.anchors import blurred, noise_images
from pipeline.metrics.classifier import CLASS_CNN, ROTATION_CNN
from pipeline.metrics.features import Answer, Extractor, fingerprint_of
from pipeline.metrics.fingerprint import Fingerprint
from pipeline.metrics.scoring import score
from pipeline.metrics.sketch import CONSTANTS, Kind, Score, Sketch, merge_all_sketches
from pipeline.schema import STATUS_OK
from pipeline.storage.evaluations import (
    ExtractorRecord,
    extractor_folder,
    read_extractor,
    read_sketches,
    sketch_name,
    write_sketch,
)
from pipeline.storage.pretrained import given_weights
from pipeline.storage.samples import read_sealed
from pipeline.storage.shards import read_dataset, read_parquet
from pipeline.storage.store import Store, resolve
from pipeline.storage.webdataset import read_samples

__all__ = [
    "MAX_CLASSIFIER_IMAGES",
    "MEASURED",
    "REFERENCE",
    "Job",
    "Part",
    "Side",
    "open_job",
    "score_sketches",
    "sketch_of",
    "sketch_part",
]

Pixels = NDArray[np.uint8]
Fillers = list[tuple[int, Callable[[], None]]]
Side = Literal["train", "samples", "floor", "blurred", "noise"]

REFERENCE: Final[Literal["train"]] = "train"
MEASURED: Final[tuple[Literal["samples", "floor", "blurred", "noise"], ...]] = ("samples", "floor", "blurred", "noise")
MAX_CLASSIFIER_IMAGES: Final = 100_000
"""The classifier is trained in one process; a dataset is in random order, so its first images stand for all."""
_NOISE_ROWS: Final = 1_024
_DECODE_ROWS: Final = 256


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

    @property
    def pretrained(self) -> bool:
        return self.config.evaluate.extractor != "classifier"

    @cached_property
    def made_from(self) -> dict[str, Any]:
        """All that decides the extractor's weights and its sketches. Raises ConfigError on weights that are missing."""
        evaluate = self.config.evaluate
        made = {"dataset_digest": self.manifest.digest(), "seed": evaluate.seed, "score": CONSTANTS}
        if self.pretrained:
            weights = given_weights(evaluate, self.config.storage).sha256
            return {**made, "name": evaluate.extractor, "weights": weights, "input_size": evaluate.input_size}
        settings = evaluate.model_dump(mode="json", include={"classifier_epochs", "classifier_width"})
        name = CLASS_CNN if self.labelled else ROTATION_CNN
        return {**made, **settings, "name": name, "max_images": MAX_CLASSIFIER_IMAGES}

    @cached_property
    def extractor_id(self) -> str:
        return f"{self.made_from['name']}-{digest_of(self.made_from)[:16]}"

    @cached_property
    def digest(self) -> str:
        """sha256 (hex) of all that decides the scores."""
        shards = [marker.sha256 for marker in self.sealed.shards]
        besides = self.config.evaluate.model_dump(mode="json", include={"extrapolate", "bits_per_dim"})
        return digest_of([self.made_from, self.sealed.plan, shards, self.n, besides])

    @property
    def reference(self) -> str:
        """The real images that every side is measured against, as a fingerprint names them."""
        return f"{self.manifest.digest()}/{REFERENCE}"

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.manifest.shape

    def parts(self, side: Side) -> list[Part]:
        """What one side is made of, in order of id."""
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


def open_job(config: Config, samples: str, dataset: str) -> Job:
    """Raises DataError for samples that are not sealed, a missing dataset, images of different kinds."""
    sample_store, data_store = resolve(samples, config.storage), resolve(dataset, config.storage)
    (plan, sealed), manifest = read_sealed(sample_store), read_dataset(data_store)
    job = Job(config, sample_store, data_store, plan, sealed, manifest)
    if (plan.image_size, plan.channels) != (manifest.image_size, manifest.channels):
        raise DataError(
            f"{job.samples.uri} has images of {_kind_of_image(plan)}, {job.dataset.uri} of {_kind_of_image(manifest)}: "
            "give the dataset that the model was trained on"
        )
    return job


def _kind_of_image(of: SamplePlan | DatasetManifest) -> str:
    return f"{of.image_size}x{of.image_size}x{of.channels}"


def _cut(
    side: Side, shards: Sequence[ShardEntry | Marker], usable: Sequence[int], n: int, home: Store, folder: str
) -> Iterator[Part]:
    """The first n usable images of consecutive shards."""
    for number, (shard, rows) in enumerate(zip(shards, usable, strict=True)):
        take = min(rows, n)
        if take:
            key = f"{folder}/{sketch_name(side, number, take, shard.sha256)}"
            yield Part(side, shard.first_id, take, shard.file, home, key)
        n -= take


# --- tasks ------------------------------------------------------------------------------------------------------------


def sketch_part(batch: pa.Table, job: Job, weights_sha256: str) -> pa.Table:
    """Column part (a pickled Part) -> column images (how many it has); its sketch is stored."""
    part: Part = pickle.loads(batch["part"][0].as_py())
    extractor = _extractor(job.dataset, job.extractor_id, weights_sha256)
    sketch = sketch_of(extractor, fingerprint_of(extractor, job.reference), job, part)
    write_sketch(part.home, part.key, sketch)
    return pa.table({"images": [part.take]})


def sketch_of(extractor: Extractor, fingerprint: Fingerprint, job: Job, part: Part) -> Sketch:
    """Of the images of one part, decoded on a thread of its own while the extractor is at those before."""
    ids, images, fillers = _images(job, part)
    answers: list[Answer] = []
    with ThreadPoolExecutor(1, "decode") as side:
        ready = [(stop, side.submit(fill)) for stop, fill in fillers]
        start = 0
        for stop, future in ready:
            future.result()
            answers.append(extractor.answer(images[start:stop]))
            start = stop
    features = np.concatenate([answer.features for answer in answers])
    probabilities = [answer.probabilities for answer in answers if answer.probabilities is not None]
    answer = Answer(features, np.concatenate(probabilities) if probabilities else None)
    return Sketch.of(fingerprint, job.config.evaluate.seed, ids, images, answer)


@lru_cache(maxsize=1)
def _extractor(dataset: Store, extractor_id: str, weights_sha256: str) -> Extractor:
    """Once a process. The hash is there so that a process never serves an extractor that was since replaced."""
    found = read_extractor(dataset, extractor_id)
    if found is None or found[0].weights_sha256 != weights_sha256:
        raise DataError(f"{dataset.location(extractor_folder(extractor_id))} changed during the evaluation")
    return found[1]


def _images(job: Job, part: Part) -> tuple[NDArray[np.int64], Pixels, Fillers]:
    """Ids int64 [take], room for images uint8 [take, H, W, C], and what fills it: (up to which row, how)."""
    images = np.empty((part.take, *job.shape), np.uint8)
    stops = [min(start + _DECODE_ROWS, part.take) for start in range(0, part.take, _DECODE_ROWS)]
    if part.shard is None:
        ids = np.arange(part.first_id, part.first_id + part.take)

        def noise(start: int, stop: int) -> None:
            images[start:stop] = noise_images(stop - start, job.shape, job.config.evaluate.seed, part.first_id + start)

        fill: Fillers = [(stop, partial(noise, start, stop)) for start, stop in pairwise([0, *stops])]
        return ids, images, fill
    table = _rows(job, part, part.shard)
    pngs = pc.struct_field(table["image"], "bytes").to_pylist()

    def decode(start: int, stop: int) -> None:
        images[start:stop] = decode_batch(pngs[start:stop], job.shape)
        if part.side == "blurred":
            images[start:stop] = blurred(images[start:stop])

    fillers: Fillers = [(stop, partial(decode, start, stop)) for start, stop in pairwise([0, *stops])]
    return table["sample_id"].to_numpy(), images, fillers


def _rows(job: Job, part: Part, shard: FileEntry) -> pa.Table:
    """Columns sample_id and image of a part."""
    if part.side == "samples":
        store, table = job.samples, read_samples(job.samples, shard, ["sample_id", "image", "status"])
        table = table.filter(pc.equal(table["status"], STATUS_OK))
    else:
        store, table = job.dataset, read_parquet(job.dataset, shard, ["sample_id", "image"])
    table = table.slice(0, part.take)
    if len(table) != part.take:
        raise DataError(f"{store.location(shard.key)} has {len(table)} usable rows, not {part.take}: verify it")
    return table


def score_sketches(job: Job, record: ExtractorRecord) -> tuple[Score, ...]:
    """A task: every measured side against the training split, from the merged sketches of its parts.

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
    kinds: dict[Kind, Sketch] = {kind: merged[kind] for kind in MEASURED}
    return tuple(score(merged[REFERENCE], kinds, job.config.evaluate.extrapolate))
