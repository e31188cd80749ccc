"""A bounded random sample of features, chosen by image id, for kernel distances and neighbour scores.

Each id gets a pseudo-random 64-bit key; the sample holds the `capacity` rows with the smallest keys. So the sample
depends on the set of ids alone, not on the split over workers, the order, or repeated updates with the same rows.
"""

from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DataError
from pipeline.metrics.protocol import Fingerprint
from pipeline.metrics.serialization import pack, unpack

_GOLDEN: Final = np.uint64(0x9E3779B97F4A7C15)
_MIX_1: Final = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2: Final = np.uint64(0x94D049BB133111EB)


def _mixed(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finaliser (Steele, Lea & Flood 2014): a bijection of 64-bit words."""
    z = (z ^ (z >> np.uint64(30))) * _MIX_1
    z = (z ^ (z >> np.uint64(27))) * _MIX_2
    return z ^ (z >> np.uint64(31))


def mixed_keys(ids: NDArray[np.int64], seed: int, stream: int) -> NDArray[np.uint64]:
    """Pseudo-random keys uint64 [n], distinct for distinct ids; every (seed, stream) gives another order of ids."""
    salt = _mixed(_mixed(np.array([seed], np.uint64) + _GOLDEN) + np.array([stream], np.uint64) * _GOLDEN)
    return _mixed(ids.astype(np.uint64) * _GOLDEN + salt)


@dataclass(frozen=True, eq=False)
class Reservoir:
    """ids int64 [n] and features float32 [n, D] in key order, n <= capacity; immutable, methods return a new sample."""

    fingerprint: Fingerprint
    capacity: int
    seed: int
    ids: NDArray[np.int64]
    features: NDArray[np.float32]

    @classmethod
    def empty(cls, fingerprint: Fingerprint, capacity: int, seed: int) -> "Reservoir":
        dim = fingerprint.feature_dim
        return cls(fingerprint, capacity, seed, np.empty(0, np.int64), np.empty((0, dim), np.float32))

    def update(self, ids: NDArray[np.int64], features: NDArray[Any]) -> "Reservoir":
        """The sample after adding rows `features` [B, D] of images `ids` [B].

        Raises DataError on wrong shapes, or if an id has two different feature vectors.
        """
        if features.shape != (len(ids), self.fingerprint.feature_dim):
            raise DataError(f"need features [{len(ids)}, {self.fingerprint.feature_dim}], got {list(features.shape)}")
        all_ids = np.concatenate([self.ids, np.asarray(ids, np.int64)])
        rows = np.concatenate([self.features, np.asarray(features, np.float32)])
        order = np.argsort(mixed_keys(all_ids, self.seed, 0), kind="stable")
        sorted_ids = all_ids[order]
        repeated = np.flatnonzero(sorted_ids[1:] == sorted_ids[:-1]) + 1
        for place in repeated:
            if not np.array_equal(rows[order[place]], rows[order[place - 1]]):
                raise DataError(f"image {sorted_ids[place]} was given twice with different features")
        keep = np.delete(order, repeated)[: self.capacity]
        return Reservoir(self.fingerprint, self.capacity, self.seed, all_ids[keep], rows[keep])

    def merge(self, other: "Reservoir") -> "Reservoir":
        """The sample of both sets together. Raises DataError when protocol, capacity or seed differ."""
        self.fingerprint.require_same(other.fingerprint)
        if (self.capacity, self.seed) != (other.capacity, other.seed):
            raise DataError(
                f"samples of capacity {self.capacity} and seed {self.seed} do not merge with "
                f"capacity {other.capacity} and seed {other.seed}"
            )
        return self.update(other.ids, other.features)

    def subset(self, index: int, size: int) -> NDArray[np.float64]:
        """The random subset number `index`, float64 [size, D], chosen by id. Raises DataError if there are too few."""
        if size > len(self.ids):
            raise DataError(f"a subset of {size} images needs at least as many, got {len(self.ids)}")
        chosen = np.argsort(mixed_keys(self.ids, self.seed, index + 1), kind="stable")[:size]
        return self.features[chosen].astype(np.float64)

    def to_bytes(self) -> bytes:
        """A safetensors file; equal samples give equal bytes."""
        header = {"capacity": self.capacity, "seed": self.seed, "fingerprint": asdict(self.fingerprint)}
        return pack("reservoir", header, {"ids": self.ids, "features": self.features})

    @classmethod
    def from_bytes(cls, data: bytes) -> "Reservoir":
        """Inverse of `to_bytes`. Raises DataError."""
        header, arrays = unpack("reservoir", data)
        fingerprint = Fingerprint(**header["fingerprint"])
        return cls(fingerprint, header["capacity"], header["seed"], arrays["ids"], arrays["features"])
