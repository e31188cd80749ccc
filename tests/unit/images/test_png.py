"""Stored images: exact, repeatable, and only grey or RGB."""

import io
import struct
import zlib

import numpy as np
import pytest
from corpus import encoded, random_pixels
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from sklearn.datasets import load_sample_images

from pipeline.errors import DataError
from pipeline.images.decode import BadImage
from pipeline.images.png import decode_batch, decode_pixels, encode_png

pytestmark = pytest.mark.unit
LIMIT = 10**6


def test_png_round_trip_is_exact_and_repeatable():
    for shape in [(9, 7), (9, 7, 1), (9, 7, 3)]:
        pixels = random_pixels(*shape)
        data = encode_png(pixels)
        assert data == encode_png(pixels.copy(order="F"))
        np.testing.assert_array_equal(decode_pixels(data, LIMIT), pixels.reshape(9, 7, -1))


@pytest.mark.parametrize("pixels", [np.zeros((4, 4), np.float32), np.zeros((4, 4, 4), np.uint8), np.zeros(4, np.uint8)])
def test_encode_refuses_what_is_not_an_image_array(pixels):
    with pytest.raises(ValueError, match="need uint8"):
        encode_png(pixels)


def test_reading_stored_images_refuses_other_modes():
    with pytest.raises(BadImage, match="unsupported-mode"):
        decode_pixels(encoded(Image.new("RGBA", (4, 4))), LIMIT)


@given(
    pixels=hnp.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 3]))),
    order=st.sampled_from("CF"),
)
def test_any_pixels_come_back_through_pillow(pixels, order):
    data = encode_png(np.asarray(pixels, order=order))
    with Image.open(io.BytesIO(data)) as image:
        image.verify()  # every checksum
    with Image.open(io.BytesIO(data)) as image:
        assert image.mode == ("L" if pixels.shape[2] == 1 else "RGB")
        np.testing.assert_array_equal(np.asarray(image).reshape(pixels.shape), pixels)


def test_files_are_about_as_small_as_pillow_makes_them():
    photograph = np.ascontiguousarray(load_sample_images().images[0][100:228, 200:328])
    for pixels, most in ((photograph, 1.1), (random_pixels(64, 64, 3), 1.01)):
        assert len(encode_png(pixels)) < most * len(encoded(Image.fromarray(pixels), compress_level=1))


@pytest.mark.parametrize("shape", [(0, 4), (4, 0, 3)])
def test_no_pixels_are_no_image(shape):
    with pytest.raises(ValueError, match="need uint8"):
        encode_png(np.zeros(shape, np.uint8))


def chunked(*chunks):
    """A PNG file of (kind, body)."""
    parts = [b"\x89PNG\r\n\x1a\n"]
    for kind, body in chunks:
        parts += [struct.pack(">I", len(body)), kind, body, struct.pack(">I", zlib.crc32(kind + body))]
    return b"".join(parts)


def damaged(data, place):
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


def test_own_files_are_read_without_pillow_and_all_others_with_it(monkeypatch):
    """The fast path must accept files of `encode_png` only: it lacks other filters, palettes and alpha."""
    pixels = random_pixels(6, 5, 3)
    data = encode_png(pixels)
    rows = np.concatenate([np.zeros((6, 1), np.uint8), pixels.reshape(6, 15)], axis=1)  # no filter
    header, end = (b"IHDR", data[16:29]), (b"IEND", b"")
    body = zlib.compress(rows.tobytes())
    unfiltered = chunked(header, (b"IDAT", body), end)
    in_two = chunked(header, (b"IDAT", body[:9]), (b"IDAT", body[9:]), end)
    for file in (unfiltered, in_two, encoded(Image.fromarray(pixels))):
        np.testing.assert_array_equal(decode_pixels(file, LIMIT), pixels)
    monkeypatch.setattr("pipeline.images.png.decode", None)
    np.testing.assert_array_equal(decode_pixels(data, LIMIT), pixels)
    for other in (unfiltered, in_two, b"", data[:-1], data + b"x", *(damaged(data, n) for n in range(len(data)))):
        with pytest.raises(TypeError):  # handed on
            decode_pixels(other, LIMIT)
    with pytest.raises(TypeError):
        decode_pixels(data, 29)


@given(pixels=hnp.arrays(np.uint8, st.tuples(*map(st.integers, (1, 1, 1), (5, 9, 9)), st.sampled_from([1, 3]))))
def test_a_batch_is_read_as_its_files_are(pixels):
    files = [encode_png(image) for image in pixels]
    np.testing.assert_array_equal(decode_batch(iter(files), pixels.shape[1:]), pixels)


def test_a_batch_may_hold_files_of_others_but_not_of_another_size():
    pixels = random_pixels(6, 5, 3)
    files = [encode_png(pixels), encoded(Image.fromarray(pixels))]
    np.testing.assert_array_equal(decode_batch(files, (6, 5, 3)), [pixels, pixels])
    assert decode_batch([], (6, 5, 3)).shape == (0, 6, 5, 3)
    for other in (random_pixels(5, 6, 3), random_pixels(6, 5, 1)):
        for file in (encode_png(other), encoded(Image.fromarray(other.squeeze()))):
            with pytest.raises(DataError, match="its manifest says"):
                decode_batch([*files, file], (6, 5, 3))
    with pytest.raises(BadImage):
        decode_batch([files[0], files[0][:45]], (6, 5, 3))


def test_a_body_that_unpacks_to_more_is_not_unpacked():
    bomb = zlib.compress(bytes([1]) + bytes(10**7))
    assert decode_pixels(
        chunked((b"IHDR", encode_png(random_pixels(1, 4, 1))[16:29]), (b"IDAT", bomb), (b"IEND", b"")), 4
    ).shape == (1, 4, 1)
