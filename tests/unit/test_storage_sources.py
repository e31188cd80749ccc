"""Sources that are damaged or empty end in one clear error before anything runs."""

import gzip
import struct

import numpy as np
import pytest

from pipeline.config import StorageConfig
from pipeline.errors import DataError
from pipeline.storage.sources import open_source

pytestmark = pytest.mark.unit


def idx(array):
    return struct.pack(">I", 0x0800 | array.ndim) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def opened(path, data):
    path.write_bytes(data)
    return open_source(str(path), 10, StorageConfig())


def test_a_damaged_gzip_body_is_named(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (20, 8, 8), np.uint8)
    data = bytearray(gzip.compress(idx(noise)))
    data[40:60] = bytes(20)
    with pytest.raises(DataError, match="not a whole IDX file"):
        opened(tmp_path / "a-images-idx3-ubyte.gz", bytes(data))


@pytest.mark.parametrize("cut", [3, 10, 100])
def test_a_cut_file_is_named(tmp_path, cut):
    with pytest.raises(DataError, match="IDX file"):
        opened(tmp_path / "a-images-idx3-ubyte", idx(np.zeros((9, 8, 8), np.uint8))[:cut])


def test_no_images_are_an_error(tmp_path):
    with pytest.raises(DataError, match="holds no images"):
        opened(tmp_path / "a-images-idx3-ubyte", idx(np.zeros((0, 8, 8), np.uint8)))


def test_labels_must_match_the_images(tmp_path):
    (tmp_path / "a-labels-idx1-ubyte").write_bytes(idx(np.zeros(3, np.uint8)))
    with pytest.raises(DataError, match="3 labels for the 9 images"):
        opened(tmp_path / "a-images-idx3-ubyte", idx(np.zeros((9, 8, 8), np.uint8)))


def test_partitions_cover_every_image_once(tmp_path):
    images = np.arange(25 * 64, dtype=np.int64).reshape(25, 8, 8).astype(np.uint8)
    source = opened(tmp_path / "a-images-idx3-ubyte", idx(images))
    read = [image for partition in source.partitions for image in partition.read()]
    assert [len(list(partition.read())) for partition in source.partitions] == [10, 10, 5]
    assert all(np.array_equal(image.data, pixels) for image, pixels in zip(read, images, strict=True))


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        ("a-images-idx3-ubyte.gz", "a-labels-idx1-ubyte.gz"),
        ("a-images-idx3-ubyte", "a-labels-idx1-ubyte.gz"),
        ("a-images-idx3-ubyte.gz", "a-labels-idx1-ubyte"),
        ("a-images.idx3-ubyte", "a-labels.idx1-ubyte"),
    ],
)
def test_labels_are_found_by_name(tmp_path, images, labels):
    (tmp_path / labels).write_bytes(idx(np.array([2, 0, 1], np.uint8)))
    source = opened(tmp_path / images, idx(np.zeros((3, 8, 8), np.uint8)))
    assert source.classes == ("0", "1", "2")
    assert [image.label for image in source.partitions[0].read()] == [2, 0, 1]


def test_class_folders_keep_their_labels_beside_other_files(tmp_path):
    for name in ("cat/1.png", "dog/2.png", "README.txt", ".hidden/3.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    source = open_source(str(tmp_path), 10, StorageConfig())
    assert source.classes == ("cat", "dog")
    assert {image.path: image.label for image in source.partitions[0].read()} == {
        "README.txt": None,
        "cat/1.png": 0,
        "dog/2.png": 1,
    }
