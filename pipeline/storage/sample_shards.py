"""Shards of generated samples: written as tar files for WebDataset, read from tar or Parquet.

A tar shard has two members per sample, named by the sample id: NNNNNNNNNNNN.png, and NNNNNNNNNNNN.json with the other
columns. A failed sample has no PNG. Members hold no time and no owner, so equal rows give equal bytes.
"""

import io
import json
import tarfile
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config.base import FileEntry
from pipeline.errors import DataError
from pipeline.schema import REQUESTED_SAMPLES, SAMPLES
from pipeline.storage.files import read_verified
from pipeline.storage.store import Store

TAR = ".tar"
"""File name ending of a tar shard."""
ID_DIGITS = 12


def tar_bytes(table: pa.Table) -> bytes:
    """Rows of SAMPLES or REQUESTED_SAMPLES as one tar file in memory."""
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for row in table.to_pylist():
            stem, image = f"{row['sample_id']:0{ID_DIGITS}d}", row.pop("image")
            if image is not None:
                _add(tar, f"{stem}.png", image["bytes"])
            _add(tar, f"{stem}.json", json.dumps(row, sort_keys=True).encode())
    return sink.getvalue()


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def _table(data: bytes) -> pa.Table:
    """The rows of a tar file made by `tar_bytes`. Raises DataError."""
    rows: list[dict[str, Any]] = []
    pending: tuple[str, bytes] | None = None
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
            for member in tar:
                stem, _, ending = member.name.partition(".")
                file = tar.extractfile(member)
                content = b"" if file is None else file.read()
                if ending == "png" and pending is None:
                    pending = stem, content
                    continue
                row = json.loads(content) if ending == "json" else None
                if not isinstance(row, dict) or (pending is not None and pending[0] != stem):
                    raise DataError(f"member {member.name} is out of place: NNN.png must come before NNN.json")
                if f"{row.get('sample_id', -1):0{ID_DIGITS}d}" != stem:
                    raise DataError(f"member {member.name} has the sample_id {row.get('sample_id')}")
                rows.append({**row, "image": None if pending is None else {"bytes": pending[1], "path": None}})
                pending = None
    except (tarfile.TarError, ValueError, TypeError) as error:
        raise DataError(f"is not a tar file of samples: {error}") from error
    if pending is not None:
        raise DataError(f"image {pending[0]}.png has no {pending[0]}.json")
    schema = REQUESTED_SAMPLES if rows and "request_id" in rows[0] else SAMPLES
    if any(row.keys() != set(schema.names) for row in rows):
        raise DataError(f"has columns with other names than {', '.join(schema.names)}")
    try:
        return pa.Table.from_pylist(rows, schema=schema)
    except (pa.ArrowException, OverflowError) as error:
        raise DataError(f"has columns of wrong types: {error}") from error


def decode_shard(key: str, data: bytes, columns: Sequence[str] | None = None) -> pa.Table:
    """The rows of a shard from its bytes; the ending of `key` decides the format.

    Raises DataError, and ArrowException or OSError for a damaged Parquet file.
    """
    if not key.endswith(TAR):
        return pq.read_table(pa.BufferReader(data), columns=None if columns is None else list(columns))
    table = _table(data)
    return table if columns is None else table.select(columns)


def read_samples(store: Store, entry: FileEntry, columns: Sequence[str] | None = None) -> pa.Table:
    """The rows of a shard, verified against its entry. Raises VerificationFailed, DataError."""
    return decode_shard(entry.key, read_verified(store, entry), columns)
