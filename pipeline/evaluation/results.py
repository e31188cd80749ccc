"""Evaluations at rest: extractors beside the dataset that trained them, sketches and scores beside the samples.

    <dataset>/extractors/<id>.safetensors, <id>.json               weights, then the record that makes them exist
    <dataset>/extractors/<id>.weights                              the same, of weights that came from elsewhere
    <dataset>/extractors/<id>/<side>-N-<take>-<source>.safetensors     sketches of real images and of the ceilings
    <samples>/metrics/moments-<id>/samples-N-<take>-<source>.safetensors    sketches of samples
    <samples>/metrics/evaluation-<id>.parquet, .json               scores as a table, then as a document

The name of a sketch says of which images it is: the first `take` usable ones of shard N, a file of that hash. So
whatever is there under the name can be used without reading an image.
"""

from collections.abc import Iterable, Iterator
from typing import Any, Final, Literal

import pyarrow as pa

from pipeline.config.base import FileEntry, Section
from pipeline.errors import DataError
from pipeline.metrics.classifier import Classifier
from pipeline.metrics.feature_stats import FeatureStats, Kind, Score
from pipeline.metrics.features import Extractor
from pipeline.metrics.pretrained import TRAINED_HERE, load_extractor
from pipeline.metrics.protocol import Fingerprint
from pipeline.schema import SCHEMA_VERSION
from pipeline.storage.create_once import create_or_read, create_or_read_document, create_or_read_file, try_create
from pipeline.storage.documents import find_document, read_documents
from pipeline.storage.files import parquet_bytes
from pipeline.storage.store import Store

__all__ = [
    "SCORES",
    "Evaluation",
    "ExtractorRecord",
    "evaluation_key",
    "extractor_folder",
    "feature_stats_name",
    "keep_pretrained",
    "keep_weights",
    "read_evaluation",
    "read_evaluations",
    "read_extractor",
    "read_feature_stats",
    "read_record",
    "score_table",
    "stored_feature_stats",
    "write_evaluation",
    "write_extractor",
    "write_feature_stats",
]

