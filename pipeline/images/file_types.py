"""Detects the type of a file from its first bytes; file names are not used."""

import zlib
from typing import Final, Literal

from pipeline.images.boxes import JPEG_2000, JPEG_XL
from pipeline.images.foreign_types import foreign_type

Kind = Literal[
    "empty",
    "image",
    "parquet",
    "tar",
    "zip",
    "idx",
    "idx-labels",
    "gzip",
    "archive",
    "pickle",
    "lmdb",
    "arrow",
    "text",
    "unknown",
]

HEAD_BYTES: Final = 8192
"""Number of bytes that `kind_of` needs."""

_IMAGES: Final = (
    b"\x89PNG\r\n\x1a\n",
    b"\xff\xd8\xff",
    b"GIF87a",
    b"GIF89a",
    b"II*\x00",
    b"MM\x00*",
    b"II+\x00",
    b"MM\x00+",
)
_ZIPS: Final = (b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08")
_ARCHIVES: Final = (b"BZh", b"\xfd7zXZ\x00", b"7z\xbc\xaf\x27\x1c", b"Rar!\x1a\x07", b"\x28\xb5\x2f\xfd")
_CONTROL: Final = bytes(n for n in range(32) if n not in b"\t\n\f\r\x1b")
_TAR_BLOCK: Final = 512
_LMDB: Final = b"\xde\xc0\xef\xbe"
_NAMES: Final[dict[Kind, str]] = {
    "image": "an image",
    "parquet": "a Parquet file",
    "tar": "a tar archive",
    "zip": "a zip archive",
    "idx": "an IDX file of images",
    "idx-labels": "an IDX file of labels",
    "gzip": "a gzip file",
    "archive": "an archive (bzip2, xz, 7z, rar or zstd)",
    "pickle": "a pickle of Python",
    "lmdb": "an LMDB database",
    "arrow": "an Arrow file",
    "text": "text",
}


def kind_of(head: bytes) -> Kind:
    """The kind of a file from its first `HEAD_BYTES` bytes; for gzip, the kind of the compressed data if known."""
    if not head:
        return "empty"
    if head.startswith(b"\x1f\x8b"):
        inside = _kind(_unzipped(head))
        return inside if inside in ("tar", "idx", "idx-labels") else "gzip"
    return _kind(head)


def _kind(head: bytes) -> Kind:
    if head.startswith((*_IMAGES, *JPEG_2000, *JPEG_XL)) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP"):
        return "image"
    if (head[:2] == b"BM" and head[6:10] == bytes(4)) or (head[:1] == b"P" and head[1:2] in b"123456" and _space(head)):
        return "image"
    if head[4:8] == b"ftyp" and {head[8:12], *_brands(head)} & {b"avif", b"avis"}:
        return "image"
    if head.startswith(b"PAR1"):
        return "parquet"
    if head.startswith(_ZIPS):
        return "zip"
    if head.startswith(b"\x00\x00\x08") and head[3:4] in (b"\x03", b"\x04", b"\x01"):
        return "idx-labels" if head[3] == 1 else "idx"
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05") and len(head) > 2:
        return "pickle"
    if head.startswith(b"ARROW1\0\0") or _is_arrow_stream(head):
        return "arrow"
    if head[16:20] == _LMDB:
        return "lmdb"
    if head.startswith(_ARCHIVES):
        return "archive"
    if _is_tar(head):
        return "tar"
    return "text" if _is_text(head) else "unknown"


def is_lmdb_lock(head: bytes) -> bool:
    """True for the lock file beside an LMDB database, which holds no data."""
    return head.startswith(_LMDB)


def describe_head(head: bytes) -> str:
    """A noun phrase for the content of a file, for messages."""
    kind = kind_of(head)
    if kind in ("unknown", "gzip", "archive", "text") and (foreign := foreign_type(head)) is not None:
        return foreign.name
    return _NAMES.get(kind, f"something that begins with {head[:8]!r}" if head else "an empty file")


def _brands(head: bytes) -> list[bytes]:
    """The compatible brands in the first box of an MP4, HEIF or AVIF file."""
    stop = min(int.from_bytes(head[:4]), len(head), 256)
    return [head[start : start + 4] for start in range(16, stop, 4)]


def _is_arrow_stream(head: bytes) -> bool:
    """True if a stream of Arrow's IPC format begins: a mark, the size of the schema, the place of its root."""
    size, root = int.from_bytes(head[4:8], "little"), int.from_bytes(head[8:12], "little")
    return head.startswith(b"\xff\xff\xff\xff") and 8 <= size < 2**28 and 4 <= root <= min(size, 64)


def _space(head: bytes) -> bool:
    return len(head) > 2 and head[2:3] in b" \t\r\n#"


def _is_tar(head: bytes) -> bool:
    """True if the first block is a tar header with a valid checksum; the oldest tar formats have no signature."""
    if len(head) < _TAR_BLOCK or not head[:1].strip(b"\0"):
        return False
    block = head[:_TAR_BLOCK]
    try:
        stated = int(block[148:156].strip(b"\0 ") or b"-1", 8)
    except ValueError:
        return False
    return stated == sum(block) - sum(block[148:156]) + 8 * 32


def _is_text(head: bytes) -> bool:
    if head.translate(None, _CONTROL) != head:
        return False
    try:
        head.decode()
    except UnicodeDecodeError as error:
        return error.start >= len(head) - 3 and error.start > 0  # the head may end inside a character
    return True


def _unzipped(head: bytes) -> bytes:
    try:
        return zlib.decompressobj(wbits=31).decompress(head, HEAD_BYTES)
    except zlib.error:
        return b""
