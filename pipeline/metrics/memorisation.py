"""Finds samples that are near-copies of training images, by a rule calibrated on held-out images.

The relative distance of an image is its distance to the nearest training image divided by the mean distance to the 2nd
to k-th nearest: about 1 for an unremarkable image, 0 for a copy. (Carlini et al. 2023 divide by half the mean distance
within a neighbourhood of 50 training images. Yoon et al. 2023 divide by the distance to the 2nd nearest image; that
misses copies of a training image that has a duplicate or a mirror image.)

    near-copy: a sample with relative distance <= `closeness` x median relative distance of held-out images of the same
    dataset; a sample at distance 0 always is a near-copy

The held-out median adapts the rule to every space and dataset. The share of held-out images that the rule calls
near-copies is the baseline: datasets contain similar images, so a sampler without memorisation reaches that share too.
Compare a share of samples with the baseline only.
"""

from typing import Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.config.base import Section
from pipeline.metrics.nearest import Nearest

Space = Literal["pixel", "feature"]
Float64 = NDArray[np.float64]

RULE: Final = "distance to the nearest training image / mean distance to the 2nd..k-th <= closeness x held-out median"
QUANTILES: Final = (0.0, 0.001, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
_Z: Final = 1.959963984540054  # 97.5 % point of the normal distribution


class Share(Section):
    """`count` of `n` images; low..high is Wilson's 95 % interval of the share."""

    count: int
    n: int
    low: float
    high: float

    @classmethod
    def of(cls, flags: NDArray[np.bool_]) -> "Share":
        """The share of True in bool [n], n >= 1."""
        n, count = len(flags), int(flags.sum())
        p, z2 = count / n, _Z**2 / n
        centre = (p + z2 / 2) / (1 + z2)
        half = _Z / (1 + z2) * float(np.sqrt(p * (1 - p) / n + z2 / (4 * n)))
        low, high = max(0.0, centre - half), min(1.0, centre + half)
        return cls(count=count, n=n, low=low if count else 0.0, high=high if count < n else 1.0)

    @property
    def value(self) -> float:
        return self.count / self.n


class Distribution(Section):
    """Quantiles at QUANTILES of distances to the nearest training image and of relative distances."""

    distance: tuple[float, ...]
    relative: tuple[float, ...]

    @classmethod
    def of(cls, distance: Float64, relative: Float64) -> "Distribution":
        at = list(QUANTILES)
        return cls(
            distance=tuple(np.quantile(distance, at).tolist()), relative=tuple(np.quantile(relative, at).tolist())
        )


class SpaceResult(Section):
    """Result of the rule in one space. `threshold` is closeness times the held-out median of relative distances."""

    space: Space
    unit: str  # unit of distances
    threshold: float
    near_copies: Share  # share of samples
    baseline: Share  # share of held-out images with the same threshold
    exact_copies: int  # samples at distance 0
    samples: Distribution
    heldout: Distribution


class NearCopies(NamedTuple):
    """`result` in one space; relative distances float64 [S] of the samples; bool [S], True for a near-copy."""

    result: SpaceResult
    relative: Float64
    is_near_copy: NDArray[np.bool_]


def relative_distances(distances: Float64) -> Float64:
    """float64 [Q] for ascending distances [Q, k], k >= 2: the first divided by the mean of the others; 0 for 0 / 0."""
    first, others = distances[:, 0], distances[:, 1:].mean(axis=1)
    out: Float64 = np.divide(first, others, out=np.zeros(len(first)), where=others > 0)
    return out


def find_near_copies(
    space: Space, unit: str, scale: float, closeness: float, samples: Nearest, heldout: Nearest
) -> NearCopies:
    """Apply the rule to the nearest training images of samples and held-out images.

    Every image has k neighbours (no NO_ROW); a distance is `scale` times the root of a squared distance.
    """
    distances = {"samples": scale * np.sqrt(samples.squared), "heldout": scale * np.sqrt(heldout.squared)}
    relative = {kind: relative_distances(of) for kind, of in distances.items()}
    threshold = closeness * float(np.median(relative["heldout"]))
    flags = {kind: of <= threshold for kind, of in relative.items()}
    result = SpaceResult(
        space=space,
        unit=unit,
        threshold=threshold,
        near_copies=Share.of(flags["samples"]),
        baseline=Share.of(flags["heldout"]),
        exact_copies=int((samples.squared[:, 0] == 0).sum()),
        samples=Distribution.of(distances["samples"][:, 0], relative["samples"]),
        heldout=Distribution.of(distances["heldout"][:, 0], relative["heldout"]),
    )
    return NearCopies(result, relative["samples"], flags["samples"])
