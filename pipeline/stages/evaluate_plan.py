"""What an evaluation measures, cut into parts of at most one shard: a function of manifests and settings alone."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, Literal

from pipeline.config import Config, digest_of
from pipeline.manifests import DatasetManifest, FileEntry, Marker, SampleManifest, SamplePlan, ShardEntry
from pipeline.metrics.features import CLASS_CNN, ROTATION_CNN
from pipeline.metrics.sketch import CONSTANTS, Kind
from pipeline.storage.evaluations import extractor_folder, sketch_name
from pipeline.storage.store import Store

__all__ = ["MAX_CLASSIFIER_IMAGES", "MEASURED", "REFERENCE", "Job", "Part", "Side"]

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
