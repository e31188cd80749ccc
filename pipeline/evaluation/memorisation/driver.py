"""`ddpm memorisation`: find samples that are near-copies of training images.

The search compares each sample with the whole training split, in pixels and in features of the evaluation's extractor.
Held-out images of the same dataset give the baseline (`metrics/memorisation.py` defines the rule). Ray tasks stream
training shards past groups of samples and keep the k nearest images per sample, so memory does not grow with the
dataset. Merging is exact, so the result is bit-identical for any number of workers.
"""

import time
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray

from pipeline.cluster import cluster
from pipeline.config.base import digest_of
from pipeline.config.root import Config
from pipeline.errors import DataError, Transient
from pipeline.evaluation.context import REFERENCE, EvaluationContext, open_context
from pipeline.evaluation.extractor import extractor_of
from pipeline.evaluation.memorisation.nearest_search import (
    NearestBySpace,
    RowRange,
    Search,
    chunks_of,
    draw_sheet,
    groups_of,
    load_queries,
    search_chunk,
)
from pipeline.evaluation.memorisation.results import (
    NEIGHBOURS,
    Memorisation,
    Pair,
    memorisation_key,
    read_memorisation,
    write_memorisation,
)
from pipeline.evaluation.results import ExtractorRecord
from pipeline.ingest.manifest import Split
from pipeline.metrics.memorisation import RULE, Space, SpaceResult, find_near_copies
from pipeline.metrics.nearest import Nearest
from pipeline.progress import Progress
from pipeline.task_pool import fan_out

SPACES: Final[tuple[Space, ...]] = ("pixel", "feature")
NUM_LISTED: Final = 3
"""Nearest training images of each sample in the table."""
_REASONS: Final[dict[Split, str]] = {"train": "a neighbourhood needs 2", "heldout": "the baseline needs 2"}
"""Why each split must have at least 2 images."""
FEW_HELDOUT, ENOUGH_HELDOUT = 100, 1000
_RESULT_FIELDS: Final = {
    *("n", "failed", "heldout_n", "reference_n", "rule", "closeness", "neighbours", "flips", "spaces", "pairs")
}
"""Fields of a Memorisation in the result of the command."""


def memorisation(config: Config, samples: str, dataset: str, dry_run: bool = False) -> dict[str, Any]:
    """Search the training split for near-copies among sealed samples. Returns a stored result when there is one.

    Raises DataError for unsealed samples, a missing dataset, different image shapes, or too few images.
    """
    context = _open(config, samples, dataset)
    n, heldout = _counts(context)
    done = read_memorisation(context.samples, _digest(context))
    if done is not None:
        return {**_result(context, done, "already done"), "seconds": 0.0}
    if dry_run:
        what = f"{n:,} of {context.num_usable:,} samples and {heldout:,} held-out images"
        where = f"{context.manifest.rows('train'):,} training images -> {context.samples.uri}"
        return {"summary": f"would compare {what} with {where}"}
    started, workers = time.monotonic(), config.ray.max_workers
    with cluster(config.ray, workers):
        record = extractor_of(context)
        k = min(config.memorisation.neighbours, context.manifest.rows(REFERENCE))
        search = Search(context, record.weights_sha256, k, _flips(config))
        ids, found = _neighbours(search, groups_of(context, n, heldout), workers)
        outcomes = {space: _compare_space(context, record, space, ids[:n], found[space]) for space in SPACES}
        draw = ray.remote(num_cpus=1, retry_exceptions=[Transient])(draw_sheet)
        pngs = ray.get([draw.remote(search, outcomes[space].pairs) for space in SPACES])
        sheets = dict(zip(SPACES, pngs, strict=True))
    fields = {
        **_protocol(context, record, search, n, heldout),
        "spaces": tuple(outcomes[space].result for space in SPACES),
        "pairs": tuple(pair for space in SPACES for pair in outcomes[space].pairs),
    }
    table = pa.concat_tables([outcomes[space].neighbours for space in SPACES])
    result = write_memorisation(context.samples, table, sheets, fields)
    return {**_result(context, result, "looked up"), "seconds": time.monotonic() - started}


