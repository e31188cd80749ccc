"""Bytes to pixels and back: the one place that decodes, encodes, scales and arranges images.

Everything is a pure function, so real images and samples cannot be prepared in two different ways.
Pixels are uint8 [H, W, C] in 0..255; the model's range is [-1, 1] with x = u / 127.5 - 1.
"""

import io
import warnings
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from pipeline.config import IngestConfig
from pipeline.errors import DataError
from pipeline.refusals import REASONS, Reason

__all__ = [
    "REASONS",
    "BadImage",
    "decode",
    "decode_pixels",
    "encode_png",
    "grid",
    "prepare",
    "to_model",
    "to_uint8",
]

# Raster formats that decode inside this process; Pillow would hand EPS to Ghostscript.
_FORMATS: Final = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
_SIGNATURES: Final = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF8")
_SIXTEEN_BIT: Final = ("I", "I;16", "I;16L", "I;16B", "I;16N")
_GAP_LEVEL: Final = 255

Pixels = NDArray[np.uint8]


class BadImage(DataError):
    """One image cannot be used; `reason` is one of `REASONS`, the message has the details."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(f"{reason}: {message}")
        self.reason = reason
        self.message = message

    def __reduce__(self) -> tuple[type["BadImage"], tuple[Reason, str]]:
        return type(self), (self.reason, self.message)


def decode(data: bytes, max_pixels: int) -> Image.Image:
    """The decoded first frame of an image file, upright by its EXIF orientation, in its own mode.

    The size is checked before pixels are decompressed. Raises BadImage.
    """
    if not data:
        raise BadImage("empty", "the file has no bytes")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's remarks on odd metadata and large sizes: we decide below
            image: Image.Image = Image.open(io.BytesIO(data), formats=_FORMATS)
            if not image.width * image.height:
                raise BadImage("decode-error", f"{image.width}x{image.height} has no pixels")
            if image.width * image.height > max_pixels:
                raise BadImage("too-large", f"{image.width}x{image.height} is more than {max_pixels} pixels")
            image.load()
            return _upright(image)
    except (BadImage, MemoryError):
        raise
    except Exception as error:  # decoders raise whatever they like on damaged input
        raise _refusal(error, data) from error


def _refusal(error: Exception, data: bytes) -> BadImage:
    if isinstance(error, Image.DecompressionBombError):
        return BadImage("too-large", str(error))
    if isinstance(error, UnidentifiedImageError):
        known = data.startswith(_SIGNATURES) or any(signature.startswith(data) for signature in _SIGNATURES)
        if known:
            return BadImage("truncated", f"the header is cut or damaged ({len(data)} bytes in all)")
        return BadImage("not-an-image", f"none of {', '.join(_FORMATS)}")
    cut = isinstance(error, EOFError) or "truncated" in str(error).lower()
    return BadImage("truncated" if cut else "decode-error", str(error))


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except MemoryError:
        raise
    except Exception:  # the pixels are good, only the EXIF block is damaged: take them as they lie
        return image


def decode_pixels(data: bytes, max_pixels: int) -> Pixels:
    """uint8 [H, W, C] of a stored image (grey or RGB, as `encode_png` writes). Raises BadImage."""
    image = decode(data, max_pixels)
    if image.mode not in ("L", "RGB"):
        raise BadImage("unsupported-mode", f"a stored image is L or RGB, not {image.mode}")
    pixels = np.asarray(image, dtype=np.uint8)
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def prepare(data: bytes, config: IngestConfig) -> Pixels:
    """Any image file to uint8 [size, size, channels]: composite on the background, centre crop, resize.

    The resize is Pillow's antialiased bicubic and happens only if the size differs, after transparency is
    gone (otherwise the colours hidden under it would bleed into edges). Raises BadImage.
    """
    image = decode(data, config.max_image_pixels)
    try:
        image = _opaque(image, "L" if config.channels == 1 else "RGB", config.background)
    except (ValueError, OSError) as error:
        raise BadImage("unsupported-mode", f"mode {image.mode}: {error}") from error
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    if image.size != (side, side):
        image = image.crop((left, top, left + side, top + side))
    if side != config.image_size:
        image = image.resize((config.image_size, config.image_size), Image.Resampling.BICUBIC)
    return np.asarray(image, dtype=np.uint8).reshape(config.image_size, config.image_size, config.channels)


def _opaque(image: Image.Image, mode: str, background: int) -> Image.Image:
    """The image in `mode` ("L" or "RGB") without transparency."""
    if image.mode in _SIXTEEN_BIT:
        return _from_16_bit(image, background).convert(mode)
    if image.mode == "F":
        raise ValueError("float pixels have no known range")
    if not image.has_transparency_data:
        return image if image.mode == mode else image.convert(mode)
    rgba = image.convert("RGBA")
    canvas = Image.new("RGBA", image.size, (background, background, background, 255))
    return Image.alpha_composite(canvas, rgba).convert(mode)


def _from_16_bit(image: Image.Image, background: int) -> Image.Image:
    """Grey 0..65535 to 0..255 (65535 = 257 * 255, so white stays white)."""
    levels = np.asarray(image).astype(np.int64)
    if levels.min() < 0 or levels.max() > 65535:
        raise ValueError("grey levels outside 0..65535")
    pixels = ((levels + 128) // 257).astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        pixels[levels == transparent] = background
    return Image.fromarray(pixels)


def encode_png(pixels: Pixels) -> bytes:
    """PNG bytes of uint8 [H, W], [H, W, 1] or [H, W, 3]; equal pixels give equal bytes on one zlib build."""
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] not in (1, 3)):
        raise ValueError(f"need uint8 [H, W], [H, W, 1] or [H, W, 3], got {pixels.dtype} {list(pixels.shape)}")
    grey = pixels.ndim == 3 and pixels.shape[2] == 1
    buffer = io.BytesIO()
    # Level 1: small images compress about as well, at a fraction of the time.
    Image.fromarray(np.ascontiguousarray(pixels[:, :, 0] if grey else pixels)).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def to_model(images: Pixels) -> torch.Tensor:
    """uint8 [B, H, W, C] to float32 [B, C, H, W] in [-1, 1]."""
    tensor = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    return tensor.to(torch.float32).div_(127.5).sub_(1.0)


def to_uint8(x: torch.Tensor) -> Pixels:
    """float32 [B, C, H, W] to uint8 [B, H, W, C]: clamped to [-1, 1], rounded to the nearest level.

    Inverse of `to_model` on all 256 levels. Raises ValueError on NaN, which would become a level by chance.
    """
    if bool(torch.isnan(x).any()):
        raise ValueError("NaN in samples")
    levels = x.clamp(-1.0, 1.0).add(1.0).mul(127.5).round()
    return levels.to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()


def grid(images: Pixels, columns: int, scale: int, gap: int) -> Pixels:
    """uint8 [N, H, W, C] on one sheet, row by row: each pixel `scale` x `scale`, `gap` white pixels between.

    Result uint8 [rows * H * scale + (rows - 1) * gap, columns * W * scale + (columns - 1) * gap, C].
    """
    num_images, height, width, channels = images.shape
    if num_images == 0 or columns < 1:
        raise ValueError(f"need at least one image and one column, got {num_images} and {columns}")
    columns = min(columns, num_images)
    rows = -(-num_images // columns)
    step_y, step_x = height * scale + gap, width * scale + gap
    sheet = np.full((rows * step_y - gap, columns * step_x - gap, channels), _GAP_LEVEL, dtype=np.uint8)
    large = images.repeat(scale, axis=1).repeat(scale, axis=2)
    for index, image in enumerate(large):
        y, x = (index // columns) * step_y, (index % columns) * step_x
        sheet[y : y + height * scale, x : x + width * scale] = image
    return sheet
