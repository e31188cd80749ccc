"""Names of file formats that ingest does not read, and how to convert each, for messages."""

import struct
import zlib
from typing import Final, NamedTuple


class ForeignType(NamedTuple):
    """A format that is not read. name: with an article; conversion: what to do, as an instruction."""

    name: str
    conversion: str


_ARRAYS: Final = "save its arrays with numpy.savez(file, x=images, y=labels), x as uint8 [N, H, W, C]"
_FILES: Final = "convert it to PNG or JPEG"
_SHARDS: Final = (
    "write its images as files in a folder for each class, as tar shards (webdataset.TarWriter) or as Parquet"
)
_TABLE: Final = "convert it to Parquet, for example with pyarrow or DuckDB"
_UNPACK: Final = "unpack it"

_SIGNATURES: Final[tuple[tuple[int, bytes, ForeignType], ...]] = (
    (0, b"\x89HDF\r\n\x1a\n", ForeignType("an HDF5 file", f"read it with h5py and {_ARRAYS}")),
    (0, b"MATLAB 5.0 MAT-file", ForeignType("a MATLAB file", f"read it with scipy.io.loadmat and {_ARRAYS}")),
    (0, b"\x93NUMPY", ForeignType("an array of NumPy (.npy)", f"{_ARRAYS}")),
    (0, b"\x0a\x23\xd7\xce", ForeignType("a RecordIO file of MXNet", f"read it with mxnet.recordio: {_SHARDS}")),
    (0, b"SQLite format 3\0", ForeignType("an SQLite database", _SHARDS)),
    (0, b"Obj\x01", ForeignType("an Avro file", _TABLE)),
    (0, b"ORC", ForeignType("an ORC file", _TABLE)),
    (0, b"\xfd7zXZ\0", ForeignType("an xz archive", _UNPACK)),
    (0, b"BZh", ForeignType("a bzip2 archive", _UNPACK)),
    (0, b"7z\xbc\xaf\x27\x1c", ForeignType("a 7z archive", _UNPACK)),
    (0, b"Rar!\x1a\x07", ForeignType("a rar archive", _UNPACK)),
    (0, b"\x28\xb5\x2f\xfd", ForeignType("a zstd archive", _UNPACK)),
    (0, b"%PDF-", ForeignType("a PDF document", _FILES)),
    (0, b"8BPS", ForeignType("a Photoshop file", _FILES)),
    (0, b"\x76\x2f\x31\x01", ForeignType("an OpenEXR image", _FILES)),
    (0, b"%!PS", ForeignType("a PostScript file", _FILES)),
    (128, b"DICM", ForeignType("a DICOM image", _FILES)),
    (0, b"\x1a\x45\xdf\xa3", ForeignType("a Matroska or WebM film", "extract its frames as PNG or JPEG")),
)
_HEIC: Final = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1")
_MASK_DELTA: Final = 0xA282EAD8
_CRC32C: Final = 0x82F63B78


def foreign_type(head: bytes) -> ForeignType | None:
    """The format of a file that begins with these bytes, if it is one that people try; gzipped or not."""
    found = next((kind for start, mark, kind in _SIGNATURES if head[start : start + len(mark)] == mark), None)
    if found is not None:
        return found
    if head[4:8] == b"ftyp":
        heic = head[8:12] in _HEIC
        return ForeignType(
            "a HEIC image" if heic else "an MP4 film", _FILES if heic else "extract its frames as PNG or JPEG"
        )
    if _is_tfrecord(head):
        return ForeignType("a TFRecord file", f"read it with TensorFlow: {_SHARDS}")
    if head.startswith(b"\x1f\x8b"):
        try:
            inside = foreign_type(zlib.decompressobj(wbits=31).decompress(head, 512))
        except zlib.error:
            inside = None
        return inside or ForeignType("a gzip file", _UNPACK)
    return None


def _is_tfrecord(head: bytes) -> bool:
    """A record begins with its uint64 length and the masked CRC-32C of these eight bytes."""
    if len(head) < 12:
        return False
    crc = 0xFFFFFFFF
    for byte in head[:8]:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (_CRC32C if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    masked = ((crc >> 15 | crc << 17) + _MASK_DELTA) & 0xFFFFFFFF
    return head[8:12] == struct.pack("<I", masked)