def _open(config: Config, samples: str, dataset: str) -> EvaluationContext:
    context = open_context(config, samples, dataset)
    if context.num_usable < 1:
        raise DataError(f"{context.samples.uri} has no usable sample: all {context.sealed.rows:,} failed")
    for split, why in _REASONS.items():
        if context.manifest.rows(split) < 2:
            raise DataError(
                f"{context.dataset.uri} has {context.manifest.rows(split)} {split} images, {why}: ingest with another "
                "ingest.heldout_share"
            )
    return context


def _counts(context: EvaluationContext) -> tuple[int, int]:
    """(samples, held-out images) to search for; a small number of samples still gets a full-sized baseline."""
    limit = context.config.memorisation.num_samples
    usable, heldout = context.num_usable, context.manifest.rows("heldout")
    return (usable, heldout) if limit is None else (min(usable, limit), min(heldout, max(limit, ENOUGH_HELDOUT)))


def _flips(config: Config) -> bool:
    return config.train.flip if config.memorisation.flips is None else config.memorisation.flips


def _digest(context: EvaluationContext) -> str:
    """sha256 (hex) of everything that determines the result."""
    settings = context.config.memorisation.model_dump(mode="json", include={"closeness", "neighbours", "pairs"})
    shards = [marker.sha256 for marker in context.sealed.shards]
    search = [RULE, NUM_LISTED, settings, _flips(context.config), *_counts(context)]
    return digest_of([*search, context.manifest.digest(), context.extractor_id, context.sealed.plan, shards])


def _neighbours(
    search: Search, groups: Sequence[Sequence[RowRange]], workers: int
) -> tuple[NDArray[np.int64], NearestBySpace]:
    """Ids of all queries in order, and their nearest training images. Each group takes one pass over the split."""
    shards = search.context.manifest.split(REFERENCE)
    chunks = chunks_of(shards, workers)
    progress, seen = Progress("neighbours", len(groups) * sum(shard.rows for shard in shards), "img"), 0
    load = ray.remote(num_cpus=1, num_returns=2, retry_exceptions=[Transient])(load_queries)
    ids: list[NDArray[np.int64]] = []
    best: dict[Space, list[Nearest]] = {space: [] for space in SPACES}
    for group in groups:
        own, queries = load.remote(search, group)
        ids.append(ray.get(own).copy())
        kept: NearestBySpace = {space: Nearest.none(len(ids[-1]), search.k) for space in SPACES}
        for found, images in fan_out(search_chunk, search, ((queries, chunk) for chunk in chunks), workers):
            kept = {space: kept[space].merge(found[space]) for space in SPACES}
            seen += images
            progress.update(seen)
        for space in SPACES:
            best[space].append(kept[space])
    progress.close()
    return np.concatenate(ids), {
        space: Nearest(np.concatenate([b.squared for b in parts]), np.concatenate([b.ids for b in parts]))
        for space, parts in best.items()
    }


# --- results ----------------------------------------------------------------------------------------------------------


class SpaceOutcome(NamedTuple):
    """The outcome in one space. neighbours: NEIGHBOURS table of all samples; pairs: the closest pairs."""

    result: SpaceResult
    neighbours: pa.Table
    pairs: list[Pair]


