"""Kernel distance: unbiased squared MMD with a cubic kernel (Binkowski et al. 2018, section 4).

    k(x, y) = (x.y / D + 1)^3
    MMD^2 = mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean_{i, j} k(x_i, y_j)

The estimate is unbiased at every n and may be negative. Use it where a Frechet distance has too few images.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DataError
from pipeline.metrics.reservoir import Reservoir

Float64 = NDArray[np.float64]
Name = TypeVar("Name", bound=str)


@dataclass(frozen=True)
class KernelDistance:
    """Mean over subsets; `spread` is the standard deviation between subsets, not the error of the mean."""

    name: str
    value: float
    spread: float
    num_subsets: int
    subset_size: int


def polynomial_mmd(x: Float64, y: Float64) -> float:
    """Unbiased squared MMD of float64 [m, D] and [n, D], m and n >= 2."""
    return one_sided_mmd(x, y) + _mean_within(y)


def one_sided_mmd(x: Float64, real: Float64) -> float:
    """MMD^2 of float64 [m, D] and [n, D] without the constant term of the real images."""
    return _mean_within(x) - 2 * float(kernel(x, real).mean())


def _mean_within(x: Float64) -> float:
    """Mean kernel over pairs of different rows."""
    m, matrix = len(x), kernel(x, x)
    return float((matrix.sum() - np.trace(matrix)) / (m * (m - 1)))


def kernel(x: Float64, y: Float64) -> Float64:
    """Kernel matrix float64 [m, n] of rows float64 [m, D] and [n, D]."""
    base = x @ y.T
    base /= x.shape[1]
    base += 1
    cube: Float64 = base * base
    cube *= base
    return cube


def kernel_distance(a: Reservoir, b: Reservoir, num_subsets: int, subset_size: int) -> KernelDistance:
    """`kernel_distances` of a single side."""
    return kernel_distances({"": a}, b, num_subsets, subset_size)[""]


def kernel_distances(
    sides: Mapping[Name, Reservoir], real: Reservoir, num_subsets: int, subset_size: int
) -> dict[Name, KernelDistance]:
    """For every side: mean MMD^2 over `num_subsets` pairs of random subsets of `subset_size` images.

    Image ids decide the subsets, so the values do not depend on how the work was split.
    Raises DataError on different protocols or when a side has fewer than `subset_size` images.
    """
    for side in sides.values():
        side.fingerprint.require_same(real.fingerprint)
    if num_subsets < 1 or subset_size < 2:
        raise DataError(f"need at least 1 subset of 2 images, got {num_subsets} of {subset_size}")
    values: dict[Name, list[float]] = {name: [] for name in sides}
    for j in range(num_subsets):
        y = real.subset(j, subset_size)
        among_real = _mean_within(y)
        for name, side in sides.items():
            values[name].append(one_sided_mmd(side.subset(j, subset_size), y) + among_real)
    label = real.fingerprint.kernel_name
    return {
        name: KernelDistance(label, float(np.mean(v)), float(np.std(v)), num_subsets, subset_size)
        for name, v in values.items()
    }
