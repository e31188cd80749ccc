"""The U-Net: size, initialisation, dropout, and fast paths that equal the plain path."""

import pytest
import torch

from pipeline.config.model import ModelConfig
from pipeline.errors import ConfigError
from pipeline.models.dropout import DropoutKey
from pipeline.models.layers import Conv3x3
from pipeline.models.unet import UNet, init_weights

pytestmark = pytest.mark.unit

SMALL = ModelConfig(block_out_channels=(32, 64), norm_num_groups=8)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def random_unet(config=SMALL, channels=1, size=8, seed=0):
    """A network without zero weights: the zeros of `init_weights` would hide the effect of other layers."""
    unet = UNet(config, channels, channels, size)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in unet.parameters():
            p.uniform_(-1, 1, generator=generator).mul_(1 / max(p[0].numel(), 4) ** 0.5)
    return unet


def with_config(unet, **changes):
    """The same weights under another configuration."""
    other = UNet(unet.config.model_copy(update=changes), unet.in_channels, unet.out_channels, unet.sample_size)
    other.load_state_dict(unet.state_dict())
    return other


def gradients(unet, *inputs, **named):
    unet.zero_grad()
    out = unet(*inputs, **named)
    (out * normal(*out.shape, seed=9)).sum().backward()
    return out.detach(), {name: p.grad.clone() for name, p in unet.named_parameters()}


@pytest.mark.parametrize(
    ("config", "channels", "size", "count"),
    [
        (ModelConfig(), 3, 32, 35_746_307),
        (ModelConfig(block_out_channels=(128, 128, 256, 256, 512, 512), attention_levels=(4,)), 3, 256, 113_673_219),
    ],
    ids=["CIFAR-10", "CelebA-HQ 256"],
)
def test_the_papers_networks_have_the_papers_size(config, channels, size, count):
    with torch.device("meta"):
        assert sum(p.numel() for p in UNet(config, channels, channels, size).parameters()) == count


def test_weights_are_a_function_of_the_seed_and_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    first, second = UNet(SMALL, 1, 1, 8), UNet(SMALL, 1, 1, 8)
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    init_weights(second, 1)
    assert not torch.equal(first.conv_in.weight, second.conv_in.weight)
    init_weights(second, 0)
    # Refilled in channels-last memory: a seed must not give other weights for that.
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_initial_weights_are_the_papers():
    unet = UNet(ModelConfig(block_out_channels=(64, 64), num_classes=999), 3, 3, 16)
    assert (unet(normal(2, 3, 16, 16), torch.tensor(3), torch.tensor([1, 2])) == 0).all()
    block = unet.down_blocks[0].resnets[0]
    assert block.conv1.weight.std().item() == pytest.approx((2 / (2 * 9 * 64)) ** 0.5, rel=0.02)
    assert unet.time_embedding.linear_1.weight.std().item() == pytest.approx((2 / (64 + 256)) ** 0.5, rel=0.02)
    assert unet.class_embedding.weight.std().item() == pytest.approx(1, rel=0.02)
    attention = unet.mid_block.attentions[0]
    zero = [block.conv2.weight, attention.to_out[0].weight, unet.conv_out.weight]
    zero += [p for name, p in unet.named_parameters() if name.endswith("bias")]
    assert not any(p.any() for p in zero)
    assert (block.norm1.weight == 1).all()


