"""A small classifier, trained on the dataset's training split, as feature extractor.

The network has three 3x3 convolutions and global average pooling. With labels it learns the classes; without labels it
learns by how many quarter turns an image was rotated (Gidaris et al. 2018). Its features are not comparable with those
of other networks, so scores have names such as FD-class-cnn, never FID. Training runs on one CPU thread and depends on
(data, settings, seed) alone.
"""

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.config.evaluation import EvaluateConfig
from pipeline.errors import DataError
from pipeline.metrics.features import ExtractorOutput, Pixels, in_batches, one_thread
from pipeline.metrics.serialization import pack, unpack

CLASS_CNN: Final = "class-cnn"
ROTATION_CNN: Final = "rotation-cnn"

# Part of the definition of the two extractors, like their layers: a change needs a new extractor name.
_TRAIN_BATCH: Final = 128
_LEARNING_RATE: Final = 3e-3
_WEIGHT_DECAY: Final = 1e-2
_FEATURE_BATCH: Final = 128

Labels = NDArray[np.integer[Any]]


@dataclass(frozen=True)
class EpochRecord:
    """Training result of one epoch: mean loss in nats and accuracy (0..1), both over the training batches."""

    epoch: int
    num_epochs: int
    loss: float
    accuracy: float


class _Network(nn.Module):
    """float32 [B, C, H, W] in [-1, 1] to features [B, 4 width] and logits [B, num_outputs]."""

    def __init__(self, channels: int, width: int, num_outputs: int) -> None:
        super().__init__()
        widths = [channels, width, 2 * width, 4 * width]
        pairs = list(pairwise(widths))
        self.convolutions = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1, bias=False) for a, b in pairs)
        self.norms = nn.ModuleList(nn.BatchNorm2d(b) for _, b in pairs)
        self.head = nn.Linear(widths[-1], num_outputs)

    def features(self, x: Tensor) -> Tensor:
        for level, (convolution, norm) in enumerate(zip(self.convolutions, self.norms, strict=True)):
            if level:
                x = nn.functional.max_pool2d(x, 2, ceil_mode=True)
            x = torch.relu(norm(convolution(x)))
        return x.mean(dim=(2, 3))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(x))
        return logits


def _build(channels: int, width: int, num_outputs: int, generator: torch.Generator) -> _Network:
    """A new network, built on `meta` first: torch's own initialisation would draw from the global RNG."""
    with torch.device("meta"):
        network = _Network(channels, width, num_outputs)
    network.to_empty(device="cpu")
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
        elif isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return network


def _scaled(images: Pixels) -> Tensor:
    """uint8 [B, H, W, C] to float32 [B, C, H, W] in [-1, 1], channels last: equal strides select equal kernels."""
    flat = torch.from_numpy(np.ascontiguousarray(images)).reshape(-1)  # an axis of one element may have any stride
    return flat.view(images.shape).permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)


def _turned(images: Pixels, quarter_turns: NDArray[np.int64]) -> Pixels:
    out = images.copy()
    for turns in range(1, 4):
        rows = quarter_turns == turns
        out[rows] = np.rot90(images[rows], turns, axes=(1, 2))
    return out


