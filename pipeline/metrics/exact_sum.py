"""Exact sums of products in fixed point, independent of the order of addition.

Floating-point addition is not associative, so a sum over shards would depend on the order of merging. Here a value x
becomes the integer q = round(x 2^26), and all further arithmetic is exact: q = h 2^22 + l with |h|, |l| <= 2^21, so
products are integers up to 2^42, and a float64 matrix product over at most 2^11 rows does not round (Ozaki et al.
2012). A total is stored as two int64 words, `high` 2^48 + `low` with 0 <= low < 2^48.
"""

from functools import lru_cache
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DataError

_FRACTION_BITS: Final = 26
_LIMB_BITS: Final = 22
_LOW_BITS: Final = 48
_LOW_MASK: Final = (1 << _LOW_BITS) - 1
_BLOCK_ROWS: Final = 1 << 11
LIMIT: Final = float(1 << (2 * _LIMB_BITS - 1 - _FRACTION_BITS))
"""Upper bound of the magnitude of a value, 2^17; a float32 of magnitude 1/4 or more is represented exactly."""
UNIT: Final = 2.0**-_FRACTION_BITS
SCORE_UNIT: Final = 2.0**-36
"""Unit of sums of probabilities and of p log p."""

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]


class Words(NamedTuple):
    """Exact integers high 2^48 + low, elementwise."""

    high: Int64
    low: Int64

    def integers(self) -> NDArray[np.object_]:
        """The values as Python integers."""
        return np.asarray((self.high.astype(object) << _LOW_BITS) + self.low.astype(object), dtype=object)


@lru_cache(maxsize=4)
def outer_index(dim: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows and columns of the upper triangle of a [dim, dim] matrix, row by row."""
    return np.triu_indices(dim)


def gram(rows: Float64) -> Words:
    """Upper triangle of rows^T rows in units of 2^-52; `rows` float64 [N, D] is rounded to multiples of 2^-26 first.

    Raises DataError on NaN, infinity, or a magnitude of LIMIT or more.
    """
    if not np.isfinite(rows).all():
        raise DataError("features hold NaN or infinity")
    if rows.size and np.abs(rows).max() >= LIMIT:
        raise DataError(f"features reach {np.abs(rows).max():g}: exact sums need magnitudes below {LIMIT:g}")
    upper = outer_index(rows.shape[1])
    total = Words(np.zeros(len(upper[0]), np.int64), np.zeros(len(upper[0]), np.int64))
    for start in range(0, len(rows), _BLOCK_ROWS):
        total = add(total, _block(np.rint(rows[start : start + _BLOCK_ROWS] / UNIT), upper))
    return total


def _block(q: Float64, upper: tuple[NDArray[np.intp], NDArray[np.intp]]) -> Words:
    """`gram` of at most 2^11 rows of integers: every product and every partial sum stays below 2^53."""
    h = np.rint(q / (1 << _LIMB_BITS))
    rest = q - h * (1 << _LIMB_BITS)
    mixed = h.T @ rest
    hh, ll = (h.T @ h)[upper].astype(np.int64), (rest.T @ rest)[upper].astype(np.int64)
    hl = mixed[upper].astype(np.int64) + mixed.T[upper].astype(np.int64)
    hh_bits, hl_bits = _LOW_BITS - 2 * _LIMB_BITS, _LOW_BITS - _LIMB_BITS
    high = (hh >> hh_bits) + (hl >> hl_bits) + (ll >> _LOW_BITS)
    low = ((hh & ((1 << hh_bits) - 1)) << (2 * _LIMB_BITS)) + ((hl & ((1 << hl_bits) - 1)) << _LIMB_BITS)
    return _carried(high, low + (ll & _LOW_MASK))


def _carried(high: Int64, low: Int64) -> Words:
    return Words(high + (low >> _LOW_BITS), low & _LOW_MASK)


def add(a: Words, b: Words) -> Words:
    """a + b, exactly."""
    return _carried(a.high + b.high, a.low + b.low)


def subtract(a: Words, b: Words) -> Words:
    """a - b, exactly."""
    return _carried(a.high - b.high, a.low - b.low)


def fixed_sum(values: Float64) -> Int64:
    """Sum over the first axis in units of 2^-36, after rounding each value to a unit; holds 10^8 values of size 1."""
    return np.asarray(np.rint(values / SCORE_UNIT).astype(np.int64).sum(axis=0))
