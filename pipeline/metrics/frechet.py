"""Frechet distance between two Gaussians fitted to features (Dowson & Landau 1982; Heusel et al. 2017, Eq. 6).

    d^2 = |mu_a - mu_b|^2 + tr(S_a) + tr(S_b) - 2 tr((S_a S_b)^(1/2))

S_a S_b is not symmetric, but has the eigenvalues of the symmetric S_a^(1/2) S_b S_a^(1/2), so the last trace
is the sum of square roots of that matrix's eigenvalues: real, never complex, and exact for singular covariances.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.metrics.protocol import Fingerprint

__all__ = ["FrechetDistance", "FrechetTo", "Gaussian", "frechet"]


class Gaussian(Protocol):
    """What a distance needs of a set of features: `Moments` are one."""

    @property
    def fingerprint(self) -> Fingerprint: ...
    @property
    def n(self) -> int: ...
    @property
    def mean(self) -> NDArray[np.float64]:
        """float64 [D]."""

    @property
    def covariance(self) -> NDArray[np.float64]:
        """float64 [D, D], unbiased."""


@dataclass(frozen=True)
class FrechetDistance:
    """`value` is the squared distance, as every published FID; `name` says on whose features."""

    name: str
    value: float
    n_a: int
    n_b: int
    feature_dim: int

    @property
    def rank_deficient(self) -> bool:
        """A side has no more images than features: its covariance is singular and the value biased far upward."""
        return min(self.n_a, self.n_b) <= self.feature_dim


class FrechetTo:
    """Distances to one reference, whose square root is taken once."""

    def __init__(self, reference: Gaussian) -> None:
        """Raises DataError below two images."""
        self.reference = reference
        self._covariance = reference.covariance
        eigenvalues, vectors = np.linalg.eigh(self._covariance)
        self._root = (vectors * np.sqrt(np.clip(eigenvalues, 0.0, None))) @ vectors.T

    def distance(self, a: Gaussian) -> FrechetDistance:
        """It falls with n, so compare only values at equal n.

        Raises DataError on different fingerprints or fewer than two images.
        """
        a.fingerprint.require_same(self.reference.fingerprint)
        covariance = a.covariance
        product = self._root @ covariance @ self._root
        cross = np.sqrt(np.clip(np.linalg.eigvalsh((product + product.T) / 2), 0.0, None)).sum()
        delta = a.mean - self.reference.mean
        value = float(delta @ delta + np.trace(covariance) + np.trace(self._covariance) - 2 * cross)
        value = max(value, 0.0)  # equal sides may round to a hair below zero
        return FrechetDistance(a.fingerprint.frechet_name, value, a.n, self.reference.n, a.fingerprint.feature_dim)


def frechet(a: Gaussian, b: Gaussian) -> FrechetDistance:
    """Distance between two sets of features. Raises DataError as `FrechetTo.distance` does."""
    a.fingerprint.require_same(b.fingerprint)
    return FrechetTo(b).distance(a)