def _compare_space(
    context: EvaluationContext, record: ExtractorRecord, space: Space, ids: NDArray[np.int64], found: Nearest
) -> SpaceOutcome:
    """Apply the near-copy rule. ids: int64 [S] of the samples; `found` has samples first, then held-out images."""
    n, settings = len(ids), context.config.memorisation
    unit, scale = "root mean square difference of levels in [0, 1]", 1 / (255 * float(np.prod(context.shape)) ** 0.5)
    if space == "feature":
        unit, scale = f"Euclidean distance of features of {record.name}", 1.0
    samples = Nearest(found.squared[:n], found.ids[:n])
    heldout = Nearest(found.squared[n:], found.ids[n:])
    result, relative, near_copy = find_near_copies(space, unit, scale, settings.closeness, samples, heldout)
    distances = scale * np.sqrt(samples.squared[:, :NUM_LISTED])
    ranks = distances.shape[1]
    columns = {
        "sample_id": ids.repeat(ranks),
        "space": [space] * (n * ranks),
        "rank": np.tile(np.arange(1, ranks + 1, dtype=np.int32), n),
        "train_id": samples.ids[:, :NUM_LISTED].ravel(),
        "distance": distances.ravel(),
        "relative": relative.repeat(ranks),
        "near_copy": near_copy.repeat(ranks),
    }
    closest = np.lexsort((ids, distances[:, 0], relative))[: settings.pairs]
    pairs = [
        Pair(
            space=space,
            place=place,
            sample_id=int(ids[i]),
            train_id=int(samples.ids[i, 0]),
            distance=float(distances[i, 0]),
            relative=float(relative[i]),
            near_copy=bool(near_copy[i]),
        )
        for place, i in enumerate(closest, 1)
    ]
    return SpaceOutcome(result, pa.table(columns, schema=NEIGHBOURS), pairs)


def _protocol(
    context: EvaluationContext, record: ExtractorRecord, search: Search, n: int, heldout: int
) -> dict[str, Any]:
    """All fields of a Memorisation except the outcomes and the files."""
    return {
        "id": _digest(context),
        **context.protocol(record),
        "reference_n": context.manifest.rows(REFERENCE),
        "n": n,
        "usable": context.num_usable,
        "heldout_n": heldout,
        "rule": RULE,
        "closeness": context.config.memorisation.closeness,
        "neighbours": search.k,
        "flips": search.flips,
        "warnings": tuple(_warnings(context, search.k, heldout)),
    }


def _warnings(context: EvaluationContext, k: int, heldout: int) -> Iterator[str]:
    """Limits on how far the shares can be trusted."""
    if heldout < FEW_HELDOUT:
        yield f"only {heldout} held-out images: the baseline is coarse (a higher ingest.heldout_share gives more)"
    if k < context.config.memorisation.neighbours:
        yield f"the training split has only {k} images: the neighbourhood of every sample is the whole split"


def _result(context: EvaluationContext, found: Memorisation, state: str) -> dict[str, Any]:
    uri = context.samples.location(memorisation_key(found.id))
    shares = {space: found.of(space) for space in SPACES}
    pixel, feature = (
        f"{of.near_copies.value:.2%} by {how} (held-out images {of.baseline.value:.2%})"
        for of, how in ((shares["pixel"], "pixels"), (shares["feature"], f"features of {found.extractor}"))
    )
    looked_up = f"{found.n:,}" if found.n == found.usable else f"the first {found.n:,} of {found.usable:,}"
    text = (
        f"{state}: near-copies of the {found.reference_n:,} training images among {looked_up} samples: {pixel}, "
        f"{feature}; {shares['pixel'].exact_copies:,} exact copies"
    )
    return {
        "state": state,
        "uri": uri,
        "digest": found.id,
        "table": context.samples.location(found.table.key),
        "sheets": {space: context.samples.location(file.key) for space, file in found.sheets.items()},
        **found.model_dump(mode="json", include=_RESULT_FIELDS),
        "exact_copies": shares["pixel"].exact_copies,
        **{f"{space}_share": of.near_copies.value for space, of in shares.items()},
        **{f"{space}_baseline": of.baseline.value for space, of in shares.items()},
        "summary": "\n".join([f"{text} -> {uri}", *(f"warning: {line}" for line in found.warnings)]),
    }
