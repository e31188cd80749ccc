"""NumPy archives: matching of images and labels, shapes, and pickles, which are never loaded."""

import io
import re
import zipfile

import corpus
import numpy as np
import pytest

from pipeline.config.ingest import IngestConfig
from pipeline.config.root import Config
from pipeline.ingest.sources.open import open_source

pytestmark = pytest.mark.unit
IMAGES = np.random.default_rng(0).integers(0, 256, (25, 6, 5), np.uint8)


class Trap:
    """Unpickling this would end the test run."""

    def __reduce__(self):
        return exec, ("raise SystemExit('a pickle was loaded')",)


def saved(folder, save=np.savez, **arrays):
    save(folder / "a.npz", **arrays)
    return folder / "a.npz"


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("names", [("x", "y"), ("images", "labels"), ("arr_0", "arr_1"), ("data", None)])
def test_images_and_their_labels(tmp_path, save, names):
    labels = np.arange(25) % 4
    arrays = {names[0]: IMAGES} | ({names[1]: labels} if names[1] else {})
    path = saved(tmp_path, save, **arrays)
    source = open_source(str(path), Config(ingest=IngestConfig(partition_rows=10)))
    shares = [list(source.rows(part)) for part in source.partitions()]
    assert [len(rows) for rows in shares] == [10, 10, 5]
    rows = [row for rows in shares for row in rows]
    np.testing.assert_array_equal(np.stack([row.image for row in rows]), IMAGES)
    assert [row.label for row in rows] == [str(label) if names[1] else None for label in labels]
    assert rows[7].source == f"a.npz#{names[0]}/7"


def test_arrays_with_the_same_suffix_belong_together(tmp_path):
    path = saved(
        tmp_path, x_train=IMAGES, y_train=np.arange(25)[:, None], x_test=IMAGES[:3], y_test=np.array(["a", "b", "c"])
    )
    rows = corpus.read(path, partition_rows=2)
    assert [(row.source, row.label) for row in rows[:3]] == [(f"a.npz#x_test/{n}", "abc"[n]) for n in range(3)]
    assert [(row.source, row.label) for row in rows[3:]] == [(f"a.npz#x_train/{n}", str(n)) for n in range(25)]


@pytest.mark.parametrize("shape", [(3, 4, 5, 3), (3, 4, 5, 1), (3, 4, 5, 4), (3, 3, 4, 5), (3, 1, 4, 5)])
def test_channels_are_last(tmp_path, shape):
    pixels = corpus.random_pixels(*shape)
    rows = corpus.read(saved(tmp_path, x=pixels))
    expected = pixels if shape[3] in (1, 3, 4) else pixels.transpose(0, 2, 3, 1)
    np.testing.assert_array_equal(np.stack([row.image for row in rows]), expected)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"x": np.array([Trap()], object)}, "a pickle"),
        ({"x": IMAGES, "y": np.array([Trap()] * 25, object)}, "a pickle"),
        ({"x": IMAGES / 255}, "float64"),
        ({"x": IMAGES[0]}, r"uint8 \[6, 5\]"),
        ({"x": np.zeros((2, 4, 4, 2), np.uint8)}, r"\[2, 4, 4, 2\]"),
        ({"x": np.asfortranarray(IMAGES)}, "Fortran"),
        ({"weights": IMAGES}, "no array of images .* among weights"),
        ({"x": IMAGES, "y": np.arange(3)}, "not 25 labels"),
    ],
)
def test_other_arrays_are_rejected(tmp_path, arrays, words):
    (row,) = corpus.read(saved(tmp_path, **arrays))
    assert corpus.outcome(row) == "wrong-schema"
    assert re.search(words, row.image.detail)


def test_a_truncated_array_is_reported(tmp_path):
    buffer = io.BytesIO()
    np.save(buffer, IMAGES)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x.npy", buffer.getvalue()[:-40])
    rows = corpus.read(tmp_path / "a.npz")
    assert [corpus.outcome(row) for row in rows] == ["image"] * 23 + ["damaged-container"]
