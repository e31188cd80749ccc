"""Conversion between stored pixels and model tensors, and contact sheets of images.

Pixels are uint8 [H, W, C] in 0..255; model tensors are x = u / 127.5 - 1 in [-1, 1]. Training images and samples use
the same functions.
"""

from typing import Final

import numpy as np
import torch

from pipeline.images.png import Pixels

_GAP_LEVEL: Final = 255


def to_model(images: Pixels) -> torch.Tensor:
    """uint8 [B, H, W, C] to float32 [B, C, H, W] in [-1, 1]."""
    tensor = torch.from_numpy(np.array(images.transpose(0, 3, 1, 2), order="C"))  # a copy: Ray's arrays are read-only
    return tensor.to(torch.float32).div_(127.5).sub_(1.0)


def to_uint8(x: torch.Tensor) -> Pixels:
    """float32 [B, C, H, W] to uint8 [B, H, W, C]: clamped to [-1, 1], rounded to the nearest level.

    Inverse of `to_model` on all 256 levels. Raises ValueError on NaN, whose conversion to uint8 is undefined.
    """
    if bool(torch.isnan(x).any()):
        raise ValueError("NaN in samples")
    levels = x.clamp(-1.0, 1.0).add(1.0).mul(127.5).round()
    return levels.to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()


def grid(images: Pixels, columns: int, scale: int, gap: int) -> Pixels:
    """One sheet of images uint8 [N, H, W, C], row by row, enlarged `scale` times, with `gap` white pixels between them.

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
