"""Count, mean and covariance of features, mergeable in any order.

For rows x_1..x_n: mean = sum x_i / n and scatter M2 = sum (x_i - mean)(x_i - mean)^T. `Moments` stores the exact sums
of products of (x, 1) with itself (`pipeline.metrics.exact_sum`), so merging parts in any order, or removing rows again,
gives the same bits. In integers the scatter is one exact subtraction,

    n M2 = n sum x x^T - (sum x)(sum x)^T

without cancellation, also for a large mean.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DataError
from pipeline.metrics.exact_sum import UNIT, Words, add, gram, outer_index, subtract
from pipeline.metrics.protocol import Fingerprint
from pipeline.metrics.serialization import pack, unpack

Float64 = NDArray[np.float64]


class Mergeable(Protocol):
    """Statistics of a set of images that merge in any order."""

    def merge(self, other: Self) -> Self:
        """The statistics of both sets."""
        ...


M = TypeVar("M", bound=Mergeable)


@dataclass(frozen=True, eq=False)
class Moments:
    """Number of rows and the exact sums of their products; immutable, methods return new moments."""

    fingerprint: Fingerprint
    n: int
    products: Words  # upper triangle of [D + 1, D + 1]; the last column belongs to the constant 1

    @classmethod
    def empty(cls, fingerprint: Fingerprint) -> "Moments":
        return cls(fingerprint, 0, gram(np.zeros((0, fingerprint.feature_dim + 1))))

    @cached_property
    def mean(self) -> Float64:
        """float64 [D]; zeros if there are no rows."""
        return np.array([float(s) for s in self._sums()]) * UNIT / max(self.n, 1)

    @cached_property
    def scatter(self) -> Float64:
        """M2, float64 [D, D], symmetric; each entry is correct to the last digit or two."""
        dim = self.fingerprint.feature_dim
        sums, scatter, start = self._sums(), np.zeros((dim, dim)), 0
        for row in range(dim):
            stop = start + dim - row
            exact = self.n * self._part(start, stop) - sums[row] * sums[row:]
            scatter[row, row:] = exact.astype(np.float64) * UNIT**2 / max(self.n, 1)
            start = stop + 1  # past the column of the constant
        return scatter + np.triu(scatter, 1).T

    @property
    def covariance(self) -> Float64:
        """Unbiased covariance M2 / (n - 1), float64 [D, D]. Raises DataError for fewer than two rows."""
        if self.n < 2:
            raise DataError(f"a covariance needs at least 2 images, got {self.n}")
        return self.scatter / (self.n - 1)

    def _part(self, start: int, stop: int) -> NDArray[np.object_]:
        return Words(self.products.high[start:stop], self.products.low[start:stop]).integers()

    def _sums(self) -> NDArray[np.object_]:
        """Sum of the rows in units of UNIT, [D]: products with the constant, itself 1 / UNIT units."""
        dim = self.fingerprint.feature_dim
        ends = np.cumsum(np.arange(dim + 1, 1, -1)) - 1
        words = Words(self.products.high[ends], self.products.low[ends]).integers()
        return np.asarray(words // round(1 / UNIT), dtype=object)

    def update(self, features: NDArray[Any]) -> "Moments":
        """Moments with the rows of `features` [B, D] added.

        Raises DataError on a wrong width, NaN, infinity, or a magnitude of 2^17 or more.
        """
        if features.ndim != 2 or features.shape[1] != self.fingerprint.feature_dim:
            raise DataError(f"need features [B, {self.fingerprint.feature_dim}], got {list(features.shape)}")
        rows = np.concatenate([features.astype(np.float64), np.ones((len(features), 1))], axis=1)
        return Moments(self.fingerprint, self.n + len(rows), add(self.products, gram(rows)))

    def merge(self, other: "Moments") -> "Moments":
        """Moments of both sets. Raises DataError naming the field when the fingerprints differ."""
        self.fingerprint.require_same(other.fingerprint)
        return Moments(self.fingerprint, self.n + other.n, add(self.products, other.products))

    def without(self, features: NDArray[Any]) -> "Moments":
        """Moments without the rows `features` [B, D], which must have been added before."""
        part = Moments.empty(self.fingerprint).update(features)
        return Moments(self.fingerprint, self.n - part.n, subtract(self.products, part.products))

    def to_bytes(self) -> bytes:
        """A safetensors file; equal moments give equal bytes."""
        header = {"n": self.n, "fingerprint": asdict(self.fingerprint)}
        return pack("moments", header, {"high": self.products.high, "low": self.products.low})

    @classmethod
    def from_bytes(cls, data: bytes) -> "Moments":
        """Inverse of `to_bytes`, bit for bit. Raises DataError."""
        header, arrays = unpack("moments", data)
        fingerprint = Fingerprint(**header["fingerprint"])
        words = Words(arrays.get("high", np.empty(0, np.int64)), arrays.get("low", np.empty(0, np.int64)))
        expected = len(outer_index(fingerprint.feature_dim + 1)[0])
        if {len(words.high), len(words.low)} != {expected}:
            raise DataError(
                f"moments of {fingerprint.feature_dim} features need {expected} sums: the file has an old layout"
            )
        return cls(fingerprint, header["n"], words)


def merge_all(parts: Iterable[M]) -> M:
    """Merge all parts; the result has the same bits in every order. Raises DataError without any part."""
    merged: M | None = None
    for part in parts:
        merged = part if merged is None else merged.merge(part)
    if merged is None:
        raise DataError("there are no parts to merge")
    return merged
