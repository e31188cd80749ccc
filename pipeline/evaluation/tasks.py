"""Tasks of an evaluation: decode the images of one part, sketch their features, score the merged sketches."""

import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from itertools import pairwise
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.config.base import FileEntry
from pipeline.errors import DataError
from pipeline.evaluation.context import MEASURED, REFERENCE, EvaluationContext, Part, Pixels
from pipeline.evaluation.results import (
    ExtractorRecord,
    extractor_folder,
    read_extractor,
    read_feature_stats,
    write_feature_stats,
)
from pipeline.images.png import decode_batch
from pipeline.log import collect
from pipeline.metrics.feature_stats import FeatureStats, Kind, Score, merge_feature_stats
from pipeline.metrics.features import Answer, Extractor, fingerprint_of
from pipeline.metrics.protocol import Fingerprint
from pipeline.metrics.reference_images import blurred, noise_images
from pipeline.metrics.scoring import score
from pipeline.schema import STATUS_OK
from pipeline.storage.files import read_parquet
from pipeline.storage.sample_shards import read_samples
from pipeline.storage.store import Store

__all__ = ["compute_feature_stats", "feature_stats_of", "score_feature_stats"]


Fillers = list[tuple[int, Callable[[], None]]]


_DECODE_ROWS: Final = 256


# --- tasks ------------------------------------------------------------------------------------------------------------


def compute_feature_stats(batch: pa.Table, context: EvaluationContext, weights_sha256: str) -> pa.Table:
    """Column part (a pickled Part) -> columns images (how many it has), warnings (pickled); its sketch is stored."""
    warnings = collect(task="features")
    part: Part = pickle.loads(batch["part"][0].as_py())
    extractor = _extractor(context.dataset, context.extractor_id, weights_sha256)
    sketch = feature_stats_of(extractor, fingerprint_of(extractor, context.reference), context, part)
    write_feature_stats(part.home, part.key, sketch)
    return pa.table({"images": [part.take], "warnings": [pickle.dumps(warnings.take())]})


def feature_stats_of(
    extractor: Extractor, fingerprint: Fingerprint, context: EvaluationContext, part: Part
) -> FeatureStats:
    """Of the images of one part, decoded on a thread of its own while the extractor is at those before."""
    ids, images, fillers = _images(context, part)
    answers: list[Answer] = []
    with ThreadPoolExecutor(1, "decode") as side:
        ready = [(stop, side.submit(fill)) for stop, fill in fillers]
        start = 0
        for stop, future in ready:
            future.result()
            answers.append(extractor.answer(images[start:stop]))
            start = stop
    features = np.concatenate([answer.features for answer in answers])
    probabilities = [answer.probabilities for answer in answers if answer.probabilities is not None]
    answer = Answer(features, np.concatenate(probabilities) if probabilities else None)
    return FeatureStats.of(fingerprint, context.config.evaluate.seed, ids, images, answer)


@lru_cache(maxsize=1)
def _extractor(dataset: Store, extractor_id: str, weights_sha256: str) -> Extractor:
    """Once a process. The hash is there so that a process never serves an extractor that was since replaced."""
    found = read_extractor(dataset, extractor_id)
    if found is None or found[0].weights_sha256 != weights_sha256:
        raise DataError(f"{dataset.location(extractor_folder(extractor_id))} changed during the evaluation")
    return found[1]


def _images(context: EvaluationContext, part: Part) -> tuple[NDArray[np.int64], Pixels, Fillers]:
    """Ids int64 [take], room for images uint8 [take, H, W, C], and what fills it: (up to which row, how)."""
    images = np.empty((part.take, *context.shape), np.uint8)
    stops = [min(start + _DECODE_ROWS, part.take) for start in range(0, part.take, _DECODE_ROWS)]
    if part.shard is None:
        ids = np.arange(part.first_id, part.first_id + part.take)

        def noise(start: int, stop: int) -> None:
            images[start:stop] = noise_images(
                stop - start, context.shape, context.config.evaluate.seed, part.first_id + start
            )

        fill: Fillers = [(stop, partial(noise, start, stop)) for start, stop in pairwise([0, *stops])]
        return ids, images, fill
    table = _rows(context, part, part.shard)
    pngs = pc.struct_field(table["image"], "bytes").to_pylist()

    def decode(start: int, stop: int) -> None:
        images[start:stop] = decode_batch(pngs[start:stop], context.shape)
        if part.side == "blurred":
            images[start:stop] = blurred(images[start:stop])

    fillers: Fillers = [(stop, partial(decode, start, stop)) for start, stop in pairwise([0, *stops])]
    return table["sample_id"].to_numpy(), images, fillers


def _rows(context: EvaluationContext, part: Part, shard: FileEntry) -> pa.Table:
    """Columns sample_id and image of a part."""
    if part.side == "samples":
        store, table = context.samples, read_samples(context.samples, shard, ["sample_id", "image", "status"])
        table = table.filter(pc.equal(table["status"], STATUS_OK))
    else:
        store, table = context.dataset, read_parquet(context.dataset, shard, ["sample_id", "image"])
    table = table.slice(0, part.take)
    if len(table) != part.take:
        raise DataError(f"{store.location(shard.key)} has {len(table)} usable rows, not {part.take}: verify it")
    return table


def score_feature_stats(context: EvaluationContext, record: ExtractorRecord) -> tuple[Score, ...]:
    """A task: every measured side against the training split, from the merged sketches of its parts.

    As a task it has one compute thread, wherever it runs. Raises DataError when the sketches were made with
    other weights than the extractor's.
    """
    merged = {
        side: merge_feature_stats(read_feature_stats((part.home, part.key) for part in context.parts(side)))
        for side in (REFERENCE, *MEASURED)
    }
    if merged[REFERENCE].moments.fingerprint.weights_sha256 != record.weights_sha256:
        raise DataError(
            f"{context.dataset.location(extractor_folder(record.id))} holds sketches of another training of "
            f"{record.name}: delete that folder, and the samples' metrics"
        )
    kinds: dict[Kind, FeatureStats] = {kind: merged[kind] for kind in MEASURED}
    return tuple(score(merged[REFERENCE], kinds, context.config.evaluate.extrapolate))
