"""The interface of feature extractors, and helpers that make their results reproducible bit for bit."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.metrics.protocol import Fingerprint

Pixels = NDArray[np.uint8]


class ExtractorOutput(NamedTuple):
    """features float32 [B, feature_dim]; class probabilities float32 [B, num_classes], None without classes."""

    features: NDArray[np.float32]
    probabilities: NDArray[np.float32] | None


class Extractor(Protocol):
    """A network that turns uint8 images into features, identified by name, weights hash and preprocessing."""

    @property
    def name(self) -> str: ...
    @property
    def weights_sha256(self) -> str: ...
    @property
    def preprocessing(self) -> str: ...
    @property
    def feature_dim(self) -> int: ...

    def extract(self, images: Pixels) -> ExtractorOutput:
        """Output for uint8 [B, H, W, C]; a row depends on its own image only, bit for bit. Raises DataError."""
        ...


def fingerprint_of(extractor: Extractor, reference: str) -> Fingerprint:
    """The fingerprint of features of `extractor`, measured against the real images `reference`."""
    return Fingerprint(
        extractor.name, extractor.weights_sha256, extractor.preprocessing, extractor.feature_dim, reference
    )


@contextmanager
def one_thread() -> Iterator[None]:
    """Run torch on one thread: the order of additions, and so the bits, depend on the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def in_batches(
    images: Pixels, batch: int, widths: tuple[int, ...], function: Callable[[Pixels], tuple[Tensor, ...]]
) -> list[NDArray[np.float32]]:
    """float32 [N, width] for every width; `function` gets uint8 [batch, H, W, C], the last batch padded with zeros.

    Kernels may round differently for other batch shapes, so every call has the same shape.
    """
    out = [np.empty((len(images), width), np.float32) for width in widths]
    with one_thread(), torch.inference_mode():
        for start in range(0, len(images), batch):
            part = images[start : start + batch]
            rows = len(part)
            if rows < batch:
                part = np.concatenate([part, np.zeros((batch - rows, *images.shape[1:]), np.uint8)])
            for whole, values in zip(out, function(part), strict=True):
                whole[start : start + rows] = values.numpy()[:rows]
    return out
