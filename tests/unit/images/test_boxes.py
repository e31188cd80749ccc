"""Sizes of JPEG XL images from their headers, and damaged boxes."""

import numpy as np
import pytest
from corpus import encoded, with_orientation
from PIL import Image

from pipeline.config.ingest import IngestConfig
from pipeline.images.boxes import jpeg_2000_profile, jpeg_xl_size
from pipeline.images.file_types import kind_of
from pipeline.ingest.decode.decoder import Decoder
from pipeline.ingest.decode.resize import prepare

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("container", [False, True])
@pytest.mark.parametrize("size", [(16, 16), (24, 40), (1, 1), (300, 200), (17, 5), (1920, 1080), (640, 480), (3, 3000)])
def test_sizes_of_jpeg_xl(size, container):
    data = encoded(Image.new("L", size), "JXL", use_container=container, effort=1)
    assert jpeg_xl_size(data) == size
    assert kind_of(data) == "image"


def test_damaged_boxes_end_the_search():
    rng = np.random.default_rng(0)
    for data in (
        encoded(Image.new("L", (9, 9)), "JXL", use_container=True),
        encoded(Image.new("L", (9, 9)), "JPEG2000"),
    ):
        for _ in range(500):
            copy = bytearray(data[: rng.integers(len(data))])
            if copy:
                copy[rng.integers(len(copy))] = rng.integers(256)
            jpeg_xl_size(bytes(copy))
            jpeg_2000_profile(bytes(copy))
    assert jpeg_xl_size(b"\xff\xd8\xff") is None


@pytest.mark.parametrize("kind", ["AVIF", "JPEG2000", "JXL"])
def test_large_images_fit_the_memory_of_the_decoding_process(kind):
    side = 3000
    options = {"AVIF": {"speed": 10}, "JXL": {"effort": 1}}.get(kind, {})
    data = encoded(Image.new("RGB", (side, side), (40, 90, 140)), kind, **options)
    with Decoder(IngestConfig(image_size=8, max_image_pixels=side**2)) as decoder:
        ((_, pixels),) = decoder.prepare([(0, data)])
    np.testing.assert_allclose(pixels.reshape(-1, 3).mean(0), (40, 90, 140), atol=2)


def test_a_jpeg_packed_as_jpeg_xl_is_turned_once(tmp_path):
    upright = Image.fromarray(np.repeat(np.repeat(np.array([[0, 255], [128, 60]], np.uint8), 8, 0), 8, 1))
    path = tmp_path / "turned.jpg"
    path.write_bytes(with_orientation(upright, 6))
    with Image.open(path) as jpeg:
        packed = encoded(jpeg, "JXL", lossless_jpeg=True)
    expected = prepare(path.read_bytes(), IngestConfig(image_size=16, channels=1))
    np.testing.assert_array_equal(prepare(packed, IngestConfig(image_size=16, channels=1)), expected)
