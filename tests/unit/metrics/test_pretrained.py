"""Pretrained extractors: layout of the weight files, preprocessing, pooling, and refused files."""

import hashlib
import io
import pickle

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from pipeline.errors import DataError
from pipeline.metrics.efficientnet import EfficientNet, EfficientNetNetwork
from pipeline.metrics.features import fingerprint_of
from pipeline.metrics.inception import Inception, InceptionNetwork, resized_as_tensorflow_1
from pipeline.metrics.pretrained import load_extractor
from pipeline.metrics.protocol import Fingerprint

pytestmark = pytest.mark.unit

INCEPTION_LAYOUT = {
    "Conv2d_1a_3x3.conv.weight": (32, 3, 3, 3),
    "Conv2d_4a_3x3.bn.running_var": (192,),
    "Mixed_5b.branch5x5_2.conv.weight": (64, 48, 5, 5),
    "Mixed_5d.branch_pool.conv.weight": (64, 288, 1, 1),
    "Mixed_6a.branch3x3dbl_3.conv.weight": (96, 96, 3, 3),
    "Mixed_6b.branch7x7_2.conv.weight": (128, 128, 1, 7),
    "Mixed_6b.branch7x7_3.conv.weight": (192, 128, 7, 1),
    "Mixed_6d.branch7x7dbl_5.conv.weight": (192, 160, 1, 7),
    "Mixed_6e.branch7x7dbl_4.conv.weight": (192, 192, 7, 1),
    "Mixed_7a.branch7x7x3_4.conv.weight": (192, 192, 3, 3),
    "Mixed_7b.branch3x3_2a.conv.weight": (384, 384, 1, 3),
    "Mixed_7c.branch3x3dbl_3b.bn.bias": (384,),
    "Mixed_7c.branch_pool.conv.weight": (192, 2048, 1, 1),
    "fc.weight": (1008, 2048),
    "fc.bias": (1008,),
}
"""Some names and shapes of pt_inception-2015-12-05-6726825d.pth."""


