"""A small class-conditional network whose weights are not trained but not zero either."""

import torch

from pipeline.config.model import ModelConfig
from pipeline.models.unet import UNet

MODEL = ModelConfig(block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, num_classes=3)
CPU = torch.device("cpu")


def network() -> UNet:
    """The same one every time, for images 8x8x1."""
    torch.set_num_threads(1)
    unet = UNet(MODEL, 1, 1, 8)
    generator = torch.Generator().manual_seed(1)
    for weight in unet.parameters():
        weight.data += 0.1 * torch.randn(weight.shape, generator=generator)
    return unet
