"""Pixels as files: every image that this program stores is written and read here."""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.engine.decode import BadImage, decode

__all__ = ["Pixels", "decode_pixels", "encode_png"]

Pixels = NDArray[np.uint8]


def decode_pixels(data: bytes, max_pixels: int) -> Pixels:
    """uint8 [H, W, C] of a stored image (grey or RGB, as `encode_png` writes). Raises BadImage."""
    image = decode(data, max_pixels)
    if image.mode not in ("L", "RGB"):
        raise BadImage("unsupported-mode", f"a stored image is L or RGB, not {image.mode}")
    pixels = np.asarray(image, dtype=np.uint8)
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def encode_png(pixels: Pixels) -> bytes:
    """PNG bytes of uint8 [H, W], [H, W, 1] or [H, W, 3]; equal pixels give equal bytes on one zlib build."""
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] not in (1, 3)):
        raise ValueError(f"need uint8 [H, W], [H, W, 1] or [H, W, 3], got {pixels.dtype} {list(pixels.shape)}")
    grey = pixels.ndim == 3 and pixels.shape[2] == 1
    buffer = io.BytesIO()
    # Level 1: small images compress about as well, at a fraction of the time.
    Image.fromarray(np.ascontiguousarray(pixels[:, :, 0] if grey else pixels)).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
