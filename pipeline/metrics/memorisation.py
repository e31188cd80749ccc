"""Which samples are near-copies of training images, by a rule that unseen real images calibrate.

An image's relative distance is its distance to the nearest training image over the mean distance to the 2nd to k-th
nearest: 1 where the first is nothing special, 0 for a copy. (Carlini et al. 2023 divide by half the mean
distance within a neighbourhood of 50 training images; Yoon et al. 2023 by the distance to the 2nd nearest, which a
training set with duplicates or mirror images hides copies from.)

    a sample is a near-copy   when its relative distance is at most `closeness` times the median relative distance of
                              held-out images of the same dataset; distance 0 always is one

The median makes the rule one for any space and dataset: how near unseen real images come to the training images is
where the scale begins. The share of held-out images that the same rule calls near-copies is the baseline: that many a
sampler without any memory has, since datasets hold images that are much alike. Shares of samples mean something
against it, and only against it.
"""

from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.config.base import Section
from pipeline.metrics.nearest import Nearest

__all__ = ["QUANTILES", "RULE", "Distribution", "Share", "Space", "SpaceResult", "compare", "relative_distances"]

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
        """Of bool [n], n >= 1."""
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
    """Values at QUANTILES: of distances to the nearest training image, and of relative distances."""

    distance: tuple[float, ...]
    relative: tuple[float, ...]

    @classmethod
    def of(cls, distance: Float64, relative: Float64) -> "Distribution":
        at = list(QUANTILES)
        return cls(
            distance=tuple(np.quantile(distance, at).tolist()), relative=tuple(np.quantile(relative, at).tolist())
        )


class SpaceResult(Section):
    """What the rule says in one space. `threshold` is closeness times the held-out median of relative distances."""

    space: Space
    unit: str  # of distances
    threshold: float
    near_copies: Share  # of samples
    baseline: Share  # of held-out images, by the same threshold
    exact_copies: int  # samples at distance 0
    samples: Distribution
    heldout: Distribution


def relative_distances(distances: Float64) -> Float64:
    """float64 [Q] of ascending distances [Q, k], k >= 2: the first over the mean of the others; 0 for 0 / 0."""
    first, others = distances[:, 0], distances[:, 1:].mean(axis=1)
    out: Float64 = np.divide(first, others, out=np.zeros(len(first)), where=others > 0)
    return out


def compare(
    space: Space, unit: str, scale: float, closeness: float, samples: Nearest, heldout: Nearest
) -> tuple[SpaceResult, Float64, NDArray[np.bool_]]:
    """(result, relative distances [S] of the samples, bool [S] which of them are near-copies).

    Neighbours are complete (no NO_ROW among them); a distance is `scale` times the root of a squared one.
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
    return result, relative["samples"], flags["samples"]
