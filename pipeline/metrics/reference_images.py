"""The ceilings of every score table: slightly blurred real images and pure noise, both worse than good samples."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

BLUR_NAME: Final = "real, 3x3 box blur"
NOISE_NAME: Final = "uniform noise"

Pixels = NDArray[np.uint8]


def blurred(images: Pixels) -> Pixels:
    """3x3 box blur of uint8 [N, H, W, C]: the mean of each pixel's neighbourhood (edges repeated), rounded half up."""
    height, width = images.shape[1:3]
    padded = np.pad(images.astype(np.uint16), ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    total = sum(padded[:, y : y + height, x : x + width] for y in range(3) for x in range(3))
    return ((2 * np.asarray(total) + 9) // 18).astype(np.uint8)


def noise_images(n: int, shape: tuple[int, int, int], seed: int, first: int = 0) -> Pixels:
    """uint8 [n, H, W, C] with uniformly distributed levels; image k depends only on (seed, first + k)."""
    out = np.empty((n, *shape), dtype=np.uint8)
    for k in range(n):
        generator = np.random.Generator(np.random.Philox(key=[seed, first + k]))
        out[k] = generator.integers(0, 256, shape, dtype=np.uint8)
    return out
