"""Refused image files with their reasons, and damage that does not reject an image."""

import pickle
import struct
import zlib

import numpy as np
import pytest
from corpus import encoded, random_pixels
from PIL import Image

from pipeline.config.ingest import IngestConfig
from pipeline.errors import DataError
from pipeline.images.decode import BadImage, decode
from pipeline.images.png import encode_png
from pipeline.images.reject_reasons import REASONS
from pipeline.ingest.decode.resize import prepare

pytestmark = pytest.mark.unit
LIMIT = 10**6


def config(size: int, channels: int, background: int = 255, max_pixels: int = LIMIT) -> IngestConfig:
    return IngestConfig(image_size=size, channels=channels, background=background, max_image_pixels=max_pixels)


def reason(data: bytes, max_pixels: int = LIMIT) -> str:
    with pytest.raises(BadImage) as caught:
        prepare(data, config(8, 3, max_pixels=max_pixels))
    assert isinstance(caught.value, DataError)
    assert caught.value.reason in REASONS
    assert str(caught.value).startswith(caught.value.reason)
    return caught.value.reason


def test_reasons_for_refusal():
    good = encode_png(random_pixels(20, 20, 3))
    jpeg = encoded(Image.fromarray(random_pixels(20, 20, 3)), "JPEG")
    broken = bytearray(good)
    broken[60] ^= 0xFF  # inside the compressed pixels: the chunk's checksum no longer fits
    assert reason(b"") == "empty"
    assert reason(b"a text file named .png") == "not-an-image"
    assert reason(good[: len(good) // 2]) == "truncated"
    assert reason(good[:30]) == "truncated"
    assert reason(jpeg[: len(jpeg) // 2]) == "truncated"
    assert reason(bytes(broken)) == "decode-error"
    assert reason(good, max_pixels=399) == "too-large"
    assert reason(encoded(Image.fromarray(np.ones((8, 8), np.float32)), "TIFF")) == "unsupported-mode"
    assert reason(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n") == "not-an-image"


def test_a_bomb_is_refused_by_its_header():
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    assert reason(data, max_pixels=2**40) == "too-large"  # Pillow's own limit stands behind ours
    assert reason(data, max_pixels=LIMIT) == "too-large"


def test_every_cut_and_every_damage_is_refused_or_read_but_never_raises_otherwise():
    rng = np.random.default_rng(1)
    for kind in ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "AVIF", "JPEG2000", "JXL"):
        data = encoded(Image.fromarray(random_pixels(8, 8, 3)), kind)
        damaged = [data[: rng.integers(len(data))] for _ in range(40)]
        for _ in range(40):
            copy = bytearray(data)
            copy[rng.integers(len(copy))] = rng.integers(256)
            damaged.append(bytes(copy))
        for candidate in damaged:
            try:
                shape, why = prepare(candidate, config(8, 3)).shape, None
            except BadImage as error:
                shape, why = None, error.reason
            assert shape == (8, 8, 3) or why in REASONS


def test_damaged_exif_does_not_cost_the_image():
    exif = b"Exif\x00\x00MM\x00\x2a\x00\x00\xff\xff"
    pixels = Image.fromarray(random_pixels(8, 8, 3))
    assert decode(encoded(pixels, "JPEG", exif=exif), LIMIT).size == (8, 8)


def test_bad_image_survives_pickling():
    copy = pickle.loads(pickle.dumps(BadImage("truncated", "why")))
    assert (copy.reason, copy.message, str(copy)) == ("truncated", "why", "truncated: why")
