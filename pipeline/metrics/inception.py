"""The Inception-v3 network of the Frechet Inception Distance, as feature extractor.

The network is Szegedy et al. 2015 as TensorFlow published it on 2015-12-05, with the layer names of its PyTorch ports
(`pt_inception-2015-12-05-6726825d.pth`). It differs from torchvision's: average pooling excludes the padding, the last
block (Mixed_7c) has max pooling instead of average pooling, and there are 1008 outputs.

Preprocessing is that of TensorFlow 1: bilinear resize to 299 x 299 without antialiasing, with pixel positions at
corners, not centres (source = destination * in / out), then (u - 128) / 128. Another resize shifts an FID by points
(Parmar et al. 2022). Features: the mean over the last 8 x 8 cells, 2048 values. Class probabilities for the Inception
Score: softmax of the 1008 outputs without bias (Salimans et al. 2016).
"""

import hashlib
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.errors import DataError
from pipeline.metrics.features import ExtractorOutput, Pixels, in_batches
from pipeline.metrics.pretrained_weights import load_weights, read_state_dict

INCEPTION: Final = "inception-v3"
_SIDE: Final = 299
_FEATURES: Final = 2048
_CLASSES: Final = 1008
_BATCH: Final = 4

Size = int | tuple[int, int]
Path = tuple[str | tuple[str, str], ...]


