"""Contact sheets of an artefact's images: random, one row per class, best and worst by a score.

Reads a few shards and draws a few pictures, at any size of the samples folder.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.evaluation.stored_images import Pixels, decode_column, read_usable, usable_rows
from pipeline.generation.manifest import Marker, SampleManifest, SamplePlan
from pipeline.images.convert import grid
from pipeline.images.png import decode_pixels, encode_png
from pipeline.report.render.content import Picture
from pipeline.report.render.scales import figures
from pipeline.storage.store import Store

SHEET_PIXELS, SHEET_COLUMNS, SHEET_GAP = 640, 10, 2
MAX_SHARDS, MAX_BYTES = 8, 2**28  # limits on what is read for a pool
MAX_POOLED, MAX_POOLED_BYTES = 2048, 2**26  # images of a pool, and bytes of their pixels
MAX_CLASSES: Final = 20
RANKED: Final = 20
_WHITE: Final = 255


@dataclass(frozen=True)
class Pool:
    """Random usable samples from a few shards, in order of id: ids [N], pixels uint8 [N, H, W, C]."""

    ids: NDArray[np.int64]
    labels: NDArray[np.int64] | None
    pixels: Pixels
    origin: str  # size of the pool and its shards, for captions
    order: NDArray[np.int64]  # a random permutation of 0..N-1


def random_pool(store: Store, plan: SamplePlan, sealed: SampleManifest) -> Pool | None:
    """Deterministic for a plan and a store; None when there is no usable sample."""
    rng = np.random.default_rng(int(plan.fingerprint[:16], 16))
    wanted = max(SHEET_COLUMNS**2, min(MAX_POOLED, MAX_POOLED_BYTES // (plan.image_size**2 * plan.channels)))
    chosen: list[Marker] = []
    rows = size = 0
    for index in rng.permutation(len(sealed.shards)):
        marker = sealed.shards[index]
        if chosen and (len(chosen) == MAX_SHARDS or size + marker.bytes > MAX_BYTES or rows >= wanted):
            break
        chosen.append(marker)
        rows, size = rows + usable_rows(marker), size + marker.bytes
    columns = ("sample_id", "image", "label")
    table = pa.concat_tables([read_usable(store, m, columns) for m in sorted(chosen, key=lambda m: m.shard)])
    table = table.take(np.sort(rng.permutation(len(table))[:wanted]))
    if not len(table):
        return None
    pixels = decode_column(table, plan.shape)
    labels = None if plan.num_classes is None else table["label"].to_numpy().astype(np.int64)
    origin = f"{len(table):,} random ones in {len(chosen):,} of {len(sealed.shards):,} shards"
    return Pool(table["sample_id"].to_numpy(), labels, pixels, origin, rng.permutation(len(table)))


def first_images(images: Iterable[bytes], image_size: int, what: str) -> Iterator[Picture]:
    """One square sheet with the first images (PNG); nothing without images."""
    columns = _columns(image_size)
    pixels = [decode_pixels(png, image_size**2) for _, png in zip(range(columns**2), images, strict=False)]
    if pixels:
        count = f"{len(pixels)} {what}"
        yield _sheet(f"The first {count}, uncurated.", f"Grid of {count}", np.stack(pixels))


def random_sheet(pool: Pool, name: str) -> Picture:
    """Random samples from the pool, in order of id."""
    chosen = np.sort(pool.order[: _columns(pool.pixels.shape[1]) ** 2])
    caption = f"{len(chosen)} uncurated samples of {name}, from {pool.origin}."
    return _sheet(caption, f"Grid of {len(chosen)} random samples of {name}", pool.pixels[chosen])


def by_class(pool: Pool, name: str, classes: Sequence[str] | None = None) -> Iterator[Picture]:
    """One row per class, from the pool; nothing when samples have no labels."""
    if pool.labels is None:
        return
    labels, columns = np.unique(pool.labels)[:MAX_CLASSES], _columns(pool.pixels.shape[1])
    rows = []
    for label in labels:
        chosen = np.sort(pool.order[pool.labels[pool.order] == label][:columns])
        blank = np.full((columns - len(chosen), *pool.pixels.shape[1:]), _WHITE, np.uint8)
        rows += [pool.pixels[chosen], blank]
    named = [str(label) if classes is None or label >= len(classes) else classes[label] for label in labels]
    caption = f"Samples of {name} by class, one per row: {', '.join(named)}. Uncurated, from {pool.origin}."
    yield _sheet(caption, f"Samples of {name}, one row for each of {len(labels)} classes", np.concatenate(rows))


def best_and_worst(pool: Pool, scores: NDArray[np.float64], what: str, name: str) -> Iterator[Picture]:
    """Two sheets: the RANKED samples (at most half of the pool) with the lowest and the highest score.

    scores: float64 [N]; what: name of the score.
    """
    count, order = min(RANKED, len(scores) // 2), np.argsort(scores, kind="stable")
    if not count:
        return
    for side, chosen in (("lowest", order[:count]), ("highest", order[::-1][:count])):
        low, high = sorted(float(scores[index]) for index in (chosen[0], chosen[-1]))
        caption = f"{side.capitalize()} {what} of {name}: {figures(low)} to {figures(high)}, from {pool.origin}."
        alt = f"{count} samples of {name} with the {side} {what}"
        yield _sheet(caption, alt, pool.pixels[chosen])


def within(png: bytes, max_side: int) -> bytes:
    """The picture, reduced by an integer factor when a side is longer than `max_side` pixels."""
    pixels = decode_pixels(png, 2**28)
    factor = -(-max(pixels.shape[:2]) // max_side)
    return png if factor == 1 else encode_png(_reduced(pixels, factor))


def _columns(image_size: int) -> int:
    return min(SHEET_COLUMNS, max(2, 2 * SHEET_PIXELS // image_size))


def _sheet(caption: str, alt: str, pixels: Pixels) -> Picture:
    """pixels uint8 [N, H, W, C] in rows about SHEET_PIXELS wide, enlarged or reduced by an integer factor."""
    size = pixels.shape[1]
    columns = _columns(size)
    factor = -(-size * columns // (2 * SHEET_PIXELS))
    if factor > 1:
        pixels = np.stack([_reduced(image, factor) for image in pixels])
    sheet = grid(pixels, columns, max(1, SHEET_PIXELS // (columns * size)), SHEET_GAP)
    return Picture(caption, alt, encode_png(sheet))


def _reduced(pixels: Pixels, factor: int) -> Pixels:
    """uint8 [H, W, C] with the mean of each factor x factor block; drops incomplete blocks at the edges."""
    height, width = (side // factor for side in pixels.shape[:2])
    blocks = pixels[: height * factor, : width * factor].reshape(height, factor, width, factor, -1)
    means: NDArray[np.float64] = blocks.mean(axis=(1, 3))
    return means.round().astype(np.uint8)
