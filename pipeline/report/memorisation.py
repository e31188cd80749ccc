"""Memorisation results in a report: per space, the share of near-copies and a picture of the closest pairs."""

from collections.abc import Iterator

from pipeline.evaluation.memorisation.results import Memorisation, read_memorisations, read_sheet
from pipeline.metrics.memorisation import Share, SpaceResult
from pipeline.report.render.content import Fact, Picture
from pipeline.storage.store import Store

__all__ = ["memorisation_content", "memorisation_fact", "memorisation_picture"]


def memorisation_fact(result: SpaceResult, extractor: str) -> Fact:
    """The share of near-copies with its interval, beside the baseline."""
    return Fact(
        f"Near-copies of training images, {_space(result, extractor)}",
        f"{_share_text(result.near_copies)} samples; {_share_text(result.baseline)} held-out images by the same rule",
    )


def memorisation_picture(result: SpaceResult, extractor: str, pairs: int, flagged: int, png: bytes) -> Picture:
    """The sheet with the closest pairs. pairs: their number; flagged: how many of them are near-copies."""
    what = f"The {pairs:,} samples closest to a training image {_space(result, extractor)}, closest first"
    return Picture(
        f"{what}: sample left, its nearest training image right. {flagged:,} of these samples are near-copies.",
        f"{pairs:,} pairs of a sample and its nearest training image",
        png,
    )


def _space(result: SpaceResult, extractor: str) -> str:
    return "by pixels" if result.space == "pixel" else f"by features of {extractor}"


def _share_text(share: Share) -> str:
    return f"{share.value:.2%} ({share.low:.2%} to {share.high:.2%}) of {share.n:,}"


def memorisation_content(samples: Store, plan: str) -> tuple[list[Fact], list[Picture]]:
    """Facts and sheets of the search over the most samples; empty without a search.

    plan: fingerprint of the sealed plan. A search from before an extension of the samples folder does not count.
    """
    found = [result for result in read_memorisations(samples) if result.samples_plan == plan]
    if not found:
        return [], []
    widest = max(found, key=lambda result: result.n)
    facts = [memorisation_fact(result, widest.extractor) for result in widest.spaces]
    return facts, list(_sheets(samples, widest))


def _sheets(samples: Store, found: Memorisation) -> Iterator[Picture]:
    for result in found.spaces:
        pairs = [pair for pair in found.pairs if pair.space == result.space]
        flagged = sum(pair.near_copy for pair in pairs)
        png = read_sheet(samples, found, result.space)
        yield memorisation_picture(result, found.extractor, len(pairs), flagged, png)