def test_initial_weights_by_fan_in_have_the_bounds_that_torch_gives_its_layers():
    config = ModelConfig(block_out_channels=(64, 64), num_classes=999)
    unet = UNet(config, 3, 3, 16)
    init_weights(unet, 0, "fan_in")
    zero, layers = [], [(n, m) for n, m in unet.named_modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
    for name, layer in layers:
        like = torch.nn.Linear(layer.weight[0].numel(), len(layer.weight))
        if not layer.weight.any():
            zero.append(name)
            assert not layer.bias.any()
            continue
        for ours, theirs in ((layer.weight, like.weight), (layer.bias, like.bias)):
            bound = like.in_features**-0.5
            assert theirs.abs().max() <= bound
            assert 0.3 * bound < ours.abs().max().item() <= bound
    ends = ("conv2", "to_out.0", "conv_out")
    assert zero == [name for name, _ in layers if name.endswith(ends)]
    assert (unet(normal(2, 3, 16, 16), torch.tensor(3), torch.tensor([1, 2])) == 0).all()
    big = unet.mid_block.resnets[0].conv1.weight
    assert big.std().item() == pytest.approx((9 * 64) ** -0.5 / 3**0.5, rel=0.02)
    assert unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    again = UNet(config, 3, 3, 16)
    init_weights(again, 0, "fan_in")
    assert all(torch.equal(a, b) for a, b in zip(unet.parameters(), again.parameters(), strict=True))


def test_one_timestep_for_all_is_the_same_as_the_same_for_each():
    unet, x = random_unet(), normal(6, 1, 8, 8)
    each = unet(x, torch.full((6,), 77))
    for shared in (torch.tensor(77), torch.tensor([77])):
        torch.testing.assert_close(unet(x, shared), each, rtol=0, atol=1e-6)
    assert not torch.allclose(unet(x, torch.tensor(78)), each, atol=1e-4)


def test_timesteps_and_labels_belong_to_their_samples():
    unet = random_unet(SMALL.model_copy(update={"num_classes": 3}))
    assert unet.null_label == 3
    x, t, labels = normal(4, 1, 8, 8), torch.tensor([0, 999, 5, 999]), torch.tensor([3, 0, 1, 2])
    together = unet(x, t, labels)
    for i in range(4):
        alone = unet(x[i : i + 1], t[i : i + 1], labels[i : i + 1])
        torch.testing.assert_close(alone[0], together[i], rtol=0, atol=1e-5)


def test_the_fast_path_gives_the_plain_paths_numbers():
    config = ModelConfig(block_out_channels=(128, 128), layers_per_block=1)
    unet = random_unet(config, 3, 16)
    inputs = normal(8, 3, 16, 16), torch.arange(8)
    fast, fast_grads = gradients(unet, *inputs)
    with torch.no_grad():
        torch.testing.assert_close(unet(*inputs), fast, rtol=0, atol=1e-6)
    for module in unet.modules():
        if isinstance(module, Conv3x3):
            module.fast = False
    plain, plain_grads = gradients(unet, *inputs)
    torch.testing.assert_close(fast, plain, rtol=0, atol=1e-5)
    largest = max(g.abs().max() for g in plain_grads.values())
    for name, grad in plain_grads.items():
        torch.testing.assert_close(fast_grads[name], grad, rtol=1e-5, atol=1e-5 * float(largest), msg=name)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_checkpointing_gives_the_same_gradients(dropout):
    unet = random_unet(SMALL.model_copy(update={"dropout": dropout})).train()
    other = with_config(unet, gradient_checkpointing=True).train()
    key = DropoutKey(torch.tensor([4, 5]), (1, 2), 3)
    named = {"dropout": key} if dropout else {}
    out, grads = gradients(unet, normal(2, 1, 8, 8), torch.tensor([1, 2]), **named)
    again, again_grads = gradients(other, normal(2, 1, 8, 8), torch.tensor([1, 2]), **named)
    assert torch.equal(out, again)
    assert all(torch.equal(again_grads[name], grad) for name, grad in grads.items())


def test_dropout_follows_the_sample_and_acts_in_training_only():
    unet = random_unet(SMALL.model_copy(update={"dropout": 0.5})).train()
    x, t, ids = normal(4, 1, 8, 8), torch.tensor(10), torch.tensor([3, 1, 4, 15])
    out = unet(x, t, dropout=DropoutKey(ids, (1, 2), 0))
    pick = [2, 0]
    torch.testing.assert_close(unet(x[pick], t, dropout=DropoutKey(ids[pick], (1, 2), 0)), out[pick], rtol=0, atol=1e-5)
    for other in (DropoutKey(ids + 1, (1, 2), 0), DropoutKey(ids, (1, 3), 0), DropoutKey(ids, (1, 2), 1)):
        assert not torch.allclose(unet(x, t, dropout=other), out, atol=1e-3)
    with pytest.raises(ConfigError, match="training needs a DropoutKey"):
        unet(x, t)
    plain = with_config(unet, dropout=0.0)
    assert torch.equal(unet.eval()(x, t), plain(x, t))


def test_every_block_has_dropout_of_its_own():
    unet = random_unet(SMALL.model_copy(update={"dropout": 0.5}))
    layers = [module.layer for module in unet.modules() if hasattr(module, "time_emb_proj")]
    assert layers == list(range(unet.num_layers))
    assert len(layers) == 2 * 2 + 2 + 2 * 3


def test_dropout_keeps_the_mean_of_what_it_drops():
    # Behind its dropout a block is linear, so the average over masks is the block without dropout.
    unet = random_unet(SMALL.model_copy(update={"dropout": 0.2})).train()
    block = unet.mid_block.resnets[0]
    h, emb = normal(1, 64, 4, 4), normal(1, 128)
    expected = block(h, emb, None)
    words = DropoutKey(torch.arange(4000), (1, 2), 0).words(unet.num_layers)
    mean = block(h.expand(4000, -1, -1, -1), emb, words).mean(0, keepdim=True)
    error = (mean - expected).abs().max()
    assert error < 0.03 * (expected - h).abs().max()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: UNet(SMALL, 1, 1, 9), "9x9"),
        (
            lambda: UNet(ModelConfig(block_out_channels=(2,), norm_num_groups=1, attention_levels=()), 1, 1, 8),
            "at least 4",
        ),
        (lambda: random_unet()(normal(1, 1, 8, 7), torch.tensor(0)), "8x7"),
        (lambda: random_unet()(normal(1, 1, 8, 8), torch.tensor(0), torch.tensor([0])), "no num_classes"),
        (
            lambda: random_unet(SMALL.model_copy(update={"num_classes": 2}))(normal(1, 1, 8, 8), torch.tensor(0)),
            "2 stands for no label",
        ),
    ],
)
def test_wrong_use_is_named(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


@pytest.mark.slow
def test_it_compiles_as_one_graph_with_the_same_numbers():
    config = ModelConfig(block_out_channels=(128,), attention_levels=(), dropout=0.2, layers_per_block=1)
    unet = random_unet(config, 1, 16).train()
    compiled = torch.compile(unet, backend="aot_eager", fullgraph=True)
    x, t, key = normal(8, 1, 16, 16), torch.arange(8), DropoutKey(torch.arange(8), (1, 2), 3)
    torch.testing.assert_close(compiled(x, t, None, key), unet(x, t, None, key), rtol=0, atol=1e-5)
