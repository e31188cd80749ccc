"""Looks for values that must be nowhere: in every byte at rest, what Parquet holds compressed, folders of logs."""

import base64
import gzip
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pipeline.storage.store import Store

PARQUET = b"PAR1"
PNG = b"\x89PNG"


@dataclass(frozen=True)
class Secrets:
    """Name -> value; a finding names the secret and the place, so that a failing test prints no value."""

    values: Mapping[str, str]

    @property
    def _needles(self) -> Iterator[tuple[str, bytes]]:
        """Each value plain, quoted for a URL, and in base64 at every alignment, without the letters at its ends."""
        for name, value in self.values.items():
            yield name, value.encode()
            yield name, quote(value, safe="").encode()
            for shift in range(3):
                yield name, base64.b64encode(b"-" * shift + value.encode())[4 if shift else 0 : -4]

    def in_bytes(self, where: str, data: bytes) -> list[str]:
        return sorted({f"{name} in {where}" for name, needle in self._needles if needle in data})

    def in_object(self, where: str, data: bytes) -> list[str]:
        """As it is, and what its format holds in other words: metadata and columns of Parquet, text of a PNG, gzip."""
        found = self.in_bytes(where, data)
        for part in _unpacked(data):
            found += self.in_bytes(f"{where} (unpacked)", part)
        return found

    def in_store(self, store: Store) -> list[str]:
        """Keys too."""
        found = []
        for entry in store.list():
            found += self.in_bytes("the name of an object", entry.key.encode())
            found += self.in_object(entry.key, store.read(entry.key))
        return found

    def in_folder(self, folder: Path) -> list[str]:
        found = []
        for path in sorted(folder.rglob("*")):
            if path.is_file() and not path.is_symlink():
                found += self.in_object(str(path.relative_to(folder)), path.read_bytes())
        return found


def _unpacked(data: bytes) -> Iterator[bytes]:
    if data.startswith(PARQUET):
        file = pq.ParquetFile(BytesIO(data))
        metadata = {**(file.metadata.metadata or {}), **(file.schema_arrow.metadata or {})}
        yield b"\n".join([*metadata.keys(), *metadata.values()])
        for field in file.schema_arrow:
            yield b"\n".join(x for pair in (field.metadata or {}).items() for x in pair)
        for column in file.read().flatten().columns:
            if (
                pa.types.is_string(column.type)
                or pa.types.is_binary(column.type)
                or pa.types.is_large_string(column.type)
            ):
                yield b"\n".join(v if isinstance(v, bytes) else v.encode() for v in column.to_pylist() if v is not None)
    elif data.startswith(PNG):
        yield repr(Image.open(BytesIO(data)).info).encode()
    elif data.startswith(b"\x1f\x8b"):
        try:
            yield gzip.decompress(data)
        except (OSError, zlib.error):
            return
