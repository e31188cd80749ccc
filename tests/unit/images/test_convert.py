"""Conversion to and from the model range, and sheets of images."""

import numpy as np
import pytest
import torch
from corpus import random_pixels

from pipeline.images.convert import grid, to_model, to_uint8

pytestmark = pytest.mark.unit


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("channels", [1, 3])
def test_read_only_images_are_taken_without_a_warning(channels):
    images = np.arange(2 * 4 * 4 * channels, dtype=np.uint8).reshape(2, 4, 4, channels)
    images.flags.writeable = False
    assert to_model(images).shape == (2, channels, 4, 4)
    assert images.ravel().tolist() == list(range(images.size))


def test_all_256_levels_survive_the_model_scale():
    levels = np.arange(256, dtype=np.uint8).reshape(2, 8, 16, 1)
    x = to_model(levels)
    assert x.dtype == torch.float32
    assert tuple(x.shape) == (2, 1, 8, 16)
    assert (x.min().item(), x.max().item()) == (-1.0, 1.0)
    exact = levels.astype(np.float64).transpose(0, 3, 1, 2) / 127.5 - 1
    np.testing.assert_allclose(x.numpy(), exact, atol=6e-8)
    np.testing.assert_array_equal(to_uint8(x), levels)


def test_channels_move_with_their_pixels():
    images = random_pixels(2, 3, 5, 3)
    x = to_model(images)
    assert tuple(x.shape) == (2, 3, 3, 5)
    assert x[1, 2, 0, 4].item() == pytest.approx(images[1, 0, 4, 2] / 127.5 - 1, abs=1e-6)
    np.testing.assert_array_equal(to_uint8(x), images)


def test_to_uint8_clamps_and_rounds_to_the_nearest_level():
    x = torch.tensor([-7.0, -1.0, 100.4 / 127.5 - 1, 100.6 / 127.5 - 1, 1.0, 3.0]).reshape(1, 1, 1, 6)
    assert to_uint8(x).ravel().tolist() == [0, 0, 100, 101, 255, 255]
    with pytest.raises(ValueError, match="NaN"):
        to_uint8(torch.full((1, 1, 1, 1), float("nan")))


def test_grid_places_each_image_and_leaves_the_gap_white():
    images = np.stack([np.full((2, 3, 1), 10 * (i + 1), np.uint8) for i in range(5)])
    sheet = grid(images, columns=3, scale=2, gap=1)
    assert sheet.shape == (2 * 4 + 1, 3 * 6 + 2, 1)
    assert (sheet[:4, :6] == 10).all()
    assert (sheet[:4, 14:] == 30).all()
    assert (sheet[5:, 7:13] == 50).all()
    assert (sheet[4] == 255).all()
    assert (sheet[:, 6] == 255).all()
    assert (sheet[5:, 14:] == 255).all()


def test_grid_enlarges_without_smoothing():
    images = random_pixels(1, 4, 4, 3)
    np.testing.assert_array_equal(grid(images, columns=8, scale=3, gap=2)[1::3, 1::3], images[0])
    with pytest.raises(ValueError, match="at least one"):
        grid(images[:0], 1, 1, 0)
