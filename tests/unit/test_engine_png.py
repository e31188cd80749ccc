"""Stored images: exact, repeatable, and only grey or RGB."""

import numpy as np
import pytest
from corpus import encoded, random_pixels
from PIL import Image

from pipeline.engine.decode import BadImage
from pipeline.engine.png import decode_pixels, encode_png

pytestmark = pytest.mark.unit
LIMIT = 10**6


def test_png_round_trip_is_exact_and_repeatable():
    for shape in [(9, 7), (9, 7, 1), (9, 7, 3)]:
        pixels = random_pixels(*shape)
        data = encode_png(pixels)
        assert data == encode_png(pixels.copy(order="F"))
        np.testing.assert_array_equal(decode_pixels(data, LIMIT), pixels.reshape(9, 7, -1))


@pytest.mark.parametrize("pixels", [np.zeros((4, 4), np.float32), np.zeros((4, 4, 4), np.uint8), np.zeros(4, np.uint8)])
def test_encode_refuses_what_is_not_an_image_array(pixels):
    with pytest.raises(ValueError, match="need uint8"):
        encode_png(pixels)


def test_reading_stored_images_refuses_other_modes():
    with pytest.raises(BadImage, match="unsupported-mode"):
        decode_pixels(encoded(Image.new("RGBA", (4, 4))), LIMIT)
