"""Winograd's algorithm is the convolution: exactly in float64, and closely enough in float32."""

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from pipeline.models import winograd
from pipeline.models.layers import Conv3x3
from pipeline.models.winograd import winograd_conv, winograd_pays

pytestmark = pytest.mark.unit


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def direct(x, weight, shift, residual, enlarge):
    if enlarge:
        x = F.interpolate(x, scale_factor=2.0, mode="nearest")
    out = F.conv2d(x, weight, padding=1) + shift[:, :, None, None]
    return out if residual is None else out + residual


@pytest.mark.parametrize("enlarge", [False, True])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(
    "scratch", [1, 20_000, 2**30], ids=["a row of tiles at a time", "some rows or images at a time", "all at once"]
)
def test_values_and_gradients_are_those_of_the_definition(monkeypatch, enlarge, shared, scratch):
    monkeypatch.setattr(winograd, "_SCRATCH_BYTES", scratch)
    height, width, times = 12, 8, 2 if enlarge else 1
    inputs = [normal(5, 3, height, width), normal(4, 3, 3, 3, seed=1), normal(1 if shared else 5, 4, seed=2)]
    inputs.append(normal(5, 4, times * height, times * width, seed=3))
    inputs = [value.requires_grad_() for value in inputs]
    expected, got = direct(*inputs, enlarge), winograd_conv(*inputs, enlarge)
    assert got.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
    dy = normal(*expected.shape, seed=4)
    for ours, theirs in zip(
        torch.autograd.grad(got, inputs, dy), torch.autograd.grad(expected, inputs, dy), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-11)


def test_gradients_that_are_not_needed_are_not_computed():
    x, weight, shift = normal(1, 2, 4, 4), normal(2, 2, 3, 3).requires_grad_(), normal(1, 2)
    winograd_conv(x, weight, shift).sum().backward()
    assert x.grad is None
    assert weight.grad is not None


@pytest.mark.parametrize(("channels", "size"), [(128, 32), (512, 8)])
def test_rounding_error_of_float32(channels, size):
    x, weight = normal(2, channels, size, size, dtype=torch.float32), normal(128, channels, 3, 3, dtype=torch.float32)
    weight, shift = weight / (9 * channels) ** 0.5, torch.zeros(1, 128)  # outputs are about N(0, 1)
    exact = F.conv2d(x.double(), weight.double(), padding=1)
    ours = (winograd_conv(x, weight, shift) - exact).pow(2).mean().sqrt()
    assert ours < 3e-6


def test_it_is_used_only_where_it_is_right_and_fast():
    weight = torch.zeros(128, 128, 3, 3)
    x = torch.zeros(4, 128, 16, 16)
    assert winograd_pays(x, weight)
    assert not winograd_pays(torch.zeros(4, 128, 18, 16), weight)
    assert not winograd_pays(torch.zeros(4, 128, 16, 18), weight)
    assert not winograd_pays(x[:1, :, :4, :4], weight)
    assert not winograd_pays(x.double(), weight.double())
    assert not winograd_pays(x.bfloat16(), weight.bfloat16())
    assert not winograd_pays(x.to("meta"), weight.to("meta"))
    assert not winograd_pays(x[:, :64], weight[:, :64])
    assert winograd_pays(x[:, :64], weight[:, :64], enlarge=True)


@pytest.mark.parametrize("enlarge", [False, True])
@pytest.mark.parametrize("rows", [None, 1, 2])
def test_both_paths_of_the_layer_agree(enlarge, rows):
    layer = Conv3x3(128, 128, enlarge=enlarge)
    x = normal(2, 128, 16, 16, dtype=torch.float32)
    emb = None if rows is None else normal(rows, 128, seed=1, dtype=torch.float32)
    residual = normal(2, 128, 32, 32, seed=2, dtype=torch.float32) if enlarge else x
    layer.weight.data = normal(128, 128, 3, 3, seed=3, dtype=torch.float32) / 34
    fast = layer(x, emb, residual)
    layer.fast = False
    torch.testing.assert_close(fast, layer(x, emb, residual), rtol=0, atol=3e-5)
    plain = layer(x) - layer.bias[:, None, None]
    shift = layer.bias[None] + (0 if emb is None else emb)
    torch.testing.assert_close(fast, plain + shift[:, :, None, None] + residual, rtol=0, atol=3e-5)
