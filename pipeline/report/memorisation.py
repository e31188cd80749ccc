"""What a search for training images says on a page: one fact a space, one picture of its closest pairs."""

from collections.abc import Iterator

from pipeline.evaluation.memorisation.results import Memorisation, read_memorisations, read_sheet
from pipeline.metrics.memorisation import Share, SpaceResult
from pipeline.report.render.content import Fact, Picture
from pipeline.storage.store import Store

__all__ = ["memorisation_content", "memorisation_fact", "memorisation_picture"]


def memorisation_fact(result: SpaceResult, extractor: str) -> Fact:
    """The share of near-copies with its interval, and the baseline that it compares with."""
    return Fact(
        f"Near-copies of training images, {_space(result, extractor)}",
        f"{_told(result.near_copies)} samples; {_told(result.baseline)} held-out images by the same rule",
    )


def memorisation_picture(result: SpaceResult, extractor: str, pairs: int, flagged: int, png: bytes) -> Picture:
    """The sheet of the `pairs` closest pairs, of which `flagged` are near-copies."""
    what = f"The {pairs:,} samples closest to a training image {_space(result, extractor)}, closest first"
    return Picture(
        f"{what}: sample left, its nearest training image right. {flagged:,} of these are near-copies.",
        f"{pairs:,} pairs of a sample and its nearest training image",
        png,
    )


def _space(result: SpaceResult, extractor: str) -> str:
    return "by pixels" if result.space == "pixel" else f"by features of {extractor}"


def _told(share: Share) -> str:
    return f"{share.value:.2%} ({share.low:.2%} to {share.high:.2%}) of {share.n:,}"


def memorisation_content(samples: Store, plan: str) -> tuple[list[Fact], list[Picture]]:
    """Facts and sheets of the search over the most samples of the sealed plan; empty without one.

    plan: fingerprint, so that a search before an extension of the job is not shown as one of all its samples.
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
