"""Frechet distance between two Gaussians fitted to features (Dowson & Landau 1982; Heusel et al. 2017, Eq. 6).

    d^2 = |mu_a - mu_b|^2 + tr(S_a) + tr(S_b) - 2 tr((S_a S_b)^(1/2))

S_a S_b is not symmetric, but has the eigenvalues of the symmetric S_a^(1/2) S_b S_a^(1/2), so the last trace
is the sum of square roots of that matrix's eigenvalues: real, never complex, and exact for singular covariances.
"""

from dataclasses import dataclass

import numpy as np

from pipeline.metrics.moments import Moments

__all__ = ["FrechetDistance", "frechet"]


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


def frechet(a: Moments, b: Moments) -> FrechetDistance:
    """Distance between two sets of features. It falls with n, so compare only values at equal n.

    Raises DataError on different fingerprints or fewer than two images a side.
    """
    a.fingerprint.require_same(b.fingerprint)
    cov_a, cov_b = a.covariance, b.covariance
    eigenvalues, vectors = np.linalg.eigh(cov_a)
    root_a = (vectors * np.sqrt(np.clip(eigenvalues, 0.0, None))) @ vectors.T
    product = root_a @ cov_b @ root_a
    cross = np.sqrt(np.clip(np.linalg.eigvalsh((product + product.T) / 2), 0.0, None)).sum()
    delta = a.mean - b.mean
    value = float(delta @ delta + np.trace(cov_a) + np.trace(cov_b) - 2 * cross)
    value = max(value, 0.0)  # equal sides may round to a hair below zero
    return FrechetDistance(a.fingerprint.frechet_name, value, a.n, b.n, a.fingerprint.feature_dim)
