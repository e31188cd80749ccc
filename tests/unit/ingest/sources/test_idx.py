"""IDX files: every image once, labels found by file name, damage reported before any task runs."""

import gzip
import struct

import numpy as np
import pytest

from pipeline.config.ingest import IngestConfig
from pipeline.config.root import Config
from pipeline.errors import DataError
from pipeline.ingest.sources.open import open_source

pytestmark = pytest.mark.unit
CONFIG = Config(ingest=IngestConfig(partition_rows=10))


def idx(array):
    return struct.pack(">I", 0x0800 | array.ndim) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def opened(path, data):
    path.write_bytes(data)
    return open_source(str(path), CONFIG)


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
    shares = [list(source.rows(partition)) for partition in source.partitions()]
    assert [len(rows) for rows in shares] == [10, 10, 5]
    read = [row for rows in shares for row in rows]
    assert all(np.array_equal(row.image, pixels) for row, pixels in zip(read, images, strict=True))
    assert [row.source for row in read] == [f"a-images-idx3-ubyte#{row}" for row in range(25)]


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
    (partition,) = source.partitions()
    assert [row.label for row in source.rows(partition)] == ["2", "0", "1"]
