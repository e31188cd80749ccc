"""Exact nearest-neighbour search: for each sample and held-out image, its nearest images in the training split.

Queries are processed in groups that fit in memory, as pixels uint8 and features float32. Each search task streams its
training shards past one group, block by block, and keeps the k nearest images per query. The search is exact, so
neither the groups nor the blocks affect the result.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.evaluation.context import EvaluationContext
from pipeline.evaluation.memorisation.results import Pair
from pipeline.evaluation.results import cached_extractor
from pipeline.evaluation.stored_images import Pixels, StoredShard, decode_column, first_rows, read_usable
from pipeline.generation.manifest import Marker
from pipeline.images.convert import grid
from pipeline.images.png import encode_png
from pipeline.ingest.manifest import ShardEntry
from pipeline.metrics.features import Extractor
from pipeline.metrics.memorisation import Space
from pipeline.metrics.nearest import Nearest, add_rows
from pipeline.storage.store import Store

GROUP_ROWS, GROUP_BYTES = 2**15, 2**28
BLOCK_ROWS, BLOCK_BYTES = 2**11, 2**25
CHUNK_ROWS, CHUNKS_PER_WORKER = 50_000, 4
CELL_PIXELS, SHEET_PIXELS, GAP = 64, 768, 8

NearestBySpace = dict[Space, Nearest]


@dataclass(frozen=True)
class Search:
    """Settings of all tasks of one search. k: neighbours kept per query; flips: also compare mirrored images."""

    context: EvaluationContext
    weights_sha256: str
    k: int
    flips: bool

    def extractor(self) -> Extractor:
        """The feature extractor, loaded once per process. Raises DataError when the stored weights have changed."""
        return cached_extractor(self.context.dataset, self.context.extractor_id, self.weights_sha256)


@dataclass(frozen=True)
class RowRange:
    """Usable rows first .. first + count - 1 of a shard of samples or of held-out images."""

    shard: StoredShard
    first: int
    count: int


@dataclass(frozen=True, eq=False)
class Queries:
    """pixels uint8 [Q, H W C], features float32 [Q, D]."""

    pixels: Pixels
    features: NDArray[np.float32]


def groups_of(
    context: EvaluationContext, samples: int, heldout: int, group_rows: int = GROUP_ROWS, group_bytes: int = GROUP_BYTES
) -> list[list[RowRange]]:
    """The first `samples` usable samples, then the first `heldout` held-out images, in groups that fit in memory."""
    limit = max(1, min(group_rows, group_bytes // int(np.prod(context.shape))))
    groups: list[list[RowRange]] = [[]]
    free = limit
    for shards, n in ((context.sealed.shards, samples), (context.manifest.split("heldout"), heldout)):
        for _, shard, rows in first_rows(shards, n):
            first = 0
            while first < rows:
                if free == 0:
                    groups.append([])
                    free = limit
                count = min(free, rows - first)
                groups[-1].append(RowRange(shard, first, count))
                first, free = first + count, free - count
    return groups


def chunks_of(shards: Sequence[ShardEntry], workers: int, chunk_rows: int = CHUNK_ROWS) -> list[list[ShardEntry]]:
    """Consecutive training shards in chunks, one per task: several per worker, of about `chunk_rows` images at most."""
    rows = sum(shard.rows for shard in shards)
    target = min(chunk_rows, -(-rows // (CHUNKS_PER_WORKER * workers)))
    chunks: list[list[ShardEntry]] = []
    filled = target
    for shard in shards:
        if filled >= target:
            chunks.append([])
            filled = 0
        chunks[-1].append(shard)
        filled += shard.rows
    return chunks


# --- Ray tasks --------------------------------------------------------------------------------------------------------


def load_queries(search: Search, group: Sequence[RowRange]) -> tuple[NDArray[np.int64], Queries]:
    """Ray task: ids int64 [Q] of one group, and the pixels and features to search for."""
    context, extractor = search.context, search.extractor()
    rows = sum(part.count for part in group)
    ids, pixels = np.empty(rows, np.int64), np.empty((rows, int(np.prod(context.shape))), np.uint8)
    features = np.empty((rows, extractor.feature_dim), np.float32)
    start = 0
    for part in group:
        store = context.samples if isinstance(part.shard, Marker) else context.dataset
        table = read_usable(store, part.shard, first=part.first, count=part.count)
        for block_ids, images in _blocks(table, context.shape):
            here = slice(start, start + len(images))
            ids[here], pixels[here] = block_ids, images.reshape(len(images), -1)
            features[here] = extractor.extract(images).features
            start += len(images)
    return ids, Queries(pixels, features)


def search_chunk(search: Search, queries: Queries, chunk: Sequence[ShardEntry]) -> tuple[NearestBySpace, int]:
    """Ray task: the nearest images in some training shards, and the number of images in these shards."""
    context, extractor = search.context, search.extractor()
    pixel = feature = Nearest.none(len(queries.pixels), search.k)
    for shard in chunk:
        for ids, images in _blocks(read_usable(context.dataset, shard), context.shape):
            for shown in (images, np.ascontiguousarray(images[:, :, ::-1])) if search.flips else (images,):
                pixel = add_rows(pixel, queries.pixels, shown.reshape(len(shown), -1), ids)
                feature = add_rows(feature, queries.features, extractor.extract(shown).features, ids)
    return {"pixel": pixel, "feature": feature}, sum(shard.rows for shard in chunk)


def draw_sheet(search: Search, pairs: Sequence[Pair]) -> bytes:
    """Ray task: the pairs as one PNG, row by row; each sample left of its training image, which is never mirrored."""
    context = search.context
    left = _pixels_by_id(context, context.samples, context.sealed.shards, {p.sample_id for p in pairs})
    right = _pixels_by_id(context, context.dataset, context.manifest.split("train"), {p.train_id for p in pairs})
    both = np.stack([np.concatenate([left[p.sample_id], right[p.train_id]], axis=1) for p in pairs])
    size = context.shape[0]
    scale = max(1, CELL_PIXELS // size)
    return encode_png(grid(both, max(1, SHEET_PIXELS // (2 * size * scale)), scale, GAP))


def _pixels_by_id(
    context: EvaluationContext, store: Store, shards: Sequence[StoredShard], wanted: set[int]
) -> dict[int, Pixels]:
    """Pixels uint8 [H, W, C] of the images with the wanted ids. Reads only shards that contain such an id."""
    found: dict[int, Pixels] = {}
    for shard in shards:
        inside = sorted(i for i in wanted if 0 <= i - shard.first_id < shard.rows)
        if inside:
            table = read_usable(store, shard)
            table = table.filter(pc.is_in(table["sample_id"], pa.array(inside, pa.int64())))
            for ids, images in _blocks(table, context.shape):
                found |= dict(zip(ids.tolist(), images, strict=True))
    return found


def _blocks(table: pa.Table, shape: tuple[int, int, int]) -> Iterator[tuple[NDArray[np.int64], Pixels]]:
    """(ids [B], images [B, H, W, C]) of consecutive rows; B is small enough for memory at any image size.

    Raises DataError on an image of another shape.
    """
    step = max(1, min(BLOCK_ROWS, BLOCK_BYTES // int(np.prod(shape))))
    for first in range(0, len(table), step):
        block = table.slice(first, step)
        yield block["sample_id"].to_numpy(), decode_column(block, shape)
