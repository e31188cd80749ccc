"""Formats that ingest does not read are recognised by their bytes and come with a way to convert them."""

import gzip
import struct

import pytest

from pipeline.images.file_types import describe_head
from pipeline.images.foreign_types import foreign_type

pytestmark = pytest.mark.unit


def masked_crc32c(data):
    """CRC-32C by its definition: division of polynomials, the lowest bit first."""
    crc = 0xFFFFFFFF
    for bit in (byte >> n & 1 for byte in data for n in range(8)):
        crc = crc >> 1 ^ (0x82F63B78 if (crc ^ bit) & 1 else 0)
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", (crc >> 15 | (crc & 0x7FFF) << 17) + 0xA282EAD8 & 0xFFFFFFFF)


@pytest.mark.parametrize("size", [1, 5, 119_000])
def test_tfrecord(size):
    length = struct.pack("<Q", size)
    head = length + masked_crc32c(length) + b"\x0a\x0b"
    for data in (head, gzip.compress(head)):
        assert describe_head(data) == "a TFRecord file"
    assert "webdataset.TarWriter" in foreign_type(head).conversion
    assert foreign_type(length + b"\0\0\0\0" + b"\x0a\x0b") is None


def test_the_checksum_is_that_of_the_standard():
    """RFC 3720, B.4: 32 bytes of zeros have the CRC-32C 0x8a9136aa."""
    crc = 0x8A9136AA
    assert masked_crc32c(bytes(32)) == struct.pack("<I", (crc >> 15 | (crc & 0x7FFF) << 17) + 0xA282EAD8 & 0xFFFFFFFF)


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
        (b"MATLAB 5.0 MAT-file, Platform: GLNXA64", "a MATLAB file"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "a HEIC image"),
        (b"\0\0\0\x18ftypisom\0\0\0\0isomavc1", "an MP4 film"),
        (b"\x0a\x23\xd7\xce" + bytes(8), "a RecordIO file of MXNet"),
        (gzip.compress(b"dear diary", mtime=0), "a gzip file"),
        (bytes(128) + b"DICM", "a DICOM image"),
        (b"%PDF-1.7\n", "a PDF document"),
    ],
)
def test_other_formats(head, name):
    assert describe_head(head) == name
    assert foreign_type(head).conversion


@pytest.mark.parametrize("head", [b"", b"\0" * 9, b"dear diary", b"\x07\x06\x05\x04", b"\x1f\x8b\x08"])
def test_unknown_bytes_have_no_name(head):
    found = foreign_type(head)
    assert found is None or found.name == "a gzip file"
