"""Conversion of every kind of image found in real folders to pixels of one size and mode."""

import numpy as np
import pytest
from corpus import animation, encoded, random_pixels
from PIL import Image, PngImagePlugin

from pipeline.config.ingest import IngestConfig
from pipeline.images.decode import BadImage
from pipeline.images.png import encode_png
from pipeline.ingest.decode.resize import prepare, prepare_pixels

pytestmark = pytest.mark.unit
LIMIT = 10**6


def config(size: int, channels: int, background: int = 255, max_pixels: int = LIMIT) -> IngestConfig:
    return IngestConfig(image_size=size, channels=channels, background=background, max_image_pixels=max_pixels)


def test_images_of_the_right_size_are_unchanged():
    colour, grey = random_pixels(16, 16, 3), random_pixels(16, 16, 1)
    np.testing.assert_array_equal(prepare(encode_png(colour), config(16, 3)), colour)
    np.testing.assert_array_equal(prepare(encode_png(grey), config(16, 1)), grey)
    np.testing.assert_array_equal(prepare(encode_png(grey), config(16, 3)), grey.repeat(3, axis=2))


@pytest.mark.parametrize("background", [0, 100, 255])
def test_transparency_shows_the_background(background):
    rgba = np.zeros((4, 4, 4), np.uint8)
    rgba[:, :2] = (10, 200, 30, 255)
    rgba[:, 2:] = (255, 0, 0, 0)  # transparent red must not show
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


def test_padding_keeps_the_whole_image_in_the_middle():
    wide = np.full((4, 8, 3), 10, np.uint8)
    settings = IngestConfig(image_size=16, fit="pad", background=200)
    out = prepare(encode_png(wide), settings)
    assert (out[4:12] == 10).all()
    assert (out[:4] == 200).all()
    assert (out[12:] == 200).all()
    tall = prepare(encode_png(wide.transpose(1, 0, 2)), settings)
    np.testing.assert_array_equal(tall, out.transpose(1, 0, 2))
    line = prepare(encode_png(np.full((1, 4000), 10, np.uint8)), settings.model_copy(update={"channels": 1}))
    assert (line == 10).sum() == 16


def test_stretching_keeps_the_whole_image_and_not_its_aspect_ratio():
    halves = np.repeat(np.array([[0, 250]], np.uint8), [8, 8], axis=1).repeat(4, axis=0)
    out = prepare(encode_png(halves), IngestConfig(image_size=4, channels=1, fit="stretch"))[:, :, 0]
    assert out[:, 0].max() < 20
    assert out[:, 3].min() > 230


def test_pixels_give_the_same_result_as_a_file_of_these_pixels():
    for shape in [(9, 7), (9, 7, 1), (9, 7, 3)]:
        pixels = random_pixels(*shape)
        for fit in ("crop", "pad", "stretch"):
            settings = IngestConfig(image_size=6, fit=fit)
            np.testing.assert_array_equal(prepare_pixels(pixels, settings), prepare(encode_png(pixels), settings))
    rgba = random_pixels(9, 7, 4)
    np.testing.assert_array_equal(
        prepare_pixels(rgba, config(6, 3)), prepare(encoded(Image.fromarray(rgba)), config(6, 3))
    )


@pytest.mark.parametrize(
    ("change", "image", "reason"),
    [
        ({"min_size": 9}, encoded(Image.new("L", (8, 30))), "too-small"),
        ({"min_size": 8}, encoded(Image.new("L", (8, 30))), None),
        ({"animation": "reject"}, animation("GIF"), "animated"),
        ({"animation": "reject"}, animation("WEBP"), "animated"),
        ({"animation": "reject"}, animation("PNG"), "animated"),
        ({"animation": "reject"}, encoded(Image.new("L", (8, 8)), "GIF"), None),
        ({"max_frames": 2}, animation("PNG", 3), "too-many-frames"),
        ({"max_frames": 3}, animation("PNG", 3), None),
        ({"max_image_bytes": 60}, encoded(Image.new("L", (8, 8))), "too-many-bytes"),
        ({"max_image_pixels": 239}, encoded(Image.new("L", (8, 30))), "too-large"),
        ({"max_image_pixels": 240}, encoded(Image.new("L", (8, 30))), None),
    ],
)
def test_limits(change, image, reason):
    settings = IngestConfig(image_size=4, **change)
    if reason is None:
        assert prepare(image, settings).shape == (4, 4, 3)
        return
    with pytest.raises(BadImage) as caught:
        prepare(image, settings)
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("shape", "change", "reason"),
    [
        ((8, 30), {"min_size": 9}, "too-small"),
        ((8, 30), {"max_image_pixels": 239}, "too-large"),
        ((8, 0), {}, "empty"),
        ((8, 8, 2), {}, "unsupported-mode"),
    ],
)
def test_limits_of_pixels(shape, change, reason):
    with pytest.raises(BadImage) as caught:
        prepare_pixels(np.zeros(shape, np.uint8), IngestConfig(image_size=4, **change))
    assert caught.value.reason == reason


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "JPEG"])
def test_orientation_is_found_in_every_format_that_has_one(kind):
    upright = np.zeros((16, 16, 3), np.uint8)
    upright[:8] = 250  # bright top
    exif = Image.Exif()
    exif[0x0112] = 3
    data = encoded(Image.fromarray(upright[::-1].copy()), kind, exif=exif)
    np.testing.assert_allclose(prepare(data, config(16, 3)).astype(int), upright, atol=20)  # some are lossy


def test_orientation_in_xmp_is_followed():
    upright = np.zeros((16, 16, 3), np.uint8)
    upright[:8] = 250
    xmp = '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="3"/></x:xmpmeta>'
    info = PngImagePlugin.PngInfo()
    info.add_itxt("XML:com.adobe.xmp", xmp)
    data = encoded(Image.fromarray(upright[::-1].copy()), pnginfo=info)
    np.testing.assert_array_equal(prepare(data, config(16, 3)), upright)
