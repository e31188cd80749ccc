"""Separate scores of fidelity and diversity: precision, recall, density and coverage.

Precision and recall follow Kynkaanniemi et al. 2019, density and coverage Naeem et al. 2020.
Every point has a ball with radius its distance to the k-th nearest neighbour on its own side (real or generated).
    precision   share of generated points inside some real ball
    recall      share of real points inside some generated ball
    density     mean number of real balls around a generated point, divided by k (may exceed 1)
    coverage    share of real balls that contain a generated point
Distances are computed in blocks of rows, so memory is linear in the number of points.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DataError
from pipeline.metrics.reservoir import Reservoir

_BLOCK_ROWS: Final = 1024

Float64 = NDArray[np.float64]


@dataclass(frozen=True)
class NeighbourScores:
    """The four scores with k neighbours, for `num_real` and `num_generated` points."""

    precision: float
    recall: float
    density: float
    coverage: float
    k: int
    num_real: int
    num_generated: int


def _squared_distances(rows: Float64, points: Float64) -> Iterator[tuple[slice, Float64]]:
    """Blocks (slice of `rows`, squared distances [b, n]) of all pairs between `rows` and `points`."""
    norms = np.einsum("nd,nd->n", points, points)
    for start in range(0, len(rows), _BLOCK_ROWS):
        block = rows[start : start + _BLOCK_ROWS]
        squared = np.einsum("nd,nd->n", block, block)[:, None] + norms - 2 * block @ points.T
        yield slice(start, start + len(block)), squared


def _squared_radii(points: Float64, k: int) -> Float64:
    """float64 [n]: squared distance of each point to its k-th nearest other point."""
    radii = np.empty(len(points))
    for rows, squared in _squared_distances(points, points):
        own = np.arange(rows.start, rows.stop)
        squared[own - rows.start, own] = np.inf
        radii[rows] = np.partition(squared, k - 1, axis=1)[:, k - 1]
    return radii


def scores_of_features(real: Float64, generated: Float64, k: int) -> NeighbourScores:
    """Scores of float64 [R, D] against [G, D]. Raises DataError unless both sides have more than k points."""
    if not 1 <= k < min(len(real), len(generated)):
        raise DataError(f"{k} neighbours need more points than {len(real)} real and {len(generated)} generated")
    centre = real.mean(axis=0)  # a shift leaves distances unchanged, and |x|^2 + |y|^2 - 2 x.y loses fewer digits
    real, generated = real - centre, generated - centre
    real_radii, generated_radii = _squared_radii(real, k), _squared_radii(generated, k)
    inside, num_balls = 0, 0
    recalled = np.zeros(len(real), dtype=bool)
    nearest = np.full(len(real), np.inf)
    for rows, squared in _squared_distances(generated, real):
        in_real_ball = squared < real_radii
        inside += int(in_real_ball.any(axis=1).sum())
        num_balls += int(in_real_ball.sum())
        recalled |= (squared < generated_radii[rows, None]).any(axis=0)
        nearest = np.minimum(nearest, squared.min(axis=0))
    return NeighbourScores(
        precision=inside / len(generated),
        recall=float(recalled.mean()),
        density=num_balls / (k * len(generated)),
        coverage=float((nearest < real_radii).mean()),
        k=k,
        num_real=len(real),
        num_generated=len(generated),
    )


def neighbour_scores(real: Reservoir, generated: Reservoir, k: int) -> NeighbourScores:
    """Scores of two samples of features. Raises DataError on different protocols or too few points."""
    real.fingerprint.require_same(generated.fingerprint)
    return scores_of_features(real.features.astype(np.float64), generated.features.astype(np.float64), k)