class Classifier:
    """A trained network as an extractor. Features float32 [B, 4 width], the input of the last linear layer."""

    def __init__(self, network: _Network, name: str, image_shape: tuple[int, int, int]) -> None:
        self._network = network.eval().requires_grad_(False)
        self.name = name
        self.image_shape = image_shape
        self.feature_dim: int = network.head.in_features
        self.num_outputs: int = network.head.out_features
        self.weights_sha256 = hashlib.sha256(self.to_bytes()).hexdigest()

    @property
    def preprocessing(self) -> str:
        return f"uint8 {'x'.join(map(str, self.image_shape))} / 127.5 - 1, no resize"

    def extract(self, images: Pixels) -> ExtractorOutput:
        """Output for uint8 [B, H, W, C]; the bits of a row do not depend on the rest of the batch.

        A rotation network gives no class probabilities. Raises DataError on another image shape.
        """
        if self.name == ROTATION_CNN:
            return ExtractorOutput(self.features(images), None)
        return ExtractorOutput(*self._in_batches(images, (self.feature_dim, self.num_outputs), self._both))

    def features(self, images: Pixels) -> NDArray[np.float32]:
        """uint8 [B, H, W, C] to float32 [B, feature_dim]. Raises DataError."""
        return self._in_batches(images, (self.feature_dim,), lambda x: (self._network.features(x),))[0]

    def probabilities(self, images: Pixels) -> NDArray[np.float32]:
        """uint8 [B, H, W, C] to class probabilities float32 [B, num_outputs]. Raises DataError."""
        return self._in_batches(images, (self.num_outputs,), lambda x: self._both(x)[1:])[0]

    def _both(self, x: Tensor) -> tuple[Tensor, ...]:
        features = self._network.features(x)
        return features, self._network.head(features).softmax(dim=1)

    def evaluate_accuracy(self, images: Pixels, labels: Labels | None) -> float:
        """Accuracy (0..1) on images [N, H, W, C]; a rotation network classifies all four turns of each image."""
        if self.name == ROTATION_CNN:
            turns = np.repeat(np.arange(4), len(images))
            images, labels = _turned(np.concatenate([images] * 4), turns), turns
        if labels is None or len(labels) != len(images) or len(images) == 0:
            raise DataError(f"the accuracy of {self.name} needs one label for each of {len(images)} images")
        return float((self.probabilities(images).argmax(axis=1) == labels).mean())

    def _in_batches(
        self, images: Pixels, widths: tuple[int, ...], function: Callable[[Tensor], tuple[Tensor, ...]]
    ) -> list[NDArray[np.float32]]:
        if images.dtype != np.uint8 or images.shape[1:] != self.image_shape:
            raise DataError(
                f"{self.name} reads uint8 images of shape {self.image_shape}, got {images.dtype} {images.shape[1:]}"
            )
        return in_batches(images, _FEATURE_BATCH, widths, lambda part: function(_scaled(part)))

    def to_bytes(self) -> bytes:
        """A safetensors file of the weights; equal networks give equal bytes, and `weights_sha256` is their hash."""
        arrays = {key: tensor.numpy() for key, tensor in self._network.state_dict().items()}
        return pack("classifier", {"name": self.name, "image_shape": self.image_shape}, arrays)

    @classmethod
    def from_bytes(cls, data: bytes) -> "Classifier":
        """Inverse of `to_bytes`. Raises DataError."""
        header, arrays = unpack("classifier", data)
        try:
            height, width, channels = header["image_shape"]
            num_outputs, feature_dim = arrays["head.weight"].shape
            with torch.device("meta"):
                network = _Network(channels, feature_dim // 4, num_outputs)
            weights = {key: torch.from_numpy(array.copy()) for key, array in arrays.items()}
            network.load_state_dict(weights, assign=True)
        except (KeyError, ValueError, RuntimeError) as error:
            raise DataError(f"the classifier's weights do not fit its layers: {error}") from error
        return cls(network, header["name"], (height, width, channels))


def train_classifier(
    images: Pixels,
    labels: Labels | None,
    config: EvaluateConfig,
    on_epoch: Callable[[EpochRecord], None] | None = None,
) -> Classifier:
    """Train on images uint8 [N, H, W, C] with labels int [N] in 0..K-1; labels None: train on rotations.

    AdamW with a cosine schedule. Deterministic in (images, labels, config). Raises DataError on unusable data.
    """
    _check_training_data(images, labels)
    generator = torch.Generator().manual_seed(config.seed)
    num_outputs = 4 if labels is None else int(labels.max()) + 1
    network = _build(images.shape[3], config.classifier_width, num_outputs, generator).train()
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=_WEIGHT_DECAY)
    with one_thread():
        for epoch in range(config.classifier_epochs):
            results = []
            for index, (batch, targets) in enumerate(_epoch_batches(images, labels, generator)):
                done = (epoch + index / _batches_an_epoch(len(images))) / config.classifier_epochs
                optimizer.param_groups[0]["lr"] = _LEARNING_RATE * (1 + math.cos(math.pi * done)) / 2
                results.append(_step(network, optimizer, batch, targets))
            loss, accuracy = np.mean(results, axis=0)
            if on_epoch:
                on_epoch(EpochRecord(epoch + 1, config.classifier_epochs, float(loss), float(accuracy)))
    name = ROTATION_CNN if labels is None else CLASS_CNN
    return Classifier(network, name, (images.shape[1], images.shape[2], images.shape[3]))


def _check_training_data(images: Pixels, labels: Labels | None) -> None:
    if images.dtype != np.uint8 or images.ndim != 4 or len(images) < 2:
        raise DataError(f"need at least 2 uint8 images [N, H, W, C], got {images.dtype} {list(images.shape)}")
    if labels is None:
        if images.shape[1] != images.shape[2]:
            raise DataError(f"rotations need square images, got {images.shape[1]}x{images.shape[2]}")
    elif len(labels) != len(images) or labels.min() < 0 or labels.max() < 1:
        raise DataError(f"need {len(images)} labels 0..K-1 of at least two classes (or none at all)")


def _batches_an_epoch(num_images: int) -> int:
    return max(1, num_images // _TRAIN_BATCH)


def _epoch_batches(
    images: Pixels, labels: Labels | None, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches (x, targets) of equal size in random order; an incomplete last batch is dropped."""
    order = torch.randperm(len(images), generator=generator).numpy()
    for index in range(_batches_an_epoch(len(images))):
        rows = order[index * _TRAIN_BATCH : (index + 1) * _TRAIN_BATCH]
        if labels is not None:
            yield _scaled(images[rows]), torch.from_numpy(labels[rows].astype(np.int64))
        else:
            turns = torch.randint(4, (len(rows),), generator=generator)
            yield _scaled(_turned(images[rows], turns.numpy())), turns


def _step(network: _Network, optimizer: torch.optim.Optimizer, batch: Tensor, targets: Tensor) -> tuple[float, float]:
    """One optimiser step; returns (mean loss, accuracy) before the step."""
    logits = network(batch)
    loss = nn.functional.cross_entropy(logits, targets)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return loss.item(), (logits.argmax(dim=1) == targets).float().mean().item()