def random_state(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """float32 weights of a sound scale, without the counters that published files lack."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, tensor in network.state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue
        if name.endswith(("bn.weight", "running_var")) or (tensor.ndim == 1 and name.endswith(".weight")):
            state[name] = torch.ones(tensor.shape)
        elif tensor.ndim == 1:
            state[name] = torch.zeros(tensor.shape)
        else:
            fan_in = tensor[0].numel()
            state[name] = torch.randn(tensor.shape, generator=generator) * (2 / fan_in) ** 0.5
    return state


def saved(state: object) -> bytes:
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


@pytest.fixture(scope="module")
def inception_state() -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        network = InceptionNetwork()
    return random_state(network)


@pytest.fixture(scope="module")
def efficientnet_state() -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        network = EfficientNetNetwork()
    return random_state(network)


def test_the_layout_is_that_of_the_published_file(inception_state):
    assert {name: tuple(inception_state[name].shape) for name in INCEPTION_LAYOUT} == INCEPTION_LAYOUT
    assert sum(tensor.numel() for name, tensor in inception_state.items() if "running" not in name) == 23_850_960
    assert sum(name.endswith("conv.weight") for name in inception_state) == 94


def test_inception_gives_features_and_probabilities_under_its_name(inception_state):
    data = saved(inception_state)
    extractor = load_extractor("inception-v3", data)
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 1), np.uint8)
    features, probabilities = extractor.extract(images)
    assert (features.shape, probabilities.shape) == ((2, 2048), (2, 1008))
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
    assert features.min() >= 0
    assert np.abs(features[0] - features[1]).max() > 1e-3
    logits = features[0] @ inception_state["fc.weight"].numpy().T
    expected = np.exp(logits - logits.max())
    np.testing.assert_allclose(probabilities[0], expected / expected.sum(), rtol=1e-3, atol=1e-7)
    fingerprint = fingerprint_of(extractor, "data/train")
    assert fingerprint.weights_sha256 == hashlib.sha256(data).hexdigest()
    assert (fingerprint.frechet_name, fingerprint.kernel_name, fingerprint.class_name) == ("FID", "KID", "IS")
    assert "299x299 as TensorFlow 1" in fingerprint.preprocessing


def test_the_pooling_quirks_of_the_fid_network(inception_state):
    """Average pooling excludes the padding; the last block has max pooling."""
    network = InceptionNetwork()
    network.load_state_dict(inception_state, strict=False)
    network.eval()
    ones = {}
    for name, channels in (("Mixed_5b", 192), ("Mixed_6b", 768), ("Mixed_7b", 1280), ("Mixed_7c", 2048)):
        block = getattr(network, name)
        pooled = []
        block.branch_pool.register_forward_pre_hook(lambda _, given, kept=pooled: kept.append(given[0]))
        x = torch.rand(1, channels, 4, 4, generator=torch.Generator().manual_seed(1))
        with torch.inference_mode():
            block(torch.ones_like(x))
            block(x)
        ones[name], (corner, whole) = pooled[0], (pooled[1][0, :, 0, 0], x[0, :, :2, :2])
        torch.testing.assert_close(corner, whole.amax((1, 2)) if name == "Mixed_7c" else whole.mean((1, 2)))
    assert all(bool((value == 1).all()) for value in ones.values())


@pytest.mark.parametrize(("size", "side"), [(2, 5), (28, 299), (400, 299)])
def test_resizing_is_tensorflow_1s(size, side):
    """Positions are pixel corners, without antialiasing; torch's own resize uses pixel centres."""
    image = np.random.default_rng(size).integers(0, 256, (size, size)).astype(np.float32)
    ours = resized_as_tensorflow_1(torch.from_numpy(image)[None, None], side)[0, 0].numpy()
    for y, x in ((0, 0), (1, 3), (side // 2, side // 3), (side - 1, side - 1)):
        source_y, source_x = y * size / side, x * size / side
        top, left = int(source_y), int(source_x)
        bottom, right = min(top + 1, size - 1), min(left + 1, size - 1)
        a, b = source_y - top, source_x - left
        upper = image[top, left] * (1 - b) + image[top, right] * b
        lower = image[bottom, left] * (1 - b) + image[bottom, right] * b
        assert ours[y, x] == pytest.approx(upper * (1 - a) + lower * a, abs=2e-3)
    theirs = torch.nn.functional.interpolate(
        torch.from_numpy(image)[None, None], (side, side), mode="bilinear", align_corners=False
    )
    assert np.abs(theirs[0, 0].numpy() - ours).max() > 5


def test_efficientnet_reads_grey_and_colour_alike_and_says_how(efficientnet_state):
    extractor = load_extractor("efficientnet-lite0", safetensors.torch.save(efficientnet_state), 32)
    grey = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), np.uint8)
    features, probabilities = extractor.extract(grey)
    assert (features.shape, probabilities.shape) == ((3, 1280), (3, 1000))
    np.testing.assert_array_equal(features, extractor.extract(grey.repeat(3, axis=3)).features)
    np.testing.assert_array_equal(features[1:], extractor.extract(grey[1:]).features)
    assert "32x32" in extractor.preprocessing
    other = load_extractor("efficientnet-lite0", safetensors.torch.save(efficientnet_state), 64)
    with pytest.raises(DataError, match="preprocessing"):
        fingerprint_of(extractor, "r").require_same(fingerprint_of(other, "r"))
    assert Fingerprint("efficientnet-lite0", "", "", 1, "").frechet_name == "FD-efficientnet-lite0"
    large = np.asarray(Image.fromarray(grey[0, :, :, 0]).resize((32, 32), Image.Resampling.BICUBIC))[None, :, :, None]
    np.testing.assert_array_equal(features[:1], extractor.extract(large).features)


def test_what_is_not_such_a_file_is_refused_in_one_line(inception_state, efficientnet_state):
    lacking = {k: v for k, v in efficientnet_state.items() if not k.startswith("_blocks.3.")}
    turned = {**efficientnet_state, "_fc.weight": efficientnet_state["_fc.weight"].T.contiguous()}
    cases = [
        (saved(lacking), r"lacks _blocks\.3\._expand_conv\.weight, .* and \d+ more$"),
        (saved(turned), r"has _fc\.weight is \[1280, 1000\], not \[1000, 1280\]$"),
        (saved({**efficientnet_state, "aux.weight": torch.ones(1)}), r"has unknown aux\.weight$"),
        (saved({"state_dict": efficientnet_state}), "holds a dict, not a state dict"),
        (saved([1]), "holds a list"),
        (pickle.dumps(print), "neither safetensors nor a PyTorch file"),
        (b"", "neither safetensors"),
        (b"junk" * 10, "neither safetensors"),
        (safetensors.torch.save(efficientnet_state)[:-4], "neither safetensors"),
    ]
    for data, message in cases:
        with pytest.raises(DataError, match=message) as refused:
            EfficientNet(data, 32, "weights.pth")
        assert str(refused.value).startswith("weights.pth")
        assert "\n" not in str(refused.value)
    with pytest.raises(DataError, match=r"lacks .*has unknown _conv_stem"):
        Inception(saved(efficientnet_state))
    with pytest.raises(DataError, match="no extractor 'dino'"):
        load_extractor("dino", b"")
