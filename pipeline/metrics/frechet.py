"""Frechet distance between two Gaussians fitted to features (Dowson & Landau 1982; Heusel et al. 2017, Eq. 6).

    d^2 = |mu_a - mu_b|^2 + tr(S_a) + tr(S_b) - 2 tr((S_a S_b)^(1/2))

S_a S_b has the same eigenvalues as the symmetric S_a^(1/2) S_b S_a^(1/2), so the last trace is the sum of the square
roots of that matrix's eigenvalues. They are real, also for singular covariances.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.metrics.protocol import Fingerprint


class Gaussian(Protocol):
    """A Gaussian fitted to a set of features, such as `Moments`."""

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
    """`value` is the squared distance, as in every published FID; `name` holds the extractor."""

    name: str
    value: float
    n_a: int
    n_b: int
    feature_dim: int

    @property
    def rank_deficient(self) -> bool:
        """True if a side has at most as many images as features: singular covariance, value biased far upward."""
        return min(self.n_a, self.n_b) <= self.feature_dim


class FrechetReference:
    """Distances to one reference; the matrix square root of its covariance is computed once."""

    def __init__(self, reference: Gaussian) -> None:
        """Raises DataError if the reference has fewer than two images."""
        self.reference = reference
        self._covariance = reference.covariance
        eigenvalues, vectors = np.linalg.eigh(self._covariance)
        self._root = (vectors * np.sqrt(np.clip(eigenvalues, 0.0, None))) @ vectors.T

    def distance(self, a: Gaussian) -> FrechetDistance:
        """Distance of `a`. The estimate falls with n, so compare only values at equal n.

        Raises DataError on different fingerprints or fewer than two images.
        """
        a.fingerprint.require_same(self.reference.fingerprint)
        covariance = a.covariance
        product = self._root @ covariance @ self._root
        cross = np.sqrt(np.clip(np.linalg.eigvalsh((product + product.T) / 2), 0.0, None)).sum()
        delta = a.mean - self.reference.mean
        value = float(delta @ delta + np.trace(covariance) + np.trace(self._covariance) - 2 * cross)
        value = max(value, 0.0)  # rounding may give a tiny negative value for equal sides
        return FrechetDistance(a.fingerprint.frechet_name, value, a.n, self.reference.n, a.fingerprint.feature_dim)


def frechet(a: Gaussian, b: Gaussian) -> FrechetDistance:
    """Distance between two sets of features. Raises DataError as `FrechetReference.distance` does."""
    a.fingerprint.require_same(b.fingerprint)
    return FrechetReference(b).distance(a)
