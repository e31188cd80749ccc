"""What a search for training images says on a page: one fact a space, one picture of its closest pairs."""

from pipeline.metrics.memorisation import Share, SpaceResult
from pipeline.report.content import Fact, Picture

__all__ = ["memorisation_fact", "memorisation_picture"]


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
