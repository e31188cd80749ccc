"""The U-Net against diffusers' UNet2DModel with the same random weights: outputs and every gradient."""

import pytest
import torch
from diffusers import UNet2DModel

from pipeline.config.model import ModelConfig
from pipeline.models.unet import UNet

pytestmark = pytest.mark.oracle


def theirs(config: ModelConfig, in_channels, out_channels, size):
    """Written out from the meaning of the fields, not by way of pipeline.models.diffusers_format."""
    attends = [level in config.attention_levels for level in range(len(config.block_out_channels))]
    return UNet2DModel(
        sample_size=size,
        in_channels=in_channels,
        out_channels=out_channels,
        block_out_channels=config.block_out_channels,
        layers_per_block=config.layers_per_block,
        down_block_types=["AttnDownBlock2D" if a else "DownBlock2D" for a in attends],
        up_block_types=["AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)],
        attention_head_dim=None,
        norm_num_groups=config.norm_num_groups,
        norm_eps=config.norm_eps,
        flip_sin_to_cos=False,
        freq_shift=1,
        downsample_padding=0,
        num_class_embeds=None if config.num_classes is None else config.num_classes + 1,
    )


CASES = {
    "digits": (ModelConfig(block_out_channels=(32, 64), norm_num_groups=8), (1, 1), (8, 8)),
    "one level, one layer": (
        ModelConfig(block_out_channels=(16,), norm_num_groups=4, attention_levels=(), layers_per_block=1),
        (3, 3),
        (5, 7),
    ),
    "attention everywhere, learned variance, three layers": (
        ModelConfig(block_out_channels=(8, 16, 8), norm_num_groups=4, attention_levels=(0, 1, 2), layers_per_block=3),
        (2, 4),
        (8, 8),
    ),
    "attention at the ends only, not square": (
        ModelConfig(block_out_channels=(16, 8, 24), norm_num_groups=8, attention_levels=(0, 2), norm_eps=1e-4),
        (3, 3),
        (8, 12),
    ),
    "class-conditional": (
        ModelConfig(block_out_channels=(16, 32), norm_num_groups=8, num_classes=9),
        (3, 3),
        (8, 8),
    ),
    "wide enough for Winograd": (
        ModelConfig(block_out_channels=(128, 256), layers_per_block=1),
        (3, 3),
        (16, 16),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_outputs_and_gradients(name):
    config, channels, (height, width) = CASES[name]
    generator = torch.Generator().manual_seed(0)
    ours = UNet(config, *channels, 8)
    other = theirs(config, *channels, 8)
    state = {name: torch.empty_like(value) for name, value in other.state_dict().items()}
    for value in state.values():
        # Unit gain, no zeros, so that nothing is hidden.
        value.uniform_(-1.7, 1.7, generator=generator).mul_(1 / max(value[0].numel(), 4) ** 0.5)
    ours.load_state_dict(state)
    other.load_state_dict(state)

    batch = 8
    x = torch.randn(batch, channels[0], height, width, generator=generator)
    t = torch.randint(0, 1000, (batch,), generator=generator)
    labels = (
        None if config.num_classes is None else torch.randint(0, config.num_classes + 1, (batch,), generator=generator)
    )
    dy = torch.randn(batch, channels[1], height, width, generator=generator)
    x_ours, x_theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    got, expected = ours(x_ours, t, labels), other(x_theirs, t, labels).sample
    scale = max(1.0, float(expected.detach().abs().max()))
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5 * scale)
    (got * dy).sum().backward()
    (expected * dy).sum().backward()
    gradients = {"x": x_theirs.grad} | {name: p.grad for name, p in other.named_parameters()}
    largest = max(float(grad.abs().max()) for grad in gradients.values())
    own = {"x": x_ours.grad} | {name: p.grad for name, p in ours.named_parameters()}
    assert own.keys() == gradients.keys()
    for name, grad in gradients.items():
        # to_k.bias has no gradient at all (softmax ignores it): only rounding, hence the common scale.
        atol = 1e-5 * max(float(grad.abs().max()), 0.1 * largest)
        torch.testing.assert_close(own[name], grad, rtol=0, atol=atol, msg=lambda text, name=name: f"{name}: {text}")


def test_the_papers_network_has_the_same_tensors():
    with torch.device("meta"):
        ours = UNet(ModelConfig(), 3, 3, 32).state_dict()
        other = theirs(ModelConfig(), 3, 3, 32).state_dict()
    assert {name: value.shape for name, value in ours.items()} == {name: value.shape for name, value in other.items()}
    assert len(ours) == 328
