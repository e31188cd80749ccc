"""Embedded colour profiles: pixels in sRGB, within two levels of the closed form."""

import io
import struct
import zlib
from contextlib import suppress

import numpy as np
import pytest
from corpus import chunk, encoded, png
from PIL import Image, ImageCms, TiffImagePlugin

from pipeline.config.ingest import IngestConfig
from pipeline.images.colour import UnusableProfile, _matrix_profile, to_srgb
from pipeline.ingest.decode.resize import prepare

pytestmark = pytest.mark.unit
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
SRGB_POINTS = (0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)
ADOBE_POINTS = (0.3127, 0.329, 0.64, 0.33, 0.21, 0.71, 0.15, 0.06)
COLOUR = (200, 60, 40)


def swapped():
    """sRGB with its red and green primaries exchanged."""
    copy = bytearray(SRGB)
    red, green = copy.find(b"rXYZ"), copy.find(b"gXYZ")
    copy[red : red + 4], copy[green : green + 4] = b"gXYZ", b"rXYZ"
    return bytes(copy)


def table_profile(space, tag, body):
    """A minimal ICC profile (version 2) with the white point and one tag."""
    white = b"XYZ \0\0\0\0" + struct.pack(">3i", 63190, 65536, 54061)
    parts = {b"wtpt": white, tag: body}
    start, table = 128 + 4 + 12 * len(parts), struct.pack(">I", len(parts))
    for name, part in parts.items():
        table += name + struct.pack(">II", start, len(part))
        start += len(part)
    kind = b"prtr" if space == b"CMYK" else b"mntr"
    pcs = b"Lab " if space == b"CMYK" else b"XYZ "
    header = struct.pack(">I4xI4s4s4s12x4s28x3i", start, 0x02100000, kind, space, pcs, b"acsp", 63190, 65536, 54061)
    return header.ljust(128, b"\0") + table + b"".join(parts.values())


def grey_profile(gamma):
    return table_profile(b"GRAY", b"kTRC", b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0")


def cmyk_profile():
    """Lightness 100 - 100 K, no colour: only black ink counts."""
    ramp = np.array([0, 65535], ">u2").tobytes()
    grid = np.zeros((2, 2, 2, 2, 3), ">u2")
    grid[..., 1:] = 0x8000
    grid[..., 0, 0], grid[..., 1, 0] = 0xFF00, 0
    matrix = struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 65536)
    body = b"mft2\0\0\0\0" + bytes((4, 3, 2, 0)) + matrix + struct.pack(">HH", 2, 2) + ramp * 4 + grid.tobytes()
    return table_profile(b"CMYK", b"A2B0", body + ramp * 3)


def square(mode, colour):
    return Image.new(mode, (16, 16), colour)


def stored(data, channels=3, **settings):
    notes = []
    pixels = prepare(data, IngestConfig(image_size=16, channels=channels, **settings), notes.append)
    assert (pixels == pixels[0, 0]).all()
    return pixels[0, 0].astype(int).tolist(), notes


def to_level(light):
    return 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * np.maximum(light, 0) ** (1 / 2.4) - 0.055)


def xyz(points):
    white, *primaries = [np.array((x / y, 1.0, (1 - x - y) / y)) for x, y in np.reshape(points, (4, 2))]
    matrix = np.stack(primaries, 1)
    return matrix * np.linalg.solve(matrix, white)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "AVIF"])
def test_a_profile_converts_to_srgb_in_every_format(kind):
    options = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}, "AVIF": {"quality": 100}}.get(
        kind, {}
    )
    data = encoded(square("RGB", COLOUR), kind, icc_profile=swapped(), **options)
    colour, notes = stored(data)
    np.testing.assert_allclose(colour, (60, 200, 40), atol=3)
    assert notes == []
    np.testing.assert_allclose(stored(data, colour="keep")[0], COLOUR, atol=2)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_srgb_and_no_profile_leave_every_level_unchanged(kind):
    levels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    for options in ({}, {"icc_profile": SRGB}, {"icc_profile": _matrix_profile(None, SRGB_POINTS)}):
        if kind == "WEBP":
            options = {**options, "lossless": True}
        data = encoded(Image.fromarray(levels), kind, **options)
        np.testing.assert_array_equal(prepare(data, IngestConfig(image_size=16)), levels)


