"""Storage of evaluations: extractors with the dataset; feature statistics and scores with the samples.

    <dataset>/extractors/<id>.safetensors, <id>.json               weights, then the record that commits them
    <dataset>/extractors/<id>.weights                              the weights of an extractor trained elsewhere
    <dataset>/extractors/<id>/<side>-N-<count>-<source>.safetensors        feature statistics of real and noise images
    <samples>/metrics/moments-<id>/samples-N-<count>-<source>.safetensors  feature statistics of samples
    <samples>/metrics/evaluation-<id>.parquet, .json               scores as a table, then the document that commits it

The file name of feature statistics identifies the images: the first `count` usable rows of shard N, whose sha256
begins with <source>. A later evaluation therefore reuses the file without reading an image.
"""

from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any, Final, Literal

import pyarrow as pa

from pipeline.config.base import FileEntry, Section
from pipeline.errors import DataError
from pipeline.metrics.classifier import Classifier
from pipeline.metrics.feature_stats import FeatureStats, Kind, Score
from pipeline.metrics.features import Extractor
from pipeline.metrics.pretrained import TRAINED_EXTRACTORS, load_extractor
from pipeline.metrics.protocol import Fingerprint
from pipeline.schema import SCHEMA_VERSION
from pipeline.storage.create_once import create_or_read, create_or_read_document, create_or_read_file, try_create
from pipeline.storage.documents import find_document, read_documents
from pipeline.storage.files import parquet_bytes
from pipeline.storage.store import Store

SCORES = pa.schema(
    [
        pa.field("metric", pa.string(), nullable=False),  # FD-<extractor>, KD-<extractor>, precision-<extractor>, ...
        pa.field("kind", pa.string(), nullable=False),  # samples, or a baseline: floor, blurred, noise, heldout
        pa.field("value", pa.float64(), nullable=False),
        pa.field("spread", pa.float64()),  # standard deviation between random subsets, splits or images
        pa.field("low", pa.float64()),  # 95 % interval, where there is one
        pa.field("high", pa.float64()),
        pa.field("n", pa.int64(), nullable=False),  # number of images measured
        pa.field("reference_n", pa.int64(), nullable=False),  # number of real images compared with, 0: none
        pa.field("reference", pa.string(), nullable=False),  # dataset split compared with
        pa.field("dataset_digest", pa.string(), nullable=False),
        pa.field("samples_plan", pa.string(), nullable=False),  # fingerprint of the samples' plan
        pa.field("extractor", pa.string(), nullable=False),
        pa.field("weights_sha256", pa.string(), nullable=False),
        pa.field("preprocessing", pa.string(), nullable=False),
        pa.field("feature_dim", pa.int64(), nullable=False),
    ]
)
_PROTOCOL: Final = SCORES.names[SCORES.names.index("reference") :]


class ExtractorRecord(Section):
    """`<dataset>/extractors/<id>.json`, which commits the extractor: weights without a record do not count."""

    kind: Literal["extractor"] = "extractor"
    schema_version: int = SCHEMA_VERSION
    id: str  # name, and digest of `made_from`
    name: str
    weights_sha256: str
    preprocessing: str
    feature_dim: int
    heldout_accuracy: float | None  # of a classifier trained by `evaluate`
    heldout_images: int
    train_images: int
    input_size: int | None = None
    made_from: dict[str, Any]  # everything that determines the weights


class Evaluation(Section):
    """`<samples>/metrics/evaluation-<id>.json`, created once, after the score table."""

    kind: Literal["evaluation"] = "evaluation"
    schema_version: int = SCHEMA_VERSION
    id: str  # sha256 of everything that determines the scores
    dataset_digest: str
    samples_plan: str
    reference: str
    n: int
    failed: int  # samples that generation could not make; not measured
    extractor: str
    weights_sha256: str
    preprocessing: str
    feature_dim: int
    heldout_accuracy: float | None
    warnings: tuple[str, ...]
    scores: tuple[Score, ...]
    table: FileEntry

    def value(self, metric: str, kind: Kind) -> float | None:
        """The value of one score, or None when the evaluation has none."""
        return next((s.value for s in self.scores if (s.metric, s.kind) == (metric, kind)), None)

    @property
    def fingerprint(self) -> Fingerprint:
        """The protocol: extractor, weights, preprocessing and reference images."""
        reference = f"{self.dataset_digest}/{self.reference}"
        return Fingerprint(self.extractor, self.weights_sha256, self.preprocessing, self.feature_dim, reference)

    def require_comparable(self, other: "Evaluation") -> None:
        """Raises DataError with every difference in protocol or n. A Frechet distance falls as n grows."""
        self.fingerprint.require_same(other.fingerprint)
        if self.n != other.n:
            raise DataError(f"scores at n = {self.n:,} and n = {other.n:,} cannot be compared: set evaluate.num_images")

    @property
    def frechet_name(self) -> str:
        """Metric name of the Frechet distance, which is the first score."""
        return self.scores[0].metric


