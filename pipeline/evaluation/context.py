"""What one evaluation measures: the sides to compare, and the image sets that each side consists of.

The manifests and the settings alone determine the image sets. Feature statistics are stored per image set, so that
later evaluations reuse the stored files.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, Literal

from pipeline.config.base import digest_of
from pipeline.config.root import Config
from pipeline.errors import DataError
from pipeline.evaluation.pretrained_weights import given_weights
from pipeline.evaluation.results import ExtractorRecord, extractor_folder, feature_stats_name, read_feature_stats
from pipeline.evaluation.stored_images import StoredShard, first_rows
from pipeline.generation.commit import read_sealed
from pipeline.generation.manifest import SampleManifest, SamplePlan
from pipeline.ingest.dataset import read_dataset
from pipeline.ingest.manifest import DatasetManifest, Split
from pipeline.metrics.classifier import CLASS_CNN, ROTATION_CNN
from pipeline.metrics.feature_stats import CONSTANTS, FeatureStats
from pipeline.metrics.moments import merge_all
from pipeline.storage.store import Store, resolve

Side = Literal["train", "samples", "floor", "blurred", "noise"]

MeasuredSide = Literal["samples", "floor", "blurred", "noise"]

REFERENCE: Final[Literal["train"]] = "train"
MEASURED: Final[tuple[MeasuredSide, ...]] = ("samples", "floor", "blurred", "noise")
MIN_IMAGES: Final = 2
"""Images that a score needs on each side."""
MAX_CLASSIFIER_IMAGES: Final = 100_000
"""The classifier trains in one process. Datasets are stored in random order, so the first images are representative."""
_NOISE_ROWS: Final = 1_024


def num_scored(usable: int, heldout: int, wanted: int | None) -> int:
    """How many samples to score. wanted: evaluate.num_images; unset: as many as there are held-out images, if any.

    An explicit number, or a dataset without a floor, leaves the number of held-out images out of account.
    """
    if wanted is not None:
        return min(usable, wanted)
    return usable if heldout < MIN_IMAGES else min(usable, heldout)


@dataclass(frozen=True)
class ImageSet:
    """Images with one stored file of feature statistics: the first `count` usable rows of a shard, or noise images.

    store, key: location of the feature statistics; the shard is in the same store.
    """

    side: Side
    first_id: int
    count: int
    shard: StoredShard | None  # None: noise
    store: Store
    key: str


@dataclass(frozen=True)
class EvaluationContext:
    """Samples, dataset and settings of one evaluation; every other property follows from these."""

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
        """Number of samples that are scored, and of noise images."""
        return num_scored(self.num_usable, self.manifest.rows("heldout"), self.config.evaluate.num_images)

    @property
    def floor_n(self) -> int:
        """Number of held-out images in the floor; 0: too few for a floor."""
        heldout = min(self.n, self.manifest.rows("heldout"))
        return heldout if heldout >= MIN_IMAGES else 0

    @property
    def measured(self) -> tuple[MeasuredSide, ...]:
        """The sides to score."""
        return tuple(side for side in MEASURED if side != "floor" or self.floor_n)

    @property
    def blurred_split(self) -> Split:
        """The split whose first images are blurred: the training split when there are fewer than n held-out images."""
        return "heldout" if self.floor_n == self.n else "train"

    @property
    def pretrained(self) -> bool:
        return self.config.evaluate.extractor != "classifier"

    @cached_property
    def made_from(self) -> dict[str, Any]:
        """Inputs of the extractor id: everything that determines weights and feature statistics.

        Raises ConfigError when the weights file is missing.
        """
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
        """sha256 (hex) of everything that determines the scores."""
        shards = [marker.sha256 for marker in self.sealed.shards]
        besides = self.config.evaluate.model_dump(mode="json", include={"extrapolate", "bits_per_dim"})
        return digest_of([self.made_from, self.sealed.plan, shards, self.n, besides])

    @property
    def reference(self) -> str:
        """Name of the reference images (the training split) in fingerprints."""
        return f"{self.manifest.digest()}/{REFERENCE}"

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.manifest.shape

    def protocol(self, record: ExtractorRecord) -> dict[str, Any]:
        """Fields that every result document has: what was measured, and with which extractor."""
        return {
            "dataset_digest": self.manifest.digest(),
            "samples_plan": self.sealed.plan,
            "reference": REFERENCE,
            "failed": self.sealed.failed,
            "extractor": record.name,
            **record.model_dump(include={"weights_sha256", "preprocessing", "feature_dim", "heldout_accuracy"}),
        }

    def image_sets(self, side: Side) -> list[ImageSet]:
        """The image sets of one side, in order of id."""
        folder = extractor_folder(self.extractor_id)
        if side == "noise":
            source = digest_of([self.config.evaluate.seed, self.shape])
            starts = range(0, self.n, _NOISE_ROWS)
            counts = [min(_NOISE_ROWS, self.n - start) for start in starts]
            names = [feature_stats_name(side, i, count, source) for i, count in enumerate(counts)]
            return [
                ImageSet(side, start, count, None, self.dataset, f"{folder}/{name}")
                for start, count, name in zip(starts, counts, names, strict=True)
            ]
        store, n = self.dataset, self.n
        splits: dict[Side, Split] = {REFERENCE: REFERENCE, "blurred": self.blurred_split}
        shards: Sequence[StoredShard] = self.manifest.split(splits.get(side, "heldout"))
        if side == "samples":
            store, shards, folder = self.samples, self.sealed.shards, f"metrics/moments-{self.extractor_id}"
        elif side == REFERENCE:
            n = self.manifest.rows(REFERENCE)
        return [
            ImageSet(side, s.first_id, count, s, store, f"{folder}/{feature_stats_name(side, i, count, s.sha256)}")
            for i, s, count in first_rows(shards, n)
        ]

    def stored_stats(self, side: Side) -> FeatureStats:
        """The stored feature statistics of one side, merged."""
        return merge_all(read_feature_stats((one.store, one.key) for one in self.image_sets(side)))


def open_context(config: Config, samples: str, dataset: str) -> EvaluationContext:
    """Raises DataError when the samples are not sealed, the dataset is missing or the image shapes differ."""
    sample_store, data_store = resolve(samples, config.storage), resolve(dataset, config.storage)
    (plan, sealed), manifest = read_sealed(sample_store), read_dataset(data_store)
    context = EvaluationContext(config, sample_store, data_store, plan, sealed, manifest)
    if (plan.image_size, plan.channels) != (manifest.image_size, manifest.channels):
        raise DataError(
            f"{context.samples.uri} has images of {_dimensions(plan)}, {context.dataset.uri} has images of "
            f"{_dimensions(manifest)}: pass the dataset that the model was trained on"
        )
    return context


def _dimensions(of: SamplePlan | DatasetManifest) -> str:
    return f"{of.image_size}x{of.image_size}x{of.channels}"
