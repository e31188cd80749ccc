"""Storage of memorisation results, in the samples folder.

<samples>/metrics/memorisation-<id>.parquet        NEIGHBOURS: the nearest training images of every sample
<samples>/metrics/memorisation-<id>-<space>.png    the closest pairs, sample left, training image right
<samples>/metrics/memorisation-<id>.json           created once, last: results, protocol, pairs on the sheets
"""

from collections.abc import Mapping
from typing import Any, Literal

import pyarrow as pa

from pipeline.config.base import FileEntry, Section
from pipeline.metrics.memorisation import Space, SpaceResult
from pipeline.schema import SCHEMA_VERSION
from pipeline.storage.create_once import create_or_read_document, create_or_read_file
from pipeline.storage.documents import find_document, read_documents
from pipeline.storage.files import parquet_bytes, read_verified
from pipeline.storage.store import Store

_PREFIX = "metrics/memorisation-"
_ROW_GROUP = 10_000

NEIGHBOURS = pa.schema(
    [
        pa.field("sample_id", pa.int64(), nullable=False),
        pa.field("space", pa.string(), nullable=False),  # pixel or feature
        pa.field("rank", pa.int32(), nullable=False),  # of the training image among the sample's neighbours, from 1
        pa.field("train_id", pa.int64(), nullable=False),  # sample_id in the dataset
        pa.field("distance", pa.float64(), nullable=False),  # in the unit of the space
        pa.field("relative", pa.float64(), nullable=False),  # of the sample: nearest distance / mean of the others
        pa.field("near_copy", pa.bool_(), nullable=False),  # of the sample
    ]
)


class Pair(Section):
    """A sample and its nearest training image; pairs are ordered by relative distance, smallest first."""

    space: Space
    place: int  # position on the sheet, from 1, row by row
    sample_id: int
    train_id: int
    distance: float
    relative: float
    near_copy: bool


class Memorisation(Section):
    """`<samples>/metrics/memorisation-<id>.json`."""

    kind: Literal["memorisation"] = "memorisation"
    schema_version: int = SCHEMA_VERSION
    id: str  # sha256 of everything that determines the result
    dataset_digest: str
    samples_plan: str
    reference: str  # split that was searched
    reference_n: int
    n: int  # samples compared
    usable: int  # samples with an image
    failed: int  # samples that generation could not make
    heldout_n: int
    rule: str
    closeness: float
    neighbours: int  # k
    flips: bool
    extractor: str
    weights_sha256: str
    preprocessing: str
    feature_dim: int
    heldout_accuracy: float | None
    warnings: tuple[str, ...]
    spaces: tuple[SpaceResult, ...]
    pairs: tuple[Pair, ...]
    table: FileEntry
    sheets: dict[Space, FileEntry]

    def of(self, space: Space) -> SpaceResult:
        """The result in one space."""
        return next(result for result in self.spaces if result.space == space)


def memorisation_key(memorisation_id: str) -> str:
    """Key of a result's document, relative to the samples."""
    return f"{_PREFIX}{memorisation_id[:16]}.json"


def write_memorisation(
    samples: Store, neighbours: pa.Table, sheets: Mapping[Space, bytes], fields: Mapping[str, Any]
) -> Memorisation:
    """Store table and sheets (PNG), then the document that commits them. An equal result committed earlier wins.

    fields: all fields of a Memorisation except table and sheets.
    """
    key = memorisation_key(fields["id"])
    stem = key.removesuffix(".json")
    table = create_or_read_file(samples, f"{stem}.parquet", parquet_bytes(neighbours, _ROW_GROUP))
    files = {space: create_or_read_file(samples, f"{stem}-{space}.png", png) for space, png in sheets.items()}
    return create_or_read_document(samples, key, Memorisation(table=table, sheets=files, **fields))


def read_memorisation(samples: Store, memorisation_id: str) -> Memorisation | None:
    """A committed result, or None."""
    return find_document(samples, memorisation_key(memorisation_id), Memorisation)


def read_memorisations(samples: Store) -> list[Memorisation]:
    """Every committed result of a samples folder, in order of key."""
    return read_documents(samples, _PREFIX, Memorisation)


def read_sheet(samples: Store, result: Memorisation, space: Space) -> bytes:
    """PNG of the closest pairs. Raises VerificationFailed when the file differs from the one written."""
    return read_verified(samples, result.sheets[space])