def score_table(scores: Iterable[Score], protocol: dict[str, Any]) -> pa.Table:
    """A SCORES table; every row repeats the protocol."""
    fixed = {name: protocol[name] for name in _PROTOCOL}
    return pa.Table.from_pylist([{**score.model_dump(), **fixed} for score in scores], schema=SCORES)


# --- extractors ------------------------------------------------------------------------------------------------------


def extractor_folder(extractor_id: str) -> str:
    """Folder, relative to the dataset, of the feature statistics of dataset and noise images."""
    return f"extractors/{extractor_id}"


def keep_weights(dataset: Store, extractor_id: str, weights: bytes) -> Classifier:
    """Store an extractor's weights once. Later callers get these first weights, possibly of another machine."""
    return Classifier.from_bytes(create_or_read(dataset, f"{extractor_folder(extractor_id)}.safetensors", weights))


def write_extractor(dataset: Store, record: ExtractorRecord) -> ExtractorRecord:
    """Commit an extractor. Returns the stored record: this one, or the one of a concurrent writer that was first."""
    return create_or_read_document(dataset, f"{extractor_folder(record.id)}.json", record)


def keep_pretrained(dataset: Store, record: ExtractorRecord, weights: bytes) -> ExtractorRecord:
    """Commit an extractor trained elsewhere: copy its weights into the dataset folder for all workers."""
    # Weights that exist already are equal: the id contains their hash, and readers verify the hash.
    try_create(dataset, _weights_key(record.id, record.name), weights)
    return write_extractor(dataset, record)


def _weights_key(extractor_id: str, name: str) -> str:
    return f"{extractor_folder(extractor_id)}.{'safetensors' if name in TRAINED_EXTRACTORS else 'weights'}"


def read_record(dataset: Store, extractor_id: str) -> ExtractorRecord | None:
    """The record of a committed extractor, or None."""
    return find_document(dataset, f"{extractor_folder(extractor_id)}.json", ExtractorRecord)


def read_extractor(dataset: Store, extractor_id: str) -> tuple[ExtractorRecord, Extractor] | None:
    """The record and the network, or None. Raises DataError when the weights do not match the record."""
    record = read_record(dataset, extractor_id)
    if record is None:
        return None
    key = _weights_key(record.id, record.name)
    extractor = load_extractor(record.name, dataset.read(key), record.input_size, dataset.location(key))
    if extractor.weights_sha256 != record.weights_sha256:
        raise DataError(
            f"{dataset.location(key)} does not match {extractor_folder(record.id)}.json: delete both files, then run "
            "ddpm evaluate to create them again"
        )
    return record, extractor


@lru_cache(maxsize=1)
def cached_extractor(dataset: Store, extractor_id: str, weights_sha256: str) -> Extractor:
    """The extractor, loaded once a process. Raises DataError when the stored weights have another hash."""
    found = read_extractor(dataset, extractor_id)
    if found is None or found[0].weights_sha256 != weights_sha256:
        raise DataError(f"{dataset.location(extractor_folder(extractor_id))} changed while this command was running")
    return found[1]


# --- feature statistics ----------------------------------------------------------------------------------------------


def feature_stats_name(side: str, number: int, count: int, source: str) -> str:
    """File name for the first `count` images of source `number` with sha256 `source` (hex)."""
    return f"{side}-{number:09d}-{count}-{source[:16]}.safetensors"


def stored_feature_stats(store: Store, folder: str) -> set[str]:
    """Keys of all feature statistics in a folder."""
    return {entry.key for entry in store.list(f"{folder}/") if entry.key.endswith(".safetensors")}


def read_feature_stats(locations: Iterable[tuple[Store, str]]) -> Iterator[FeatureStats]:
    """Feature statistics at (store, key), one at a time in the given order."""
    return (FeatureStats.from_bytes(store.read(key)) for store, key in locations)


# --- results ---------------------------------------------------------------------------------------------------------


def evaluation_key(evaluation_id: str) -> str:
    """Key of an evaluation's document, relative to the samples."""
    return f"metrics/evaluation-{evaluation_id[:16]}.json"


def write_evaluation(samples: Store, scores: tuple[Score, ...], protocol: dict[str, Any]) -> Evaluation:
    """Store the score table, then the document that commits it. An equal evaluation committed earlier wins."""
    key = evaluation_key(protocol["id"])
    rows = score_table(scores, protocol)
    # A table of a concurrent writer differs from this one by rounding at most.
    table = create_or_read_file(samples, key.replace(".json", ".parquet"), parquet_bytes(rows, max(len(rows), 1)))
    return create_or_read_document(samples, key, Evaluation(scores=scores, table=table, **protocol))


def read_evaluation(samples: Store, evaluation_id: str) -> Evaluation | None:
    """A committed evaluation, or None."""
    return find_document(samples, evaluation_key(evaluation_id), Evaluation)


def read_evaluations(samples: Store) -> list[Evaluation]:
    """Every committed evaluation of a samples folder, in order of key."""
    return read_documents(samples, "metrics/evaluation-", Evaluation)