SCORES = pa.schema(
    [
        pa.field("metric", pa.string(), nullable=False),  # FD-<extractor>, KD-<extractor>, precision-<extractor>, ...
        pa.field("kind", pa.string(), nullable=False),  # samples, or what they are to be judged by
        pa.field("value", pa.float64(), nullable=False),
        pa.field("spread", pa.float64()),  # standard deviation between random subsets, splits or images
        pa.field("low", pa.float64()),  # 95 % interval, where there is one
        pa.field("high", pa.float64()),
        pa.field("n", pa.int64(), nullable=False),  # images measured
        pa.field("reference_n", pa.int64(), nullable=False),  # real images measured against, 0: against none
        pa.field("reference", pa.string(), nullable=False),  # split of the dataset
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
    """`<dataset>/extractors/<id>.json`: the extractor exists when this does."""

    kind: Literal["extractor"] = "extractor"
    schema_version: int = SCHEMA_VERSION
    id: str  # name and digest of all that decides the weights
    name: str
    weights_sha256: str
    preprocessing: str
    feature_dim: int
    heldout_accuracy: float | None  # share right on held-out images, of a network trained here
    heldout_images: int
    train_images: int
    input_size: int | None = None
    made_from: dict[str, Any]  # what the id is the digest of


class Evaluation(Section):
    """`<samples>/metrics/evaluation-<id>.json`, created once after its table."""

    kind: Literal["evaluation"] = "evaluation"
    schema_version: int = SCHEMA_VERSION
    id: str  # sha256 of all that decides the scores
    dataset_digest: str
    samples_plan: str
    reference: str
    n: int
    failed: int  # samples that the generation could not make; none of them is measured
    extractor: str
    weights_sha256: str
    preprocessing: str
    feature_dim: int
    heldout_accuracy: float | None
    warnings: tuple[str, ...]
    scores: tuple[Score, ...]
    table: FileEntry

    def value(self, metric: str, kind: Kind) -> float | None:
        """One score, or None when it was not measured."""
        return next((s.value for s in self.scores if (s.metric, s.kind) == (metric, kind)), None)

    @property
    def fingerprint(self) -> Fingerprint:
        """The protocol of the features."""
        reference = f"{self.dataset_digest}/{self.reference}"
        return Fingerprint(self.extractor, self.weights_sha256, self.preprocessing, self.feature_dim, reference)

    def require_comparable(self, other: "Evaluation") -> None:
        """Raises DataError that names every difference of protocol, or the two n: a Frechet distance falls with n."""
        self.fingerprint.require_same(other.fingerprint)
        if self.n != other.n:
            raise DataError(f"scores at n = {self.n:,} and n = {other.n:,} cannot be compared: evaluate.num_images")

    @property
    def frechet_name(self) -> str:
        """Name of the first score, the Frechet distance."""
        return self.scores[0].metric


def score_table(scores: Iterable[Score], protocol: dict[str, Any]) -> pa.Table:
    """SCORES: every row says by which protocol it was made."""
    fixed = {name: protocol[name] for name in _PROTOCOL}
    return pa.Table.from_pylist([{**score.model_dump(), **fixed} for score in scores], schema=SCORES)


# --- extractors ------------------------------------------------------------------------------------------------------


def extractor_folder(extractor_id: str) -> str:
    """Of an extractor's sketches of the dataset's own images, relative to the dataset."""
    return f"extractors/{extractor_id}"


def keep_weights(dataset: Store, extractor_id: str, weights: bytes) -> Classifier:
    """Store an extractor's weights once; whoever comes later gets the first ones, which may be of another machine."""
    return Classifier.from_bytes(create_or_read(dataset, f"{extractor_folder(extractor_id)}.safetensors", weights))


def write_extractor(dataset: Store, record: ExtractorRecord) -> ExtractorRecord:
    """Make the extractor exist; returns the record that does, ours or a faster writer's."""
    return create_or_read_document(dataset, f"{extractor_folder(record.id)}.json", record)


def keep_pretrained(dataset: Store, record: ExtractorRecord, weights: bytes) -> ExtractorRecord:
    """Make an extractor exist whose `weights` came from elsewhere, so that every worker finds it beside the data."""
    # Weights that exist already are equal: the id holds their hash, and readers check them.
    try_create(dataset, _weights_key(record.id, record.name), weights)
    return write_extractor(dataset, record)


def _weights_key(extractor_id: str, name: str) -> str:
    return f"{extractor_folder(extractor_id)}.{'safetensors' if name in TRAINED_HERE else 'weights'}"


def read_record(dataset: Store, extractor_id: str) -> ExtractorRecord | None:
    """The record, or None."""
    return find_document(dataset, f"{extractor_folder(extractor_id)}.json", ExtractorRecord)


def read_extractor(dataset: Store, extractor_id: str) -> tuple[ExtractorRecord, Extractor] | None:
    """The record and the network, or None. Raises DataError when the weights are not those of the record."""
    record = read_record(dataset, extractor_id)
    if record is None:
        return None
    key = _weights_key(record.id, record.name)
    extractor = load_extractor(record.name, dataset.read(key), record.input_size, dataset.location(key))
    if extractor.weights_sha256 != record.weights_sha256:
        raise DataError(
            f"{dataset.location(key)} is not what {extractor_folder(record.id)}.json names: delete both, and evaluate "
            "makes them again"
        )
    return record, extractor


# --- sketches --------------------------------------------------------------------------------------------------------


def feature_stats_name(side: str, number: int, take: int, source: str) -> str:
    """File name of the sketch of the first `take` images of a source with this sha256 (hex)."""
    return f"{side}-{number:09d}-{take}-{source[:16]}.safetensors"


def write_feature_stats(store: Store, key: str, sketch: FeatureStats) -> None:
    """Store one sketch; whoever does it again writes the same bytes."""
    store.put(key, sketch.to_bytes())


def stored_feature_stats(store: Store, folder: str) -> set[str]:
    """Keys of the sketches in a folder."""
    return {entry.key for entry in store.list(f"{folder}/") if entry.key.endswith(".safetensors")}


def read_feature_stats(places: Iterable[tuple[Store, str]]) -> Iterator[FeatureStats]:
    """One at a time, in the order given."""
    return (FeatureStats.from_bytes(store.read(key)) for store, key in places)


# --- results ---------------------------------------------------------------------------------------------------------


def evaluation_key(evaluation_id: str) -> str:
    """Of the result's document, relative to the samples."""
    return f"metrics/evaluation-{evaluation_id[:16]}.json"


def write_evaluation(samples: Store, scores: tuple[Score, ...], protocol: dict[str, Any]) -> Evaluation:
    """The table, then the document that makes it exist. An equal evaluation that was faster is taken as it is."""
    key = evaluation_key(protocol["id"])
    rows = score_table(scores, protocol)
    # A table that is there already differs from ours in rounding at most.
    table = create_or_read_file(samples, key.replace(".json", ".parquet"), parquet_bytes(rows, max(len(rows), 1)))
    return create_or_read_document(samples, key, Evaluation(scores=scores, table=table, **protocol))


def read_evaluation(samples: Store, evaluation_id: str) -> Evaluation | None:
    """One result, or None."""
    return find_document(samples, evaluation_key(evaluation_id), Evaluation)


def read_evaluations(samples: Store) -> list[Evaluation]:
    """Every result beside the samples, in order of key."""
    return read_documents(samples, "metrics/evaluation-", Evaluation)