class _Conv(nn.Module):
    """Convolution without bias, batch norm, ReLU."""

    def __init__(self, a: int, b: int, size: Size, stride: int = 1, padding: Size = 0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(a, b, size, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(b, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.bn(self.conv(x)), inplace=True)


def _wide(a: int, b: int, n: int) -> _Conv:
    return _Conv(a, b, (1, n), padding=(0, n // 2))


def _tall(a: int, b: int, n: int) -> _Conv:
    return _Conv(a, b, (n, 1), padding=(n // 2, 0))


class _Mixed(nn.Module):
    """Parallel paths of convolutions and a pooling path, concatenated; a pair of names ends a path in two branches."""

    def __init__(self, pool: str, paths: tuple[Path, ...], **layers: _Conv) -> None:
        super().__init__()
        self._pool, self._paths = pool, paths
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        branches = [self._along(path, x) for path in self._paths]
        if self._pool == "halve":
            return torch.cat([*branches, functional.max_pool2d(x, 3, 2)], 1)
        average = functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
        pooled = functional.max_pool2d(x, 3, 1, 1) if self._pool == "max" else average
        return torch.cat([*branches, self._along(("branch_pool",), pooled)], 1)

    def _along(self, path: Path, x: Tensor) -> Tensor:
        for step in path:
            if isinstance(step, tuple):
                return torch.cat([self._along((name,), x) for name in step], 1)
            x = self.get_submodule(step)(x)
        return x


def _block_a(a: int, pool: int) -> _Mixed:
    return _Mixed(
        "average",
        (("branch1x1",), ("branch5x5_1", "branch5x5_2"), ("branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3")),
        branch1x1=_Conv(a, 64, 1),
        branch5x5_1=_Conv(a, 48, 1),
        branch5x5_2=_Conv(48, 64, 5, padding=2),
        branch3x3dbl_1=_Conv(a, 64, 1),
        branch3x3dbl_2=_Conv(64, 96, 3, padding=1),
        branch3x3dbl_3=_Conv(96, 96, 3, padding=1),
        branch_pool=_Conv(a, pool, 1),
    )


def _block_b(a: int) -> _Mixed:
    return _Mixed(
        "halve",
        (("branch3x3",), ("branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3")),
        branch3x3=_Conv(a, 384, 3, 2),
        branch3x3dbl_1=_Conv(a, 64, 1),
        branch3x3dbl_2=_Conv(64, 96, 3, padding=1),
        branch3x3dbl_3=_Conv(96, 96, 3, 2),
    )


def _block_c(a: int, c: int) -> _Mixed:
    return _Mixed(
        "average",
        (
            ("branch1x1",),
            ("branch7x7_1", "branch7x7_2", "branch7x7_3"),
            ("branch7x7dbl_1", "branch7x7dbl_2", "branch7x7dbl_3", "branch7x7dbl_4", "branch7x7dbl_5"),
        ),
        branch1x1=_Conv(a, 192, 1),
        branch7x7_1=_Conv(a, c, 1),
        branch7x7_2=_wide(c, c, 7),
        branch7x7_3=_tall(c, 192, 7),
        branch7x7dbl_1=_Conv(a, c, 1),
        branch7x7dbl_2=_tall(c, c, 7),
        branch7x7dbl_3=_wide(c, c, 7),
        branch7x7dbl_4=_tall(c, c, 7),
        branch7x7dbl_5=_wide(c, 192, 7),
        branch_pool=_Conv(a, 192, 1),
    )


def _block_d(a: int) -> _Mixed:
    return _Mixed(
        "halve",
        (("branch3x3_1", "branch3x3_2"), ("branch7x7x3_1", "branch7x7x3_2", "branch7x7x3_3", "branch7x7x3_4")),
        branch3x3_1=_Conv(a, 192, 1),
        branch3x3_2=_Conv(192, 320, 3, 2),
        branch7x7x3_1=_Conv(a, 192, 1),
        branch7x7x3_2=_wide(192, 192, 7),
        branch7x7x3_3=_tall(192, 192, 7),
        branch7x7x3_4=_Conv(192, 192, 3, 2),
    )


def _block_e(a: int, pool: str) -> _Mixed:
    return _Mixed(
        pool,
        (
            ("branch1x1",),
            ("branch3x3_1", ("branch3x3_2a", "branch3x3_2b")),
            ("branch3x3dbl_1", "branch3x3dbl_2", ("branch3x3dbl_3a", "branch3x3dbl_3b")),
        ),
        branch1x1=_Conv(a, 320, 1),
        branch3x3_1=_Conv(a, 384, 1),
        branch3x3_2a=_wide(384, 384, 3),
        branch3x3_2b=_tall(384, 384, 3),
        branch3x3dbl_1=_Conv(a, 448, 1),
        branch3x3dbl_2=_Conv(448, 384, 3, padding=1),
        branch3x3dbl_3a=_wide(384, 384, 3),
        branch3x3dbl_3b=_tall(384, 384, 3),
        branch_pool=_Conv(a, 192, 1),
    )


class InceptionNetwork(nn.Module):
    """float32 [B, 3, 299, 299] in [-1, 1) to features [B, 2048] and class probabilities [B, 1008]."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = _Conv(3, 32, 3, 2)
        self.Conv2d_2a_3x3 = _Conv(32, 32, 3)
        self.Conv2d_2b_3x3 = _Conv(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1 = _Conv(64, 80, 1)
        self.Conv2d_4a_3x3 = _Conv(80, 192, 3)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = _block_a(192, 32), _block_a(256, 64), _block_a(288, 64)
        self.Mixed_6a, self.Mixed_6b = _block_b(288), _block_c(768, 128)
        self.Mixed_6c, self.Mixed_6d, self.Mixed_6e = _block_c(768, 160), _block_c(768, 160), _block_c(768, 192)
        self.Mixed_7a = _block_d(768)
        self.Mixed_7b, self.Mixed_7c = _block_e(1280, "average"), _block_e(2048, "max")
        self.fc = nn.Linear(_FEATURES, _CLASSES)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(functional.max_pool2d(x, 3, 2)))
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(functional.max_pool2d(x, 3, 2))))
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))))
        features = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x))).mean(dim=(2, 3))
        return features, (features @ self.fc.weight.T).softmax(dim=1)


def resized_as_tensorflow_1(x: Tensor, side: int) -> Tensor:
    """Bilinear, float32 [B, C, H, W] to [B, C, side, side], source = destination * in / out, edges repeated."""
    for dim in (3, 2):
        size = x.shape[dim]
        place = torch.arange(side, dtype=torch.float32) * (size / side)
        low = place.floor().long()
        share = (place - low).reshape(-1, *[1] * (3 - dim))
        first = x.index_select(dim, low)
        x = first + (x.index_select(dim, (low + 1).clamp(max=size - 1)) - first) * share
    return x


class Inception:
    """Inception-v3 with given weights; only its scores are named FID, KID and IS."""

    name = INCEPTION
    preprocessing = (
        "grey to RGB, bilinear to 299x299 as TensorFlow 1 (source = destination * in / out, no antialiasing), "
        "(uint8 - 128) / 128"
    )
    feature_dim = _FEATURES

    def __init__(self, data: bytes, what: str = "the weights") -> None:
        """`data`: the bytes of a weights file; `what` names the file in errors. Raises DataError."""
        self.weights_sha256 = hashlib.sha256(data).hexdigest()
        with torch.device("meta"):
            self._network = InceptionNetwork()
        load_weights(self._network, read_state_dict(data, what), what)
        self._network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def extract(self, images: Pixels) -> ExtractorOutput:
        """Output for uint8 [B, H, W, 1 or 3]. Raises DataError."""
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3):
            raise DataError(f"{self.name} reads uint8 [N, H, W, 1 or 3], got {images.dtype} {list(images.shape)}")
        return ExtractorOutput(*in_batches(images, _BATCH, (_FEATURES, _CLASSES), self._forward))

    def _forward(self, images: Pixels) -> tuple[Tensor, Tensor]:
        x = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).float()
        x = (resized_as_tensorflow_1(x, _SIDE) - 128) / 128
        features, probabilities = self._network(x.expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last))
        return features, probabilities
