"""Scores for display: each with its floor and ceilings, and a verdict on the first."""

from collections.abc import Sequence
from typing import Final

from pipeline.metrics.feature_stats import Kind, Score
from pipeline.metrics.reference_images import BLUR_NAME, NOISE_NAME
from pipeline.report.render.content import Anchor, MetricRow, Verdict
from pipeline.report.render.scales import figures

FLOOR_NAME: Final = "held-out real"
_MEANING: Final = {
    "FD": "Frechet distance of features, lower is better. It falls as n grows: compare only at equal n and protocol.",
    "FID": "Frechet distance of Inception-v3 features, lower is better. It falls as n grows: compare only at equal n.",
    "KD": "Kernel distance of features, lower is better. Unbiased at every n.",
    "KID": "Kernel distance of Inception-v3 features, lower is better. Unbiased at every n.",
    "precision": "Fidelity: share of samples within the neighbourhood of a real image.",
    "recall": "Diversity: share of real images within the neighbourhood of a sample.",
    "density": "Mean density of real images around samples; about 1 for real images.",
    "coverage": "Share of real images with a sample in their neighbourhood.",
    "IS": "Inception Score: confident and varied class predictions, higher is better. Does not use real images.",
    "class": "Formula of the Inception Score with another classifier, higher is better; compare only with the floor.",
    "bits/dim": "Variational bound on held-out images, lower is better. Describes the model, not the samples.",
    "pixel": "Grey levels 0 to 255: distance of the histogram from the real one, mean, deviation, share at 0 or 255.",
}


def metric_rows(scores: Sequence[Score], protocol: str, name: str = "") -> tuple[MetricRow, ...]:
    """One row per metric, in the order of `scores`. name: of the samples, on a page with several samples folders."""
    by_metric: dict[str, dict[Kind, Score]] = {}
    for score in scores:
        by_metric.setdefault(score.metric, {})[score.kind] = score
    return tuple(_row(kinds, protocol, name) for kinds in by_metric.values() if kinds.keys() & {"samples", "heldout"})


def _row(kinds: dict[Kind, Score], protocol: str, name: str) -> MetricRow:
    of: Score = kinds["samples"] if "samples" in kinds else kinds["heldout"]
    spread = "" if of.spread is None else f" Standard deviation between subsets: {figures(of.spread)}."
    interval = None if of.low is None or of.high is None else (of.low, of.high)
    if interval:
        spread += f" 95 % interval: {figures(interval[0])} to {figures(interval[1])}."
    ceilings: tuple[tuple[Kind, str], ...] = (("blurred", BLUR_NAME), ("noise", NOISE_NAME))
    return MetricRow(
        name=f"{of.metric}, {name}" if name else of.metric,
        value=of.value,
        n=of.n,
        protocol=f"against {of.reference_n:,} real images · {protocol}" if of.reference_n else protocol,
        floor=_floor(kinds["floor"], of.n) if "floor" in kinds else None,
        ceilings=tuple(Anchor(label, kinds[kind].value) for kind, label in ceilings if kind in kinds),
        interval=interval,
        note=_MEANING.get(of.metric.partition("-")[0], "") + spread,
    )


def _floor(floor: Score, n: int) -> Anchor:
    return Anchor(FLOOR_NAME if floor.n == n else f"{FLOOR_NAME}, n = {floor.n:,}", floor.value)


def verdict(scores: Sequence[Score], warnings: Sequence[str] = ()) -> Verdict | None:
    """On the first metric: good below both ceilings, bad above both; a warning in between, or with `warnings`.

    A floor is stated where there is one.
    """
    value = {score.kind: score.value for score in scores if score.metric == scores[0].metric}
    if not {"samples", "blurred", "noise"} <= value.keys():
        return None
    floor = f"{FLOOR_NAME} images score {figures(value['floor'])}" if "floor" in value else "no floor"
    text = (
        f"{scores[0].metric} {figures(value['samples'])} at n = {scores[0].n:,}: {floor}, "
        f"blurred images {figures(value['blurred'])}, noise {figures(value['noise'])}."
    )
    low, high = sorted((value["blurred"], value["noise"]))
    text = " ".join([text, *(f"{line[0].upper()}{line[1:]}." for line in warnings)])
    if value["samples"] >= high:
        return Verdict("bad", text)
    if warnings or value["samples"] >= low:
        return Verdict("warning", text)
    return Verdict("good", text)
