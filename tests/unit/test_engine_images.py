"""Images in, pixels out: every kind of file that real folders hold, and the exact scale of the model."""

import io
import pickle
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.config import IngestConfig
from pipeline.engine.images import (
    REASONS,
    BadImage,
    decode,
    decode_pixels,
    encode_png,
    grid,
    prepare,
    to_model,
    to_uint8,
)
from pipeline.errors import DataError

pytestmark = pytest.mark.unit
LIMIT = 10**6


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def random_pixels(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def config(size: int, channels: int, background: int = 255, max_pixels: int = LIMIT) -> IngestConfig:
    return IngestConfig(image_size=size, channels=channels, background=background, max_image_pixels=max_pixels)


def reason(data: bytes, max_pixels: int = LIMIT) -> str:
    with pytest.raises(BadImage) as caught:
        prepare(data, config(8, 3, max_pixels=max_pixels))
    assert isinstance(caught.value, DataError)
    assert caught.value.reason in REASONS
    assert str(caught.value).startswith(caught.value.reason)
    return caught.value.reason


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


def test_images_of_the_right_size_pass_untouched():
    colour, grey = random_pixels(16, 16, 3), random_pixels(16, 16, 1)
    np.testing.assert_array_equal(prepare(encode_png(colour), config(16, 3)), colour)
    np.testing.assert_array_equal(prepare(encode_png(grey), config(16, 1)), grey)
    np.testing.assert_array_equal(prepare(encode_png(grey), config(16, 3)), grey.repeat(3, axis=2))


@pytest.mark.parametrize("background", [0, 100, 255])
def test_transparency_shows_the_background(background):
    rgba = np.zeros((4, 4, 4), np.uint8)
    rgba[:, :2] = (10, 200, 30, 255)
    rgba[:, 2:] = (255, 0, 0, 0)  # invisible red must not be seen
    out = prepare(encoded(Image.fromarray(rgba)), config(4, 3, background))
    assert (out[:, :2] == (10, 200, 30)).all()
    assert (out[:, 2:] == background).all()


def test_half_transparent_pixels_are_blended():
    rgba = np.full((2, 2, 4), (0, 0, 0, 128), np.uint8)
    out = prepare(encoded(Image.fromarray(rgba)), config(2, 3, 200))
    assert np.abs(out.astype(int) - round(200 * (1 - 128 / 255))).max() <= 1


def test_invisible_colour_does_not_bleed_into_edges_when_resized():
    rgba = np.zeros((32, 32, 4), np.uint8)
    rgba[:, :16] = (255, 255, 255, 255)
    rgba[:, 16:] = (0, 0, 0, 0)
    assert (prepare(encoded(Image.fromarray(rgba)), config(8, 3, 255)) == 255).all()


def test_grey_with_alpha_and_palette_with_alpha():
    la = np.stack([np.full((4, 4), 70, np.uint8), np.zeros((4, 4), np.uint8)], axis=2)
    la[0, 0, 1] = 255
    out = prepare(encoded(Image.fromarray(la)), config(4, 1, 9))
    assert out[0, 0, 0] == 70
    assert out[1, 1, 0] == 9
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.putpixel((0, 0), 0)
    out = prepare(encoded(palette, transparency=0), config(4, 3, 9))
    assert tuple(out[0, 0]) == (9, 9, 9)
    assert tuple(out[1, 1]) == (0, 0, 255)
    assert tuple(prepare(encoded(palette), config(4, 3, 9))[0, 0]) == (255, 0, 0)


def test_sixteen_bit_grey_keeps_black_white_and_the_order_between():
    levels = np.linspace(0, 65535, 256).round().astype(np.uint16).reshape(16, 16)
    out = prepare(encoded(Image.fromarray(levels)), config(16, 1))
    np.testing.assert_array_equal(out.ravel(), np.arange(256))


def test_sixteen_bit_transparent_level():
    levels = np.full((4, 4), 40000, np.uint16)
    levels[0, 0] = 77
    out = prepare(encoded(Image.fromarray(levels), transparency=77), config(4, 1, 3))
    assert out[0, 0, 0] == 3
    assert out[1, 1, 0] == round(40000 / 257)


def test_cmyk_and_bilevel():
    cmyk = Image.new("CMYK", (8, 8), (255, 0, 0, 0))
    red, green, blue = prepare(encoded(cmyk, "JPEG", quality=100), config(8, 3))[4, 4]
    assert red < 10
    assert min(green, blue) > 245
    assert set(prepare(encoded(Image.new("1", (8, 8), 1)), config(8, 1)).ravel()) == {255}


def test_luma_of_colour_follows_bt_601():
    out = prepare(encode_png(np.full((2, 2, 3), (200, 100, 50), np.uint8)), config(2, 1))
    assert out[0, 0, 0] == round(0.299 * 200 + 0.587 * 100 + 0.114 * 50)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(orientation):
    upright = np.zeros((16, 16, 3), np.uint8)
    upright[:8, :8] = 250  # bright top left
    upright[:8, 8:] = 120
    stored_from_upright = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(stored_from_upright(upright)))
    np.testing.assert_array_equal(prepare(encoded(stored, exif=exif), config(16, 3)), upright)


