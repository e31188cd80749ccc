"""Convert an image to uint8 pixels of one size and mode: to sRGB, without transparency, the mode, then the size.

All resizing in this program is Pillow's antialiased bicubic filter. Transparency is removed before the resize, because
the colours hidden under transparent pixels would otherwise bleed into edges.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
from PIL import Image

from pipeline.config.ingest import IngestConfig
from pipeline.images.colour import UnusableProfile, to_srgb
from pipeline.images.decode import BadImage, decode_checked
from pipeline.images.png import Pixels

_SIXTEEN_BIT: Final = ("I", "I;16", "I;16L", "I;16B", "I;16N")
_MODES: Final = {1: "L", 3: "RGB", 4: "RGBA"}


def _ignored(_: str) -> None:
    """The default of `note`."""


def prepare(data: bytes, config: IngestConfig, note: Callable[[str], None] = _ignored) -> Pixels:
    """An image file to uint8 [size, size, channels], read-only. Raises BadImage, MemoryError.

    note: called with the fault of a colour profile that cannot be used. Such pixels count as sRGB.
    """
    return _prepared(decode_checked(data, config), config, note)


def prepare_pixels(pixels: Pixels, config: IngestConfig) -> Pixels:
    """uint8 [H, W], [H, W, 1], [H, W, 3] or [H, W, 4] (RGBA) to uint8 [size, size, channels]. Raises BadImage."""
    pixels = pixels[:, :, None] if pixels.ndim == 2 else pixels
    height, width, channels = pixels.shape
    if channels not in _MODES:
        raise BadImage("unsupported-mode", f"{channels} channels are neither grey, RGB nor RGBA")
    if not pixels.size:
        raise BadImage("empty", f"{width}x{height} has no pixels")
    if height * width > config.max_image_pixels:
        raise BadImage("too-large", f"{width}x{height} is more than {config.max_image_pixels} pixels")
    if min(height, width) < config.min_size:
        raise BadImage("too-small", f"{width}x{height} has a side under {config.min_size} pixels")
    if pixels.shape == (config.image_size, config.image_size, config.channels):
        return pixels
    return _prepared(
        Image.fromarray(np.ascontiguousarray(pixels[:, :, 0] if channels == 1 else pixels)), config, _ignored
    )


def _prepared(image: Image.Image, config: IngestConfig, note: Callable[[str], None]) -> Pixels:
    try:
        info = image.info
        image = _from_16_bit(image) if image.mode in _SIXTEEN_BIT else image
        image = _in_srgb(image, info, note) if config.colour == "convert" else image
        image = _opaque(image, _MODES[config.channels], config.background)
    except (ValueError, OSError) as error:
        raise BadImage("unsupported-mode", f"mode {image.mode}: {error}") from error
    image = _fitted(image, config)
    pixels = np.frombuffer(image.tobytes(), np.uint8)
    return pixels.reshape(config.image_size, config.image_size, config.channels)


def _in_srgb(image: Image.Image, info: Mapping[Any, Any], note: Callable[[str], None]) -> Image.Image:
    try:
        return to_srgb(image, info)
    except UnusableProfile as error:
        note(str(error))
        return image


def _fitted(image: Image.Image, config: IngestConfig) -> Image.Image:
    size = config.image_size
    if image.size == (size, size):
        return image
    if config.fit == "crop":
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image if image.width == image.height else image.crop((left, top, left + side, top + side))
    if config.fit == "pad":
        return _padded(image, size, config.background)
    return image if image.size == (size, size) else image.resize((size, size), Image.Resampling.BICUBIC)


def _padded(image: Image.Image, size: int, background: int) -> Image.Image:
    """The whole image, scaled to fit and centred on the background."""
    longer = max(image.size)
    width, height = (max(1, round(side * size / longer)) for side in image.size)
    inside = image if image.size == (width, height) else image.resize((width, height), Image.Resampling.BICUBIC)
    canvas = Image.new(image.mode, (size, size), background if image.mode == "L" else (background,) * 3)
    canvas.paste(inside, ((size - width) // 2, (size - height) // 2))
    return canvas


def _opaque(image: Image.Image, mode: str, background: int) -> Image.Image:
    """The image in `mode` ("L" or "RGB") without transparency."""
    if image.mode == "F":
        raise ValueError("float pixels have no known range")
    if not image.has_transparency_data:
        return image if image.mode == mode else image.convert(mode)
    rgba = image.convert("RGBA")
    canvas = Image.new("RGBA", image.size, (background, background, background, 255))
    return Image.alpha_composite(canvas, rgba).convert(mode)


def _from_16_bit(image: Image.Image) -> Image.Image:
    """Grey levels 0..65535 to 0..255, with alpha if a level is transparent. 65535 = 257 * 255: white stays white."""
    levels = np.asarray(image)
    if levels.dtype != np.uint16 and (levels.min() < 0 or levels.max() > 65535):
        raise ValueError("grey levels outside 0..65535")
    pixels = ((levels.astype(np.uint32) + 128) // 257).astype(np.uint8)
    transparent = image.info.get("transparency")
    if not isinstance(transparent, int):
        return Image.fromarray(pixels)
    return Image.fromarray(np.stack((pixels, np.where(levels == transparent, 0, 255).astype(np.uint8)), axis=2))
