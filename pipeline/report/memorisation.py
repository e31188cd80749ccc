"""Memorisation results in a report: per space, the share of near-copies and a picture of the closest pairs."""

from collections.abc import Iterator

from pipeline.evaluation.memorisation.results import Memorisation, read_memorisations, read_sheet
from pipeline.metrics.memorisation import Share, SpaceResult
from pipeline.report.render.content import Fact, Picture
from pipeline.storage.store import Store


def _fact(result: SpaceResult, extractor: str) -> Fact:
    """The share of near-copies with its interval, beside the baseline."""
    return Fact(
        f"Near-copies of training images, {_space(result, extractor)}",
        f"{_share_text(result.near_copies)} samples; {_share_text(result.baseline)} held-out images by the same rule",
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
    facts = [_fact(result, widest.extractor) for result in widest.spaces]
    return facts, list(_sheets(samples, widest))


def _sheets(samples: Store, found: Memorisation) -> Iterator[Picture]:
    """Per space, the sheet with the closest pairs."""
    for result in found.spaces:
        pairs = [pair for pair in found.pairs if pair.space == result.space]
        flagged = sum(pair.near_copy for pair in pairs)
        what = (
            f"The {len(pairs):,} samples closest to a training image {_space(result, found.extractor)}, closest first"
        )
        yield Picture(
            f"{what}: sample left, its nearest training image right. {flagged:,} of these samples are near-copies.",
            f"{len(pairs):,} pairs of a sample and its nearest training image",
            read_sheet(samples, found, result.space),
        )
