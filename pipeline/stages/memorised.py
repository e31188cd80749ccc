"""The stored searches for training images of a samples folder, as a report shows them."""

from collections.abc import Iterator

from pipeline.report.content import Fact, Picture
from pipeline.report.memorisation_card import memorisation_fact, memorisation_picture
from pipeline.storage.memorisation import Memorisation, read_memorisations, read_sheet
from pipeline.storage.store import Store

__all__ = ["memorised"]


def memorised(samples: Store, plan: str) -> tuple[list[Fact], list[Picture]]:
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
