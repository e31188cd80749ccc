"""Quality of a small network's samples: FD-class-cnn against the training images, beside its floor."""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.config.evaluation import EvaluateConfig
from pipeline.config.root import Config
from pipeline.diffusion.noise import SampleNoise
from pipeline.diffusion.sampler import make_sampler
from pipeline.diffusion.timestep_grid import Sampler
from pipeline.images.convert import to_uint8
from pipeline.images.png import decode_pixels
from pipeline.ingest.dataset import read_dataset
from pipeline.ingest.manifest import ShardEntry
from pipeline.metrics.classifier import train_classifier
from pipeline.metrics.features import fingerprint_of
from pipeline.metrics.frechet import frechet
from pipeline.metrics.moments import Moments
from pipeline.models.unet import UNet
from pipeline.storage.files import read_parquet
from pipeline.storage.store import Store

Pixels = NDArray[np.uint8]
BATCH = 64


def split_of(dataset: Store, name: str, most: int) -> tuple[Pixels, NDArray[np.int64]]:
    """The first images of a split (splits are in random order): uint8 [N, H, W, C], labels int64 [N]."""
    manifest = read_dataset(dataset)
    images: list[Pixels] = []
    labels: list[int] = []
    for shard in manifest.split(name):  # type: ignore[arg-type]
        if len(images) >= most:
            break
        images += _pixels(dataset, shard, manifest.image_size, labels)
    return np.stack(images[:most]), np.array(labels[:most], np.int64)


def _pixels(dataset: Store, shard: ShardEntry, size: int, labels: list[int]) -> list[Pixels]:
    table = read_parquet(dataset, shard, ["image", "label"])
    labels += table["label"].to_pylist()
    return [decode_pixels(image["bytes"], size * size) for image in table["image"].to_pylist()]


@dataclass(frozen=True)
class Judge:
    """Features of one classifier, and moments of its training images."""

    extractor: Any
    reference: Moments

    @classmethod
    def of(cls, images: Pixels, labels: NDArray[np.int64], epochs: int) -> Self:
        extractor = train_classifier(images, labels, EvaluateConfig(classifier_epochs=epochs))
        empty = Moments.empty(fingerprint_of(extractor, "train"))
        return cls(extractor, empty.update(extractor.extract(images).features))

    def fd(self, images: Pixels) -> float:
        """FD-class-cnn of uint8 [N, H, W, C] against the training images."""
        empty = Moments.empty(self.reference.fingerprint)
        return float(frechet(empty.update(self.extractor.extract(images).features), self.reference).value)


def drawn(unet: UNet, config: Config, shape: tuple[int, int, int], how: Sampler, ids: range) -> Pixels:
    """Samples uint8 [N, H, W, C] of these ids, with the same noise for every network and sampler.

    shape: (C, H, W).
    """
    made = []
    unet.eval()
    with torch.inference_mode():
        for start in range(ids.start, ids.stop, BATCH):
            part = torch.arange(start, min(start + BATCH, ids.stop))
            *_, last = how.run(lambda x, t: unet(x, t[:1]), SampleNoise(0, part, shape))
            made.append(to_uint8(last.x_t))
    return np.concatenate(made)


def sampler_of(config: Config, name: str, steps: int) -> Sampler:
    """A sampler with the default settings of `generate`."""
    return make_sampler(config.diffusion, name, steps, 0.0, None, True)  # type: ignore[arg-type]
