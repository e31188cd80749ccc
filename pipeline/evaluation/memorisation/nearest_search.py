"""Nearest training images of samples and held-out images: how the work is cut, and the tasks that do it.

Queries are kept in groups that fit in memory: pixels uint8 and features float32 of each. A search task streams its
training shards in blocks past one group and keeps the k best a query. Neither cut can change a bit of the result.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.config.base import FileEntry
from pipeline.errors import DataError
from pipeline.evaluation.context import EvaluationContext
from pipeline.evaluation.memorisation.results import Pair
from pipeline.evaluation.results import extractor_folder, read_extractor
from pipeline.generation.manifest import Marker
from pipeline.images.convert import grid
from pipeline.images.png import decode_batch, encode_png
from pipeline.ingest.manifest import ShardEntry
from pipeline.metrics.features import Extractor
from pipeline.metrics.memorisation import Space
from pipeline.metrics.nearest import Nearest, add_rows
from pipeline.schema import STATUS_OK
from pipeline.storage.files import read_parquet
from pipeline.storage.sample_shards import read_samples
from pipeline.storage.store import Store

__all__ = [
    "Found",
    "Queries",
    "Search",
    "Slice",
    "chunks_of",
    "draw_sheet",
    "groups_of",
    "load_queries",
    "search_chunk",
]

Pixels = NDArray[np.uint8]
Side = Literal["samples", "heldout"]

GROUP_ROWS, GROUP_BYTES = 2**15, 2**28
BLOCK_ROWS, BLOCK_BYTES = 2**11, 2**25
CHUNK_ROWS, CHUNKS_A_WORKER = 50_000, 4
CELL_PIXELS, SHEET_PIXELS, GAP = 64, 768, 8


@dataclass(frozen=True)
class Search:
    """What every task needs to know; k: neighbours kept. Weights of another hash are not used."""

    context: EvaluationContext
    weights_sha256: str
    k: int
    flips: bool


@dataclass(frozen=True)
class Slice:
    """Usable rows first..first+count-1 of a shard of samples or held-out images."""

    side: Side
    shard: FileEntry
    first: int
    count: int


@dataclass(frozen=True, eq=False)
class Queries:
    """pixels uint8 [Q, H W C], features float32 [Q, D]."""

    pixels: Pixels
    features: NDArray[np.float32]


Found = dict[Space, Nearest]


def groups_of(
    context: EvaluationContext, samples: int, heldout: int, group_rows: int = GROUP_ROWS, group_bytes: int = GROUP_BYTES
) -> list[list[Slice]]:
    """The first `samples` usable samples, then the first `heldout` held-out images, in groups that fit in memory."""
    limit = max(1, min(group_rows, group_bytes // int(np.prod(context.shape))))
    usable = [(marker, marker.rows - marker.failed) for marker in context.sealed.shards]
    real = [(shard, shard.rows) for shard in context.manifest.split("heldout")]
    groups: list[list[Slice]] = [[]]
    room = limit
    for piece in (*_slices("samples", usable, samples), *_slices("heldout", real, heldout)):
        first, stop = piece.first, piece.first + piece.count
        while first < stop:
            if room == 0:
                groups.append([])
                room = limit
            count = min(room, stop - first)
            groups[-1].append(Slice(piece.side, piece.shard, first, count))
            first, room = first + count, room - count
    return groups


def _slices(side: Side, shards: Sequence[tuple[ShardEntry | Marker, int]], n: int) -> Iterator[Slice]:
    for shard, rows in shards:
        if take := min(rows, n):
            yield Slice(side, shard.file, 0, take)
        n -= take


def chunks_of(shards: Sequence[ShardEntry], workers: int, chunk_rows: int = CHUNK_ROWS) -> list[list[ShardEntry]]:
    """Consecutive training shards in chunks, one a task: several a worker, none much above `chunk_rows` images."""
    rows = sum(shard.rows for shard in shards)
    target = min(chunk_rows, -(-rows // (CHUNKS_A_WORKER * workers)))
    chunks: list[list[ShardEntry]] = []
    filled = target
    for shard in shards:
        if filled >= target:
            chunks.append([])
            filled = 0
        chunks[-1].append(shard)
        filled += shard.rows
    return chunks


# --- tasks ------------------------------------------------------------------------------------------------------------


def load_queries(search: Search, group: Sequence[Slice]) -> tuple[NDArray[np.int64], Queries]:
    """A task: ids int64 [Q] of one group, and what is searched for."""
    context, extractor = search.context, _extractor(search)
    rows = sum(piece.count for piece in group)
    ids, pixels = np.empty(rows, np.int64), np.empty((rows, int(np.prod(context.shape))), np.uint8)
    features = np.empty((rows, extractor.feature_dim), np.float32)
    start = 0
    for piece in group:
        for block_ids, images in _blocks(_usable(context, piece), context.shape):
            here = slice(start, start + len(images))
            ids[here], pixels[here] = block_ids, images.reshape(len(images), -1)
            features[here] = extractor.answer(images).features
            start += len(images)
    return ids, Queries(pixels, features)


def search_chunk(search: Search, queries: Queries, chunk: Sequence[ShardEntry]) -> tuple[Found, int]:
    """A task: the nearest images of some training shards, by space; and how many images these shards have."""
    context, extractor = search.context, _extractor(search)
    pixel = feature = Nearest.none(len(queries.pixels), search.k)
    seen = 0
    for shard in chunk:
        table = read_parquet(context.dataset, shard, ["sample_id", "image"])
        for ids, images in _blocks(table, context.shape):
            for shown in (images, np.ascontiguousarray(images[:, :, ::-1])) if search.flips else (images,):
                pixel = add_rows(pixel, queries.pixels, shown.reshape(len(shown), -1), ids)
                feature = add_rows(feature, queries.features, extractor.answer(shown).features, ids)
            seen += len(ids)
    return {"pixel": pixel, "feature": feature}, seen


def draw_sheet(search: Search, pairs: Sequence[Pair]) -> bytes:
    """A task: the pairs as PNG, row by row, sample left and training image (as it is stored) right."""
    context = search.context
    samples = {p.sample_id for p in pairs}
    in_samples = {m: {i for i in samples if m.first_id <= i <= m.last_id} for m in context.sealed.shards}
    train = {p.train_id for p in pairs}
    in_train = {s: {i for i in train if 0 <= i - s.first_id < s.rows} for s in context.manifest.split("train")}
    left = _images(context, {m: ids for m, ids in in_samples.items() if ids}, context.samples)
    right = _images(context, {s: ids for s, ids in in_train.items() if ids}, context.dataset)
    both = np.stack([np.concatenate([left[p.sample_id], right[p.train_id]], axis=1) for p in pairs])
    size = context.shape[0]
    scale = max(1, CELL_PIXELS // size)
    return encode_png(grid(both, max(1, SHEET_PIXELS // (2 * size * scale)), scale, GAP))


def _images(context: EvaluationContext, wanted: dict[Any, set[int]], store: Store) -> dict[int, Pixels]:
    """Pixels by id, of the ids that are wanted of each shard."""
    found: dict[int, Pixels] = {}
    for shard, ids in wanted.items():
        read = read_samples if isinstance(shard, Marker) else read_parquet
        table = read(store, shard, ["sample_id", "image"])
        chosen = table.filter(pc.is_in(table["sample_id"], pa.array(sorted(ids), pa.int64())))
        for block_ids, images in _blocks(chosen, context.shape):
            found |= dict(zip(block_ids.tolist(), images, strict=True))
    return found


@lru_cache(maxsize=1)
def _loaded(dataset: Store, extractor_id: str, weights_sha256: str) -> Extractor:
    """Once a process."""
    found = read_extractor(dataset, extractor_id)
    if found is None or found[0].weights_sha256 != weights_sha256:
        raise DataError(f"{dataset.location(extractor_folder(extractor_id))} changed during the search")
    return found[1]


def _extractor(search: Search) -> Extractor:
    return _loaded(search.context.dataset, search.context.extractor_id, search.weights_sha256)


def _usable(context: EvaluationContext, piece: Slice) -> pa.Table:
    """sample_id and image of a slice's rows."""
    if piece.side == "samples":
        store, table = context.samples, read_samples(context.samples, piece.shard, ["sample_id", "image", "status"])
        table = table.filter(pc.equal(table["status"], STATUS_OK))
    else:
        store, table = context.dataset, read_parquet(context.dataset, piece.shard, ["sample_id", "image"])
    table = table.slice(piece.first, piece.count)
    if len(table) != piece.count:
        raise DataError(f"{store.location(piece.shard.key)} has fewer usable rows than its manifest says: verify it")
    return table


def _blocks(table: pa.Table, shape: tuple[int, int, int]) -> Iterator[tuple[NDArray[np.int64], Pixels]]:
    """(ids [B], images [B, H, W, C]) of consecutive rows, few enough to fit in memory whatever the shard holds.

    Raises DataError on an image of another shape.
    """
    ids, encoded = table["sample_id"].to_numpy(), pc.struct_field(table["image"], "bytes")
    step = max(1, min(BLOCK_ROWS, BLOCK_BYTES // int(np.prod(shape))))
    for first in range(0, len(ids), step):
        yield ids[first : first + step], decode_batch(encoded[first : first + step].to_pylist(), shape)
