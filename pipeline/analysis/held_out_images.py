"""The first held-out images of a dataset, checked against the model under analysis."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.errors import DataError
from pipeline.evaluation.stored_images import decode_column, first_rows, read_usable
from pipeline.generation.manifest import SamplePlan
from pipeline.ingest.dataset import read_dataset
from pipeline.storage.store import Store


@dataclass(frozen=True)
class HeldOutImages:
    """pixels uint8 [N, H, W, C], ids int64 [N], and labels int64 [N] of a class-conditional model, else None."""

    ids: NDArray[np.int64]
    labels: NDArray[np.int64] | None
    pixels: NDArray[np.uint8]


def read_held_out_images(dataset: Store, plan: SamplePlan, count: int) -> HeldOutImages:
    """The first `count` images. Raises DataError for too few, or for size, channels or classes unlike the model's."""
    manifest = read_dataset(dataset)
    kind = (manifest.image_size, manifest.channels, len(manifest.classes or ()))
    if kind[:2] != (plan.image_size, plan.channels) or kind[2] < (plan.num_classes or 0):
        raise DataError(
            f"{dataset.uri} does not match the model in image size, channels or classes: give its training dataset"
        )
    if (available := manifest.rows("heldout")) < count:
        raise DataError(f"explore.num_images is {count:,}, but {dataset.uri} has {available:,} held-out images")
    columns = ["sample_id", "image", "label"]
    shards = first_rows(manifest.split("heldout"), count)
    table = pa.concat_tables(read_usable(dataset, shard, columns, count=n) for _, shard, n in shards)
    labels = table["label"].to_numpy().astype(np.int64) if plan.num_classes is not None else None
    return HeldOutImages(table["sample_id"].to_numpy(), labels, decode_column(table, plan.shape))