def test_transparency_and_palettes_keep_their_meaning():
    rgba = np.zeros((16, 16, 4), np.uint8)
    rgba[:, :8], rgba[:, 8:] = (*COLOUR, 255), (*COLOUR, 0)
    out = prepare(encoded(Image.fromarray(rgba), icc_profile=swapped()), IngestConfig(image_size=16, background=7))
    np.testing.assert_allclose(out[0, 0], (60, 200, 40), atol=2)
    assert out[0, 15].tolist() == [7, 7, 7]
    palette = square("P", 1)
    palette.putpalette([9, 9, 9, *COLOUR])
    np.testing.assert_allclose(stored(encoded(palette, icc_profile=swapped()))[0], (60, 200, 40), atol=2)
    see_through = encoded(palette, icc_profile=swapped(), transparency=1)
    assert stored(see_through, background=7)[0] == [7, 7, 7]


@pytest.mark.parametrize("channels", [1, 3])
def test_grey_profiles(channels):
    expected = [float(to_level((100 / 255) ** 1.0))] * channels
    linear = grey_profile(1.0)
    for image in (square("L", 100), square("LA", (100, 255))):
        colour, notes = stored(encoded(image, icc_profile=linear), channels)
        np.testing.assert_allclose(colour, expected, atol=1)
        assert notes == []
    deep = Image.fromarray(np.full((16, 16), 100 * 257, np.uint16))
    np.testing.assert_allclose(stored(encoded(deep, icc_profile=linear), channels)[0], expected, atol=1)
    transparent = encoded(deep, icc_profile=linear, transparency=100 * 257)
    assert stored(transparent, channels, background=30)[0] == [30] * channels


def test_a_grey_image_with_a_profile_of_colours_is_equal_parts_of_them():
    curve = _matrix_profile(1.0, SRGB_POINTS)
    colour, notes = stored(encoded(square("L", 100), icc_profile=curve), 1)
    np.testing.assert_allclose(colour, to_level(100 / 255), atol=1)
    assert notes == []


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk_profiles(kind):
    ink = square("CMYK", (200, 0, 0, 128))  # cyan is no colour in this profile
    lightness = 100 * (1 - 128 / 255)
    light = ((lightness + 16) / 116) ** 3
    options = {"quality": 100} if kind == "JPEG" else {}
    colour, notes = stored(encoded(ink, kind, icc_profile=cmyk_profile(), **options))
    assert notes == []
    np.testing.assert_allclose(colour, to_level(light), atol=4)


@pytest.mark.parametrize("points", [SRGB_POINTS, ADOBE_POINTS])
@pytest.mark.parametrize("gamma", [100_000, 45_455, 55_556, None])
def test_gamma_and_chromaticities_of_a_png(gamma, points):
    more = b"" if gamma is None else chunk(b"gAMA", struct.pack(">I", gamma))
    more += chunk(b"cHRM", struct.pack(">8I", *(round(value * 100_000) for value in points)))
    levels = np.array((100, 150, 200))
    data = png(16, 16, 8, 2, (b"\0" + bytes(levels.tolist()) * 16) * 16, more)
    curve = gamma is None or (gamma == 45_455 and points == SRGB_POINTS)  # the pair that means sRGB
    light = np.where(curve, ((levels / 255 + 0.055) / 1.055) ** 2.4, (levels / 255) ** (100_000 / (gamma or 1)))
    expected = to_level(np.linalg.solve(xyz(SRGB_POINTS), xyz(points) @ light))
    colour, notes = stored(data)
    np.testing.assert_allclose(colour, np.clip(expected, 0, 255), atol=2)
    assert notes == []
    assert stored(data, colour="keep")[0] == levels.tolist()


