"""The ceilings: box blur and uniform noise."""

import numpy as np
import pytest

from pipeline.metrics.reference_images import blurred, noise_images

pytestmark = pytest.mark.unit


def test_blur_is_the_mean_of_the_neighbourhood():
    image = np.random.default_rng(0).integers(0, 256, (2, 5, 6, 3), dtype=np.uint8)
    out = blurred(image)
    assert out.dtype == np.uint8
    assert out.shape == image.shape
    window = image[1, 1:4, 2:5, 2].astype(float)
    assert out[1, 2, 3, 2] == np.floor(window.mean() + 0.5)
    corner = image[0, :2, :2, 0].astype(float)
    weights = np.array([[4, 2], [2, 1]])
    assert out[0, 0, 0, 0] == np.floor((corner * weights).sum() / 9 + 0.5)


def test_blur_leaves_flat_images_alone():
    for level in (0, 1, 127, 255):
        flat = np.full((1, 4, 4, 1), level, np.uint8)
        np.testing.assert_array_equal(blurred(flat), flat)


def test_noise_belongs_to_its_index_and_seed():
    images = noise_images(5, (4, 4, 3), seed=7)
    np.testing.assert_array_equal(noise_images(2, (4, 4, 3), seed=7, first=3), images[3:])
    assert not np.array_equal(images[0], images[1])
    assert not np.array_equal(noise_images(1, (4, 4, 3), seed=8)[0], images[0])


def test_noise_is_uniform_over_all_levels():
    levels = noise_images(64, (32, 32, 1), seed=0).ravel()
    counts = np.bincount(levels, minlength=256)
    expected = len(levels) / 256
    chi_squared = ((counts - expected) ** 2 / expected).sum()
    assert 150 < chi_squared < 370  # 255 degrees of freedom: 255 +- 5 standard deviations of 22.6