def test_crop_is_central():
    wide = np.zeros((4, 10, 3), np.uint8)
    wide[:, 3:7] = 255
    assert (prepare(encode_png(wide), config(4, 3)) == 255).all()
    assert (prepare(encode_png(wide.transpose(1, 0, 2)), config(4, 3)) == 255).all()


def test_reduction_is_antialiased():
    """A one-pixel checkerboard must become flat grey; sampling without a filter gives black or white."""
    board = (np.indices((64, 64)).sum(axis=0) % 2 * 255).astype(np.uint8)
    out = prepare(encode_png(board), config(16, 1)).astype(int)
    assert np.abs(out - 127).max() <= 3


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
    for kind in ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF"):
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


def test_all_256_levels_survive_the_model_scale():
    levels = np.arange(256, dtype=np.uint8).reshape(2, 8, 16, 1)
    x = to_model(levels)
    assert x.dtype == torch.float32
    assert tuple(x.shape) == (2, 1, 8, 16)
    assert (x.min().item(), x.max().item()) == (-1.0, 1.0)
    exact = levels.astype(np.float64).transpose(0, 3, 1, 2) / 127.5 - 1
    np.testing.assert_allclose(x.numpy(), exact, atol=6e-8)
    np.testing.assert_array_equal(to_uint8(x), levels)


def test_channels_move_with_their_pixels():
    images = random_pixels(2, 3, 5, 3)
    x = to_model(images)
    assert tuple(x.shape) == (2, 3, 3, 5)
    assert x[1, 2, 0, 4].item() == pytest.approx(images[1, 0, 4, 2] / 127.5 - 1, abs=1e-6)
    np.testing.assert_array_equal(to_uint8(x), images)


def test_to_uint8_clamps_and_rounds_to_the_nearest_level():
    x = torch.tensor([-7.0, -1.0, 100.4 / 127.5 - 1, 100.6 / 127.5 - 1, 1.0, 3.0]).reshape(1, 1, 1, 6)
    assert to_uint8(x).ravel().tolist() == [0, 0, 100, 101, 255, 255]
    with pytest.raises(ValueError, match="NaN"):
        to_uint8(torch.full((1, 1, 1, 1), float("nan")))


def test_grid_places_each_image_and_leaves_the_gap_white():
    images = np.stack([np.full((2, 3, 1), 10 * (i + 1), np.uint8) for i in range(5)])
    sheet = grid(images, columns=3, scale=2, gap=1)
    assert sheet.shape == (2 * 4 + 1, 3 * 6 + 2, 1)
    assert (sheet[:4, :6] == 10).all()
    assert (sheet[:4, 14:] == 30).all()
    assert (sheet[5:, 7:13] == 50).all()
    assert (sheet[4] == 255).all()
    assert (sheet[:, 6] == 255).all()
    assert (sheet[5:, 14:] == 255).all()


def test_grid_enlarges_without_smoothing():
    images = random_pixels(1, 4, 4, 3)
    np.testing.assert_array_equal(grid(images, columns=8, scale=3, gap=2)[1::3, 1::3], images[0])
    with pytest.raises(ValueError, match="at least one"):
        grid(images[:0], 1, 1, 0)