def test_the_chunk_srgb_comes_before_gamma_and_a_profile_before_both():
    gamma = chunk(b"gAMA", struct.pack(">I", 100_000))
    body = (b"\0" + bytes(COLOUR) * 16) * 16
    assert stored(png(16, 16, 8, 2, body, chunk(b"sRGB", b"\0") + gamma))[0] == list(COLOUR)
    profile = chunk(b"iCCP", b"p\0\0" + zlib.compress(swapped()))
    np.testing.assert_allclose(stored(png(16, 16, 8, 2, body, profile + gamma))[0], (60, 200, 40), atol=2)


def unusable():
    body = (b"\0" + bytes(COLOUR) * 16) * 16
    rgb = square("RGB", COLOUR)
    return {
        "no zlib": png(16, 16, 8, 2, body, chunk(b"iCCP", b"p\0\0nonsense")),
        "no profile": encoded(rgb, icc_profile=b"nonsense" * 40),
        "cut profile": encoded(rgb, icc_profile=swapped()[:200]),
        "grey profile": encoded(rgb, icc_profile=grey_profile(1.0)),
        "cmyk profile": encoded(rgb, icc_profile=cmyk_profile()),
        "no light": png(16, 16, 8, 2, body, chunk(b"gAMA", bytes(4))),
        "no colours": png(16, 16, 8, 2, body, chunk(b"cHRM", bytes(32))),
        "one line of colours": png(16, 16, 8, 2, body, chunk(b"cHRM", struct.pack(">8I", *(30_000,) * 8))),
    }


@pytest.mark.parametrize("name", unusable())
def test_an_unusable_profile_is_noted_and_the_pixels_stay(name):
    colour, notes = stored(unusable()[name])
    assert colour == list(COLOUR)
    assert len(notes) == 1
    assert "profile" in notes[0] or "gAMA" in notes[0]
    assert stored(unusable()[name], colour="keep")[1] == []


def test_every_damage_of_a_profile_is_noted_or_converts_but_never_raises_otherwise():
    rng = np.random.default_rng(0)
    for profile in (swapped(), grey_profile(1.8), cmyk_profile()):
        for _ in range(60):
            copy = bytearray(profile)
            copy[rng.integers(len(copy))] = rng.integers(256)
            image = {b"GRAY": square("L", 9), b"CMYK": square("CMYK", (1, 2, 3, 4))}.get(profile[16:20])
            with suppress(UnusableProfile):
                to_srgb(image or square("RGB", COLOUR), {"icc_profile": bytes(copy)})


def test_a_multi_page_tiff_uses_the_profile_of_its_first_page():
    info = TiffImagePlugin.ImageFileDirectory_v2()
    info[34675] = swapped()
    out = io.BytesIO()
    square("RGB", COLOUR).save(out, "TIFF", tiffinfo=info, save_all=True, append_images=[square("RGB", (1, 1, 1))])
    np.testing.assert_allclose(stored(out.getvalue())[0], (60, 200, 40), atol=2)


def test_the_profile_of_a_jpeg_2000_file():
    plain = encoded(square("RGB", COLOUR), "JPEG2000")
    start = plain.index(b"colr") - 4
    size = struct.unpack_from(">I", plain, start)[0]
    old, profile = plain[start : start + size], b"\x02\0\0" + swapped()
    new = struct.pack(">I", 8 + len(profile)) + b"colr" + profile
    header = plain.index(b"jp2h") - 4
    grown = struct.pack(">I", struct.unpack_from(">I", plain, header)[0] + len(new) - len(old))
    data = plain[:header] + grown + plain[header + 4 : start] + new + plain[start + size :]
    np.testing.assert_allclose(stored(data)[0], (60, 200, 40), atol=2)
    assert stored(plain)[0] == list(COLOUR)
