"""Count, mean and scatter of features, in float64, mergeable without reading an image again.

For rows x_1..x_n: mean = sum x_i / n and scatter M2 = sum (x_i - mean)(x_i - mean)^T. Both are kept centred,
because sum x x^T minus n mean mean^T cancels most digits when the mean is large. Two parts join by
Chan, Golub & LeVeque 1983: with delta = mean_b - mean_a and n = n_a + n_b,

    mean = mean_a + delta n_b / n        M2 = M2_a + M2_b + delta delta^T n_a n_b / n

Floating-point addition is not associative, so parts merged in one fixed order (of shards) give the same bits.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DataError
from pipeline.metrics.fingerprint import Fingerprint
from pipeline.metrics.packing import pack, unpack

__all__ = ["Moments", "merge_all"]

Float64 = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Moments:
    """n rows seen, their mean float64 [D] and centred scatter float64 [D, D]; a value, methods return a new one."""

    fingerprint: Fingerprint
    n: int
    mean: Float64
    scatter: Float64

    @classmethod
    def empty(cls, fingerprint: Fingerprint) -> "Moments":
        dim = fingerprint.feature_dim
        return cls(fingerprint, 0, np.zeros(dim), np.zeros((dim, dim)))

    @property
    def covariance(self) -> Float64:
        """Unbiased covariance M2 / (n - 1), float64 [D, D]. Raises DataError below two rows."""
        if self.n < 2:
            raise DataError(f"a covariance needs at least 2 images, got {self.n}")
        return self.scatter / (self.n - 1)

    def update(self, features: NDArray[Any]) -> "Moments":
        """With the rows of `features` [B, D] added. Raises DataError on a wrong width or non-finite values."""
        if features.ndim != 2 or features.shape[1] != self.fingerprint.feature_dim:
            raise DataError(f"need features [B, {self.fingerprint.feature_dim}], got {list(features.shape)}")
        if len(features) == 0:
            return self
        rows = features.astype(np.float64)
        if not np.isfinite(rows).all():
            raise DataError("features hold NaN or infinity")
        mean = rows.mean(axis=0)
        centred = rows - mean
        return self.merge(Moments(self.fingerprint, len(rows), mean, centred.T @ centred))

    def merge(self, other: "Moments") -> "Moments":
        """Both parts together. Raises DataError naming the field when the fingerprints differ."""
        self.fingerprint.require_same(other.fingerprint)
        if self.n == 0 or other.n == 0:
            return other if self.n == 0 else self
        n = self.n + other.n
        delta = other.mean - self.mean
        scatter = self.scatter + other.scatter + np.outer(delta, delta) * (self.n * other.n / n)
        return Moments(self.fingerprint, n, self.mean + delta * (other.n / n), scatter)

    def to_bytes(self) -> bytes:
        """A safetensors file; equal moments give equal bytes."""
        header = {"n": self.n, "fingerprint": asdict(self.fingerprint)}
        return pack("moments", header, {"mean": self.mean, "scatter": self.scatter})

    @classmethod
    def from_bytes(cls, data: bytes) -> "Moments":
        """Inverse of `to_bytes`, bit for bit. Raises DataError."""
        header, arrays = unpack("moments", data)
        return cls(Fingerprint(**header["fingerprint"]), header["n"], arrays["mean"], arrays["scatter"])


def merge_all(parts: Iterable[Moments]) -> Moments:
    """All parts, merged in the order given. Raises DataError without any part."""
    merged: Moments | None = None
    for part in parts:
        merged = part if merged is None else merged.merge(part)
    if merged is None:
        raise DataError("there are no moments to merge")
    return merged
