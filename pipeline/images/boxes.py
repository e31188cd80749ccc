"""Fields in the headers of JPEG 2000 and JPEG XL files that their codecs in Pillow do not give, or give too late.

Both formats, like MP4, consist of boxes: a uint32 size, a type of four bytes, the content.
"""

import struct
from collections.abc import Iterator
from typing import Final

JPEG_2000: Final = (b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51")
JPEG_XL: Final = (b"\0\0\0\x0cJXL \r\n\x87\n", b"\xff\x0a")

_RATIOS: Final = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))
_SIDE_BITS: Final = (9, 13, 18, 30)


def jpeg_2000_profile(data: bytes) -> bytes | None:
    """The ICC profile of a JPEG 2000 file; None where it has none."""
    for kind, header in _boxes(data):
        if kind == b"jp2h":
            profiles = (box[3:] for inner, box in _boxes(header) if inner == b"colr" and box[:1] in (b"\x02", b"\x03"))
            return next(profiles, None)
    return None


def jpeg_xl_size(data: bytes) -> tuple[int, int] | None:
    """Width and height of a JPEG XL image, before its orientation; None for other data."""
    if data.startswith(JPEG_XL[0]):
        streams = (box if kind == b"jxlc" else box[4:] for kind, box in _boxes(data) if kind in (b"jxlc", b"jxlp"))
        data = next(streams, b"")
    if not data.startswith(JPEG_XL[1]):
        return None
    bits = _Bits(data[2:16])
    small = bits.take(1)
    height = _side(bits, small)
    ratio = bits.take(3)
    if ratio == 0:
        return _side(bits, small), height
    numerator, denominator = _RATIOS[ratio - 1]
    return height * numerator // denominator, height


class _Bits:
    """Bits of a number, the least significant first."""

    def __init__(self, data: bytes) -> None:
        self._value = int.from_bytes(data, "little")

    def take(self, count: int) -> int:
        found = self._value & ((1 << count) - 1)
        self._value >>= count
        return found


def _side(bits: _Bits, small: int) -> int:
    return (bits.take(5) + 1) * 8 if small else bits.take(_SIDE_BITS[bits.take(2)]) + 1


def _boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Type and content of each box, up to the first damage."""
    position = 0
    while position + 8 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, position)
        start = position + 8
        if size == 1 and start + 8 <= len(data):
            size, start = struct.unpack_from(">Q", data, start)[0], start + 8
        stop = position + size if size else len(data)
        if stop < start:
            return
        yield kind, data[start:stop]
        position = stop
