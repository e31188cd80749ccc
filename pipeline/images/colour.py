"""Convert images with an embedded colour profile to sRGB, by LittleCMS, with the relative colorimetric intent.

A profile is an ICC profile (PNG, JPEG, WebP, TIFF, AVIF, JPEG 2000, JPEG XL) or a PNG's chunks gAMA and cHRM. As in the
PNG specification, an ICC profile comes before the chunk sRGB, and this one before gAMA and cHRM. An image without a
profile is in sRGB.
"""

import struct
from collections.abc import Mapping, Sequence
from functools import lru_cache
from io import BytesIO
from typing import Any, Final

import numpy as np
from PIL import Image, ImageCms

_MODES: Final = {"GRAY": "L", "RGB": "RGB", "CMYK": "CMYK", "Lab": "LAB"}
_SRGB_GAMMA: Final = 0.45455
_SRGB_CHROMATICITIES: Final = (0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)
"""x and y of white, red, green and blue: the order of PNG's cHRM."""
_GAMMA_TOLERANCE, _CHROMATICITY_TOLERANCE = 0.05, 0.01  # as in libpng
_SRGB_LEVELS: Final = 2
"""A profile that changes no colour by more levels is sRGB with other rounding: such pixels stay as they are."""
_SRGB_CURVE: Final = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
_D50: Final = (0.9642, 1.0, 0.8249)
_BRADFORD: Final = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
_BAD: Final = (
    ImageCms.PyCMSError,
    ImportError,
    OSError,
    ValueError,
    TypeError,
    np.linalg.LinAlgError,
    struct.error,
    OverflowError,
)


class UnusableProfile(ValueError):
    """A damaged profile, or one for another kind of pixels than the image has."""


def to_srgb(image: Image.Image, info: Mapping[str, Any]) -> Image.Image:
    """The image in sRGB (mode L, RGB or RGBA); the image itself where there is nothing to convert.

    info: metadata of the image file, as in Pillow. Raises UnusableProfile, MemoryError.
    """
    profile = _profile(info)
    if profile is None:
        return image
    try:
        return _converted(image, profile)
    except UnusableProfile:
        raise
    except _BAD as error:
        raise UnusableProfile(f"the colour profile is damaged: {error}") from error


def _profile(info: Mapping[str, Any]) -> bytes | None:
    """The ICC profile of an image that is not known to be in sRGB."""
    if "icc_profile" in info:
        if not info["icc_profile"]:
            raise UnusableProfile("the colour profile is damaged: its data cannot be unpacked")
        return bytes(info["icc_profile"])
    if "srgb" in info or not ("gamma" in info or "chromaticity" in info):
        return None
    gamma, points = info.get("gamma", _SRGB_GAMMA), info.get("chromaticity", _SRGB_CHROMATICITIES)
    near = np.allclose(points, _SRGB_CHROMATICITIES, rtol=0, atol=_CHROMATICITY_TOLERANCE)
    if near and abs(gamma / _SRGB_GAMMA - 1) <= _GAMMA_TOLERANCE:
        return None
    try:
        return _matrix_profile(info.get("gamma"), points)
    except _BAD as error:
        raise UnusableProfile(f"gAMA and cHRM describe no colours: {gamma}, {points}") from error


def _converted(image: Image.Image, profile: bytes) -> Image.Image:
    space = _colour_space(profile)
    alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
    mode = _MODES.get(space)
    if mode == "RGB" and image.mode not in ("CMYK", "LAB"):  # grey pixels are equal parts of red, green and blue
        plain = image.convert("RGBA").convert("RGB") if alpha is not None else image.convert("RGB")
    elif mode == "L" and image.mode in ("1", "L", "LA", "La"):
        plain = image.convert("L")
    elif mode == image.mode:
        plain = image
    else:
        raise UnusableProfile(f"the colour profile is for {space} pixels, and the image is {image.mode}")
    transform = _transform(profile, plain.mode)
    if transform is None:
        return image
    result = transform.apply(plain)
    if alpha is not None:
        result.putalpha(alpha)
    return result


@lru_cache(16)
def _colour_space(profile: bytes) -> str:
    return str(ImageCms.ImageCmsProfile(BytesIO(profile)).profile.xcolor_space).strip()


@lru_cache(8)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """From pixels of this mode to RGB in sRGB; None where the profile is sRGB."""
    source, srgb = ImageCms.ImageCmsProfile(BytesIO(profile)), ImageCms.createProfile("sRGB")
    target = ImageCms.ImageCmsProfile(srgb)
    found = ImageCms.ImageCmsTransform(source, target, mode, "RGB", ImageCms.Intent.RELATIVE_COLORIMETRIC)
    if mode in ("L", "RGB"):
        probe = _probe(mode)
        change = np.asarray(found.apply(probe)).astype(int) - np.asarray(probe.convert("RGB"))
        if np.abs(change).max() <= _SRGB_LEVELS:
            return None
    return found


def _probe(mode: str) -> Image.Image:
    """All 256 grey levels, or 16 levels of each of red, green and blue."""
    if mode == "L":
        return Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))
    levels = np.arange(0, 256, 17, dtype=np.uint8)
    colours = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1)
    return Image.fromarray(np.ascontiguousarray(colours.reshape(64, 64, 3)))


def _matrix_profile(gamma: float | None, points: Sequence[float]) -> bytes:
    """An ICC profile of a display. gamma: exponent from light to level as in gAMA; None: the curve of sRGB."""
    if gamma is not None and not 0.01 <= gamma <= 100:
        raise ValueError(f"gamma {gamma}")
    white, *primaries = [np.array((x / y, 1.0, (1 - x - y) / y)) for x, y in np.reshape(points, (4, 2)).tolist() if y]
    matrix = np.stack(primaries, axis=1)
    matrix = matrix * np.linalg.solve(matrix, white)
    adapted = np.linalg.solve(_BRADFORD, np.diag(_BRADFORD @ _D50 / (_BRADFORD @ white))) @ _BRADFORD @ matrix
    curve = (3, _SRGB_CURVE) if gamma is None else (0, (1 / gamma,))
    parts = [b"XYZ \0\0\0\0" + _fixed(*column) for column in adapted.T]
    parts.append(b"para\0\0\0\0" + struct.pack(">HH", curve[0], 0) + _fixed(*curve[1]))
    names = (b"rXYZ", b"gXYZ", b"bXYZ", b"rTRC", b"gTRC", b"bTRC")
    start, table = 128 + 4 + 12 * len(names), struct.pack(">I", len(names))
    for number, name in enumerate(names):  # the three curves are one part
        part = min(number, 3)
        table += name + struct.pack(">II", start + sum(map(len, parts[:part])), len(parts[part]))
    body = table + b"".join(parts)
    header = struct.pack(">I4x4s4s4s4s12x4s28x", 128 + len(body), b"\x04\0\0\0", b"mntr", b"RGB ", b"XYZ ", b"acsp")
    return (header + _fixed(*_D50)).ljust(128, b"\0") + body


def _fixed(*values: float) -> bytes:
    """Numbers in ICC's s15Fixed16."""
    return struct.pack(f">{len(values)}i", *(round(value * 65536) for value in values))
