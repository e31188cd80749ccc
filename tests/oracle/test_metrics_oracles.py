"""Our scores against torchmetrics, prdc and a general matrix square root, on the same features."""

import numpy as np
import pytest
import scipy.linalg
import torch
from prdc import compute_prdc
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from pipeline.metrics.coverage import scores_of_features
from pipeline.metrics.fingerprint import Fingerprint
from pipeline.metrics.frechet import frechet
from pipeline.metrics.kid import kernel_distance
from pipeline.metrics.moments import Moments
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
