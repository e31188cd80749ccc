"""The analyses of the paper that need images of the dataset: rate and distortion, quality of previews."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from pipeline.analysis.figures import Explorer
from pipeline.analysis.rate_distortion import Coder
from pipeline.config.generation import ExploreConfig
from pipeline.errors import DataError
from pipeline.evaluation.image_ranking import features_of, stored_extractors, training_moments
from pipeline.evaluation.results import read_extractor
from pipeline.evaluation.stored_images import decode_column
from pipeline.generation.manifest import SamplePlan
from pipeline.ingest.dataset import read_dataset
from pipeline.metrics.features import Extractor, fingerprint_of
from pipeline.metrics.frechet import frechet
from pipeline.metrics.moments import Moments
from pipeline.models.unet import UNet
from pipeline.progress import Progress
from pipeline.schema import PREVIEWS, RATE_DISTORTION
from pipeline.storage.files import read_parquet
from pipeline.storage.store import Store

__all__ = ["Analysis", "Heldout", "held_out", "previews_scored", "rate_and_distortion"]

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Analysis:
    """cells: the pictures of the sheet, uint8 [rows * columns, H, W, C]. chosen: what its columns stand for."""

    table: pa.Table
    cells: Pixels
    columns: int
    chosen: tuple[int, ...]
    feature_dim: int = 0  # of the extractor, where there is one


@dataclass(frozen=True)
class Heldout:
    """The first held-out images: uint8 [N, H, W, C], with their ids and, where there are classes, labels, int64 [N]."""

    ids: NDArray[np.int64]
    labels: NDArray[np.int64] | None
    pixels: Pixels


def held_out(dataset: Store, plan: SamplePlan, count: int) -> Heldout:
    """Raises DataError when there are not so many, or they are not of the model's kind."""
    manifest = read_dataset(dataset)
    kind = (manifest.image_size, manifest.channels, len(manifest.classes or ()))
    if kind[:2] != (plan.image_size, plan.channels) or kind[2] < (plan.num_classes or 0):
        raise DataError(
            f"{dataset.uri} has other images or fewer classes than the model: give the one that it was trained on"
        )
    if manifest.rows("heldout") < count:
        raise DataError(
            f"explore.num_images asks for {count:,}, {dataset.uri} has {manifest.rows('heldout'):,} held-out images"
        )
    tables, rows = [], 0
    for shard in manifest.split("heldout"):
        if rows < count:
            tables.append(read_parquet(dataset, shard, ["sample_id", "image", "label"]))
            rows += shard.rows
    table = pa.concat_tables(tables).slice(0, count)
    labels = table["label"].to_numpy().astype(np.int64) if plan.num_classes is not None else None
    pixels = decode_column(table, plan.shape)
    return Heldout(table["sample_id"].to_numpy(), labels, pixels)


def rate_and_distortion(
    unet: UNet, plan: SamplePlan, dataset: Store, settings: ExploreConfig, batch: int, device: torch.device
) -> Analysis:
    """Of the first `num_images` held-out images. Raises DataError."""
    images, coder = held_out(dataset, plan, settings.num_images), Coder(unet, plan, device)
    progress = Progress("coding", len(images.ids), "img")
    coded = coder.code(images.pixels, images.ids, images.labels, batch, progress.update)
    progress.close()
    T = coder.num_timesteps
    columns = {
        "t": np.arange(T - 1, -1, -1),
        "reverse_time": np.arange(1, T + 1),
        **coded._asdict(),
        "images": [len(images.ids)] * T,
    }
    table = pa.table({name: columns[name] for name in RATE_DISTORTION.names}, schema=RATE_DISTORTION)
    chosen = sorted({1, *(round((i + 1) * T / settings.columns) for i in range(settings.columns))} - {0})
    some = slice(0, settings.rows)
    labels = None if images.labels is None else images.labels[some]
    guesses = coder.guesses(images.pixels[some], images.ids[some], labels, [T - time for time in chosen])
    sheet = [*guesses, images.pixels[some]]
    return Analysis(table, _by_row(sheet), len(sheet), tuple(chosen))


def previews_scored(
    explorer: Explorer, dataset: Store, plan: SamplePlan, settings: ExploreConfig, batch: int
) -> Analysis:
    """Frechet distances to the training split of what the first `num_images` samples would be after some steps.

    Raises DataError without an extractor, which `ddpm evaluate` makes.
    """
    extractor, reference = _judge(dataset)
    images = held_out(dataset, plan, settings.num_images)
    nothing = Moments.empty(fingerprint_of(extractor, reference.fingerprint.reference))
    scored: dict[tuple[int, int], Moments] = {}
    first: list[Pixels] = []
    progress = Progress("previews", settings.num_images, "img")
    for start in range(0, settings.num_images, batch):
        ids = range(start, min(start + batch, settings.num_images))
        pictures = explorer.progressive(ids, settings.columns)
        columns = 1 + max(picture.column for picture in pictures)
        by_column = [np.stack([p.pixels for p in pictures if p.column == column]) for column in range(columns)]
        for column, pixels in enumerate(by_column):
            key = column, pictures[column].t
            scored[key] = scored.get(key, nothing).update(features_of(extractor, pixels))
        first = first or [pixels[: settings.rows] for pixels in by_column]
        progress.update(ids.stop)
    progress.close()
    floor = frechet(nothing.update(features_of(extractor, images.pixels)), reference)
    shared = {"metric": floor.name, "floor": floor.value, "n": settings.num_images, "reference_n": reference.n}
    shared |= {"extractor": extractor.name, "weights_sha256": extractor.weights_sha256}
    steps = explorer.steps_done(settings.columns)
    rows = [
        {"step": steps[column], "t": t, "fd": frechet(moments, reference).value, **shared}
        for (column, t), moments in sorted(scored.items())
    ]
    return Analysis(
        pa.Table.from_pylist(rows, schema=PREVIEWS), _by_row(first), len(first), tuple(steps), extractor.feature_dim
    )


def _judge(dataset: Store) -> tuple[Extractor, Moments]:
    """An extractor of the dataset's newest generation, and the moments of its training split."""
    digest = read_dataset(dataset).digest()
    record = next((r for r in stored_extractors(dataset) if r.made_from.get("dataset_digest") == digest), None)
    found = None if record is None else read_extractor(dataset, record.id)
    if record is None or found is None:
        raise DataError(f"{dataset.uri} has no extractor for its newest generation: ddpm evaluate makes one")
    return found[1], training_moments(dataset, record)


def _by_row(columns: Sequence[Pixels]) -> Pixels:
    """Columns of images [rows, H, W, C] -> [rows * columns, H, W, C], row by row."""
    cells = np.stack(columns, axis=1)
    return cells.reshape(-1, *cells.shape[2:])
