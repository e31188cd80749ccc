"""Images of an artefact on sheets of bounded size: at random, a row a class, the best and the worst by a figure.

However large a job is, a few shards of it are read and a few pictures come of it.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.generation.manifest import Marker, SampleManifest, SamplePlan
from pipeline.images.convert import grid
from pipeline.images.png import decode_batch, decode_pixels, encode_png
from pipeline.report.render.content import Picture
from pipeline.report.render.scales import figures
from pipeline.schema import STATUS_OK
from pipeline.storage.sample_shards import read_samples
from pipeline.storage.store import Store

__all__ = ["Pool", "best_and_worst", "by_class", "first_images", "pngs", "random_pool", "random_sheet", "within"]

Pixels = NDArray[np.uint8]
SHEET_PIXELS, SHEET_COLUMNS, SHEET_GAP = 640, 10, 2
MOST_SHARDS, MOST_BYTES = 8, 2**28  # read for a pool
MOST_POOLED, MOST_POOLED_BYTES = 2048, 2**26  # images in it, and their pixels
MOST_CLASSES: Final = 20
RANKED: Final = 20
_WHITE: Final = 255


@dataclass(frozen=True)
class Pool:
    """Usable samples, drawn at random from a few shards, in order of id: ids [N], pixels uint8 [N, H, W, C]."""

    ids: NDArray[np.int64]
    labels: NDArray[np.int64] | None
    pixels: Pixels
    words: str  # which they are
    order: NDArray[np.int64]  # a random permutation of 0..N-1


def random_pool(store: Store, plan: SamplePlan, sealed: SampleManifest) -> Pool | None:
    """A function of the plan and the store; None when no sample could be made."""
    rng = np.random.default_rng(int(plan.fingerprint[:16], 16))
    wanted = max(SHEET_COLUMNS**2, min(MOST_POOLED, MOST_POOLED_BYTES // (plan.image_size**2 * plan.channels)))
    chosen: list[Marker] = []
    rows = size = 0
    for index in rng.permutation(len(sealed.shards)):
        marker = sealed.shards[index]
        if chosen and (len(chosen) == MOST_SHARDS or size + marker.bytes > MOST_BYTES or rows >= wanted):
            break
        chosen.append(marker)
        rows, size = rows + marker.rows - marker.failed, size + marker.bytes
    columns = ["sample_id", "image", "label", "status"]
    table = pa.concat_tables([read_samples(store, m, columns) for m in sorted(chosen, key=lambda m: m.shard)])
    table = table.filter(pc.equal(table["status"], STATUS_OK))
    table = table.take(np.sort(rng.permutation(len(table))[:wanted]))
    if not len(table):
        return None
    pixels = decode_batch(pngs(table), plan.shape)
    labels = None if plan.num_classes is None else table["label"].to_numpy().astype(np.int64)
    words = f"{len(table):,} at random from {len(chosen):,} of {len(sealed.shards):,} shards"
    return Pool(table["sample_id"].to_numpy(), labels, pixels, words, rng.permutation(len(table)))


def pngs(table: pa.Table) -> Iterator[bytes]:
    """Of column image, in order."""
    return (value.as_py() for value in pc.struct_field(table["image"], "bytes"))


def first_images(images: Iterable[bytes], image_size: int, what: str) -> Iterator[Picture]:
    """The first images (PNG) on one square sheet; nothing without images."""
    columns = _columns(image_size)
    pixels = [decode_pixels(png, image_size**2) for _, png in zip(range(columns**2), images, strict=False)]
    if pixels:
        count = f"{len(pixels)} {what}"
        yield _sheet(f"The first {count}, not selected.", f"Grid of {count}", np.stack(pixels))


def random_sheet(pool: Pool, name: str) -> Picture:
    """Samples drawn from the pool, in order of id."""
    chosen = np.sort(pool.order[: _columns(pool.pixels.shape[1]) ** 2])
    count = f"{len(chosen)} samples of {name}"
    return _sheet(f"{count}, not selected: of {pool.words}.", f"Grid of {count} at random", pool.pixels[chosen])


def by_class(pool: Pool, name: str, classes: Sequence[str] | None = None) -> Iterator[Picture]:
    """A row a label, drawn from the pool; nothing when samples have no labels."""
    if pool.labels is None:
        return
    labels, columns = np.unique(pool.labels)[:MOST_CLASSES], _columns(pool.pixels.shape[1])
    rows = []
    for label in labels:
        chosen = np.sort(pool.order[pool.labels[pool.order] == label][:columns])
        blank = np.full((columns - len(chosen), *pool.pixels.shape[1:]), _WHITE, np.uint8)
        rows += [pool.pixels[chosen], blank]
    named = [str(label) if classes is None or label >= len(classes) else classes[label] for label in labels]
    caption = f"A row a class of {name}: {', '.join(named)}. Not selected, {pool.words}."
    yield _sheet(caption, f"Samples of {name}, a row for each of {len(labels)} classes", np.concatenate(rows))


def best_and_worst(pool: Pool, figure: NDArray[np.float64], what: str, name: str) -> Iterator[Picture]:
    """The RANKED samples of the lowest and of the highest figure float64 [N], which `what` names; each half at most."""
    count, order = min(RANKED, len(figure) // 2), np.argsort(figure, kind="stable")
    if not count:
        return
    for side, chosen in (("lowest", order[:count]), ("highest", order[::-1][:count])):
        low, high = sorted(float(figure[index]) for index in (chosen[0], chosen[-1]))
        caption = f"{side.capitalize()} {what} of {name}: {figures(low)} to {figures(high)}, of {pool.words}."
        alt = f"{count} samples of {name} with the {side} {what}"
        yield _sheet(caption, alt, pool.pixels[chosen])


def within(png: bytes, most_side: int) -> bytes:
    """The picture, reduced by a whole number when a side is longer than `most_side` pixels."""
    pixels = decode_pixels(png, 2**28)
    factor = -(-max(pixels.shape[:2]) // most_side)
    return png if factor == 1 else encode_png(_reduced(pixels, factor))


def _columns(image_size: int) -> int:
    return min(SHEET_COLUMNS, max(2, 2 * SHEET_PIXELS // image_size))


def _sheet(caption: str, alt: str, pixels: Pixels) -> Picture:
    """pixels uint8 [N, H, W, C] in rows of about SHEET_PIXELS: enlarged by a whole number, or reduced by one."""
    size = pixels.shape[1]
    columns = _columns(size)
    factor = -(-size * columns // (2 * SHEET_PIXELS))
    if factor > 1:
        pixels = np.stack([_reduced(image, factor) for image in pixels])
    sheet = grid(pixels, columns, max(1, SHEET_PIXELS // (columns * size)), SHEET_GAP)
    return Picture(caption, alt, encode_png(sheet))


def _reduced(pixels: Pixels, factor: int) -> Pixels:
    """uint8 [H, W, C], each output pixel the mean of factor x factor of them; what is left over at the edges goes."""
    height, width = (side // factor for side in pixels.shape[:2])
    blocks = pixels[: height * factor, : width * factor].reshape(height, factor, width, factor, -1)
    means: NDArray[np.float64] = blocks.mean(axis=(1, 3))
    return means.round().astype(np.uint8)
