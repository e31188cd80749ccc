"""Images of an evaluation, as sketches: which there are to make, and the tasks that make and score them.

A `Job` cuts every side of the evaluation into parts of at most one shard, a function of manifests and settings alone.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.config.base import FileEntry, digest_of
from pipeline.config.root import Config
from pipeline.errors import DataError
from pipeline.evaluation.pretrained_weights import given_weights
from pipeline.evaluation.results import extractor_folder, feature_stats_name
from pipeline.generation.commit import read_sealed
from pipeline.generation.manifest import Marker, SampleManifest, SamplePlan
from pipeline.ingest.dataset import read_dataset
from pipeline.ingest.manifest import DatasetManifest, ShardEntry
from pipeline.metrics.classifier import CLASS_CNN, ROTATION_CNN
from pipeline.metrics.feature_stats import CONSTANTS
from pipeline.storage.store import Store, resolve

__all__ = ["MAX_CLASSIFIER_IMAGES", "MEASURED", "REFERENCE", "EvaluationContext", "Part", "Side", "open_context"]

Pixels = NDArray[np.uint8]
Side = Literal["train", "samples", "floor", "blurred", "noise"]

REFERENCE: Final[Literal["train"]] = "train"
MEASURED: Final[tuple[Literal["samples", "floor", "blurred", "noise"], ...]] = ("samples", "floor", "blurred", "noise")
MAX_CLASSIFIER_IMAGES: Final = 100_000
"""The classifier is trained in one process; a dataset is in random order, so its first images stand for all."""
_NOISE_ROWS: Final = 1_024


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
class EvaluationContext:
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
            Part("noise", first, take, None, self.dataset, f"{folder}/{feature_stats_name('noise', i, take, source)}")
            for i, first in enumerate(range(0, self.n, _NOISE_ROWS))
            for take in [min(_NOISE_ROWS, self.n - first)]
        ]


def open_context(config: Config, samples: str, dataset: str) -> EvaluationContext:
    """Raises DataError for samples that are not sealed, a missing dataset, images of different kinds."""
    sample_store, data_store = resolve(samples, config.storage), resolve(dataset, config.storage)
    (plan, sealed), manifest = read_sealed(sample_store), read_dataset(data_store)
    context = EvaluationContext(config, sample_store, data_store, plan, sealed, manifest)
    if (plan.image_size, plan.channels) != (manifest.image_size, manifest.channels):
        raise DataError(
            f"{context.samples.uri} has images of {_kind_of_image(plan)}, "
            f"{context.dataset.uri} of {_kind_of_image(manifest)}: give the dataset that the model was trained on"
        )
    return context


def _kind_of_image(of: SamplePlan | DatasetManifest) -> str:
    return f"{of.image_size}x{of.image_size}x{of.channels}"


def _cut(
    side: Side, shards: Sequence[ShardEntry | Marker], usable: Sequence[int], n: int, home: Store, folder: str
) -> Iterator[Part]:
    """The first n usable images of consecutive shards."""
    for number, (shard, rows) in enumerate(zip(shards, usable, strict=True)):
        take = min(rows, n)
        if take:
            key = f"{folder}/{feature_stats_name(side, number, take, shard.sha256)}"
            yield Part(side, shard.first_id, take, shard.file, home, key)
        n -= take
