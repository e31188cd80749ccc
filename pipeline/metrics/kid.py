"""Kernel distance: unbiased squared MMD with a cubic kernel (Binkowski et al. 2018, section 4).

    k(x, y) = (x.y / D + 1)^3
    MMD^2 = mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean_{i, j} k(x_i, y_j)

Unbiased at every n (so it may be negative), hence the score to use where a Frechet distance has too few images.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DataError
from pipeline.metrics.reservoir import Reservoir

__all__ = ["KernelDistance", "kernel_distance", "one_sided", "polynomial_mmd"]


@dataclass(frozen=True)
class KernelDistance:
    """Mean over subsets; `spread` is the standard deviation between subsets, not the error of the mean."""

    name: str
    value: float
    spread: float
    num_subsets: int
    subset_size: int


def polynomial_mmd(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """Unbiased squared MMD of float64 [m, D] and [n, D], m and n >= 2."""
    dim, m, n = x.shape[1], len(x), len(y)
    within_x, within_y = (x @ x.T / dim + 1) ** 3, (y @ y.T / dim + 1) ** 3
    between = (x @ y.T / dim + 1) ** 3
    mean_x = (within_x.sum() - np.trace(within_x)) / (m * (m - 1))
    mean_y = (within_y.sum() - np.trace(within_y)) / (n * (n - 1))
    return float(mean_x + mean_y - 2 * between.mean())


def one_sided(x: NDArray[np.float64], real: NDArray[np.float64]) -> float:
    """MMD^2 without the term of the real images alone: float64 [m, D] and [n, D]."""
    dim, m = x.shape[1], len(x)
    within, between = (x @ x.T / dim + 1) ** 3, (x @ real.T / dim + 1) ** 3
    return float((within.sum() - np.trace(within)) / (m * (m - 1)) - 2 * between.mean())


def kernel_distance(a: Reservoir, b: Reservoir, num_subsets: int, subset_size: int) -> KernelDistance:
    """Mean MMD^2 over `num_subsets` pairs of random subsets of `subset_size` images.

    Subsets are chosen by image id, so the value does not depend on how the work was split.
    Raises DataError on different protocols or when a side has fewer than `subset_size` images.
    """
    a.fingerprint.require_same(b.fingerprint)
    if num_subsets < 1 or subset_size < 2:
        raise DataError(f"need at least 1 subset of 2 images, got {num_subsets} of {subset_size}")
    values = [polynomial_mmd(a.subset(j, subset_size), b.subset(j, subset_size)) for j in range(num_subsets)]
    name = a.fingerprint.kernel_name
    return KernelDistance(name, float(np.mean(values)), float(np.std(values)), num_subsets, subset_size)
