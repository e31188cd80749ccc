"""Bits per dimension of stored images: the bound uses the plan's process, the labels, and noise by id."""

import numpy as np
import pytest
import torch
from tiny_samples import sample_plan

from pipeline.config.model import DiffusionConfig
from pipeline.diffusion.likelihood import bits_per_dim
from pipeline.diffusion.noise import SampleNoise
from pipeline.diffusion.objective import Objective
from pipeline.evaluation.likelihood import heldout_bound
from pipeline.images.convert import to_model

pytestmark = pytest.mark.unit

DIFFUSION = {"num_timesteps": 5, "beta_start": 0.05, "beta_end": 0.5}
IMAGES = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 1), np.uint8)
IDS = np.array([4, 9, 2])


def network(x, t, labels):
    shift = 0 if labels is None else 0.05 * labels.view(-1, 1, 1, 1)
    return 0.5 * x - 0.1 * t.view(-1, 1, 1, 1) + shift


def plan(num_classes=None):
    return sample_plan(diffusion=DIFFUSION, num_classes=num_classes, guidance=3.0 if num_classes else None)


def test_the_bound_uses_the_diffusion_process_of_the_plan():
    objective = Objective(DiffusionConfig(**DIFFUSION), 1)
    noise = SampleNoise(7, torch.from_numpy(IDS), (1, 4, 4))
    expected = bits_per_dim(objective, lambda x, t: network(x, t[:1], None), to_model(IMAGES), noise).total
    got = heldout_bound(network, plan(), IMAGES, IDS, None, 7)
    assert got.dtype == np.float64
    np.testing.assert_array_equal(got, expected.numpy())


def test_an_image_has_the_same_bits_in_any_batch():
    whole = heldout_bound(network, plan(), IMAGES, IDS, None, 7)
    np.testing.assert_allclose(heldout_bound(network, plan(), IMAGES[1:2], IDS[1:2], None, 7), whole[1:2], rtol=1e-6)
    assert not np.allclose(heldout_bound(network, plan(), IMAGES[1:2], IDS[2:], None, 7), whole[1:2], rtol=1e-6)


def test_a_class_conditional_model_gets_the_labels_and_no_guidance():
    told = heldout_bound(network, plan(3), IMAGES, IDS, np.array([0, 0, 0]), 7)
    np.testing.assert_array_equal(told, heldout_bound(network, plan(), IMAGES, IDS, None, 7))
    unlabelled = heldout_bound(network, plan(3), IMAGES, IDS, None, 7)
    np.testing.assert_array_equal(unlabelled, heldout_bound(network, plan(3), IMAGES, IDS, np.array([3, 3, 3]), 7))
    assert np.abs(unlabelled - told).min() > 1e-4
