"""Computes all scores from feature statistics: every kind of images against the reference, with intervals."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from pipeline.metrics.feature_stats import NEIGHBOURS, NUM_SUBSETS, SUBSET_ROWS, FeatureStats, Kind, Score
from pipeline.metrics.frechet import FrechetReference
from pipeline.metrics.intervals import (
    Interval,
    class_interval,
    extrapolate_frechet,
    frechet_interval,
    kernel_interval,
    mean_interval,
)
from pipeline.metrics.kid import kernel_distances
from pipeline.metrics.pixels import histogram_distance
from pipeline.metrics.precision_recall import neighbour_scores
from pipeline.metrics.reservoir import Reservoir

BITS_PER_DIM = "bits/dim"
_WITH_INTERVAL: tuple[Kind, ...] = ("samples", "floor")
Measured = Mapping[Kind, FeatureStats]


def score(reference: FeatureStats, measured: Measured, extrapolate: bool = False) -> Iterator[Score]:
    """Yield Frechet distances, then kernel distances, neighbour scores, class scores and pixel statistics.

    Only samples and floor have intervals. Raises DataError for fewer than 2 images a side or different protocols.
    """
    yield from _frechet(reference, measured, extrapolate)
    groups = list(_equal_rows(reference, measured))
    for rows, group in groups:
        yield from _kernel(reference, group, min(SUBSET_ROWS, rows))
    for rows, group in groups:
        if rows > NEIGHBOURS:
            yield from _neighbours(reference, group, rows)
    yield from _classes(measured)
    yield from _pixels(reference, measured)


def _equal_rows(reference: FeatureStats, measured: Measured) -> Iterator[tuple[int, Measured]]:
    """Sides to compare by equally many images, with that number: a smaller floor does not cut the other sides."""
    sizes = {kind: len(sketch.reservoir.ids) for kind, sketch in measured.items()}
    rows = min(len(reference.reservoir.ids), *(size for kind, size in sizes.items() if kind != "floor"))
    is_small = sizes.get("floor", rows) < rows
    yield rows, {kind: sketch for kind, sketch in measured.items() if not (is_small and kind == "floor")}
    if is_small:
        yield sizes["floor"], {"floor": measured["floor"]}


def _ends(interval: Interval | None) -> dict[str, float]:
    return {} if interval is None else interval._asdict()


def _frechet(reference: FeatureStats, measured: Measured, extrapolate: bool) -> Iterator[Score]:
    to = FrechetReference(reference.moments)
    name = reference.moments.fingerprint.frechet_name
    for kind, sketch in measured.items():
        distance = to.distance(sketch.moments)
        ends = _ends(frechet_interval(to, sketch.moments, sketch.reservoir)) if kind in _WITH_INTERVAL else {}
        counts = {"n": distance.n_a, "reference_n": distance.n_b}
        yield Score(metric=name, kind=kind, value=distance.value, **counts, **ends)
    for kind in _WITH_INTERVAL if extrapolate else ():
        if kind in measured and (found := extrapolate_frechet(to, measured[kind].moments, measured[kind].reservoir)):
            counts = {"n": measured[kind].moments.n, "reference_n": reference.moments.n}
            yield Score(metric=f"{name}-infinity", kind=kind, value=found.value, spread=found.error, **counts)


def _kernel(reference: FeatureStats, measured: Measured, subset_rows: int) -> Iterator[Score]:
    samples = {kind: sketch.reservoir for kind, sketch in measured.items()}
    found = kernel_distances(samples, reference.reservoir, NUM_SUBSETS, subset_rows)
    for kind, kernel in found.items():
        sample = samples[kind]
        ends = _ends(kernel_interval(kernel.value, sample, reference.reservoir)) if kind in _WITH_INTERVAL else {}
        counts = {"n": len(sample.ids), "reference_n": len(reference.reservoir.ids)}
        yield Score(metric=kernel.name, kind=kind, value=kernel.value, spread=kernel.spread, **counts, **ends)


def _neighbours(reference: FeatureStats, measured: Measured, rows: int) -> Iterator[Score]:
    """Neighbour scores depend on the number of points, so both sides use the first `rows` of their random sample."""
    real = _first(reference.reservoir, rows)
    by_kind: dict[Kind, dict[str, Any]] = {
        kind: vars(neighbour_scores(real, _first(sketch.reservoir, rows), NEIGHBOURS))
        for kind, sketch in measured.items()
    }
    for name in ("precision", "recall", "density", "coverage"):
        metric = f"{name}-{real.fingerprint.extractor}"
        for kind, values in by_kind.items():
            yield Score(metric=metric, kind=kind, value=values[name], n=rows, reference_n=rows)


def _first(reservoir: Reservoir, rows: int) -> Reservoir:
    """The sample of a reservoir with capacity `rows`: rows are in key order."""
    return Reservoir(reservoir.fingerprint, rows, reservoir.seed, reservoir.ids[:rows], reservoir.features[:rows])


def _classes(measured: Measured) -> Iterator[Score]:
    for kind, sketch in measured.items():
        if sketch.classes is not None:
            of = sketch.classes.score()
            ends = _ends(class_interval(of)) if kind in _WITH_INTERVAL else {}
            name = sketch.moments.fingerprint.class_name
            yield Score(
                metric=name, kind=kind, value=of.value, spread=of.spread, n=sketch.moments.n, reference_n=0, **ends
            )


def _pixels(reference: FeatureStats, measured: Measured) -> Iterator[Score]:
    """Distance of histograms, then means over channels of mean, std (levels 0..255) and saturated share."""
    for kind, sketch in measured.items():
        distance = histogram_distance(sketch.pixels, reference.pixels)
        counts = {"n": sketch.moments.n, "reference_n": reference.moments.n}
        yield Score(metric="pixel-histogram", kind=kind, value=distance, **counts)
    for name in ("mean", "std", "saturated"):
        for kind, sketch in measured.items():
            value = float(getattr(sketch.pixels, name).mean())
            yield Score(metric=f"pixel-{name}", kind=kind, value=value, n=sketch.moments.n, reference_n=0)


def bits_score(values: np.ndarray[Any, np.dtype[np.float64]]) -> Score:
    """Mean variational bound of held-out images, float64 [n] bits per dimension."""
    ends, spread = _ends(mean_interval(values)), float(values.std(ddof=1)) if len(values) > 1 else None
    mean = float(values.mean())
    return Score(metric=BITS_PER_DIM, kind="heldout", value=mean, spread=spread, n=len(values), reference_n=0, **ends)
