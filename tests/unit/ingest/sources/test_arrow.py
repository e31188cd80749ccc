"""Arrow files as of Hugging Face's save_to_disk, and every type of column that holds images."""

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from corpus import encoded, photo, random_pixels, read

from pipeline.config.root import Config
from pipeline.errors import DataError
from pipeline.images.reject_reasons import Reject
from pipeline.ingest.sources.open import open_source

pytestmark = pytest.mark.unit
IMAGES = [encoded(photo(number)) for number in range(5)]
LABELS = [2, 0, 1, 2, None]
NAMES = ("cat", "dog", "owl")
EXPECTED = ["owl", "cat", "dog", "owl", None]
FEATURES = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": list(NAMES)}}


def table(images=None, features=FEATURES):
    cells = [{"bytes": data, "path": None} for data in IMAGES]
    found = pa.table({"image": images or pa.array(cells), "label": pa.array(LABELS, pa.int64())})
    return found.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def stream(content, rows=3, kind=pa.ipc.new_stream):
    sink = io.BytesIO()
    with kind(sink, content.schema) as writer:
        writer.write_table(content, max_chunksize=rows)
    return sink.getvalue()


def save(folder, content, parts=2):
    """The files of datasets.Dataset.save_to_disk."""
    folder.mkdir(parents=True)
    names = [f"data-{number:05d}-of-{parts:05d}.arrow" for number in range(parts)]
    step = -(-content.num_rows // parts)
    for number, name in enumerate(names):
        (folder / name).write_bytes(stream(content.slice(number * step, step)))
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    (folder / "dataset_info.json").write_text(json.dumps({"features": FEATURES}))


def test_a_saved_dataset(tmp_path):
    save(tmp_path / "set", table())
    rows = read(tmp_path / "set")
    assert [(row.image, row.label) for row in rows] == list(zip(IMAGES, EXPECTED, strict=True))
    first = "data-00000-of-00002.arrow"
    assert [row.source for row in rows[:4]] == [f"{first}#0", f"{first}#1", f"{first}#2", "data-00001-of-00002.arrow#0"]
    source = open_source(str(tmp_path / "set"), Config())
    assert source.classes == NAMES
    assert source.info.notes == ["1 of 3 images have no label in column 'label'"] or source.info.notes == []


def test_a_saved_dictionary_of_splits(tmp_path):
    for split in ("train", "test"):
        save(tmp_path / "set" / split, table())
    (tmp_path / "set/dataset_dict.json").write_text(json.dumps({"splits": ["train", "test"]}))
    rows = read(tmp_path / "set")
    assert len(rows) == 10
    assert {(row.source.partition("/")[0], row.split) for row in rows} == {("train", "train"), ("test", "heldout")}


@pytest.mark.parametrize("kind", [pa.ipc.new_stream, pa.ipc.new_file])
def test_one_file(tmp_path, kind):
    (tmp_path / "set.arrow").write_bytes(stream(table(), kind=kind))
    assert [(row.image, row.label) for row in read(tmp_path / "set.arrow")] == list(zip(IMAGES, EXPECTED, strict=True))


def test_a_cut_file_keeps_the_rows_before_and_is_a_reject(tmp_path):
    save(tmp_path / "set", table(), parts=1)
    path = tmp_path / "set/data-00000-of-00001.arrow"
    path.write_bytes(path.read_bytes()[:-1500])
    *rows, last = read(tmp_path / "set")
    assert [row.image for row in rows] == IMAGES[:3]
    assert last.image.reason == "damaged-container"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match="no whole Arrow file"):
        read(path)


def parquet(path, content):
    pq.write_table(content, path)
    return path


PIXELS = [random_pixels(4, 5, 3, seed=number) for number in range(5)]
NESTED = pa.list_(pa.list_(pa.list_(pa.uint8())))


@pytest.mark.parametrize(
    "kind",
    [pa.binary(), pa.large_binary(), pa.binary_view(), pa.dictionary(pa.int32(), pa.binary()), pa.list_(pa.uint8())],
)
@pytest.mark.parametrize("form", ["parquet", "arrow"])
def test_encoded_images_in_every_type_of_column(tmp_path, kind, form):
    cells = [list(data) for data in IMAGES] if pa.types.is_list(kind) else IMAGES
    array = pa.array(IMAGES).dictionary_encode() if pa.types.is_dictionary(kind) else pa.array(cells, kind)
    content = table(array)
    path = tmp_path / f"set.{form}"
    path.write_bytes(stream(content)) if form == "arrow" else parquet(path, content)
    assert [(row.image, row.label) for row in read(path)] == list(zip(IMAGES, EXPECTED, strict=True))


def tensors():
    kind = pa.fixed_shape_tensor(pa.uint8(), (4, 5, 3))
    storage = pa.array([one.ravel().tolist() for one in PIXELS], pa.list_(pa.uint8(), 60))
    return pa.ExtensionArray.from_storage(kind, storage)


@pytest.mark.parametrize(
    "array",
    [
        pa.array([one.tolist() for one in PIXELS], NESTED),
        pa.array([one.transpose(2, 0, 1).tolist() for one in PIXELS], NESTED),
        pa.array([one.tolist() for one in PIXELS]),
        pa.array([one.tolist() for one in PIXELS], pa.list_(pa.list_(pa.list_(pa.uint8(), 3), 5), 4)),
        tensors(),
    ],
    ids=["lists", "channels first", "int64", "fixed size", "tensor"],
)
def test_pixels_in_lists(tmp_path, array):
    rows = read(parquet(tmp_path / "set.parquet", table(array)))
    np.testing.assert_array_equal([row.image for row in rows], PIXELS)
    assert [row.label for row in rows] == EXPECTED


def test_grey_pixels_and_cells_that_are_no_image(tmp_path):
    cells = [PIXELS[0][:, :, 0].tolist(), None, [[1, 2], [3]], [[256]], [[-1]]]
    rows = read(parquet(tmp_path / "set.parquet", table(pa.array(cells, pa.list_(pa.list_(pa.int16()))))))
    np.testing.assert_array_equal(rows[0].image, PIXELS[0][:, :, 0])
    assert [row.image.reason for row in rows[1:]] == ["empty", *["unsupported-mode"] * 3]


@pytest.mark.parametrize("nested", [False, True])
def test_several_images_in_a_row(tmp_path, nested):
    def cell(data):
        return {"bytes": data, "path": None} if nested else data

    lists = [[cell(IMAGES[0]), cell(IMAGES[1])], [cell(IMAGES[2])], [], None, [cell(None)]]
    rows = read(parquet(tmp_path / "set.parquet", table(pa.array(lists))))
    assert [(row.source, row.label) for row in rows] == [
        ("set.parquet#0/0", "owl"),
        ("set.parquet#0/1", "owl"),
        *((f"set.parquet#{number}", label) for number, label in enumerate(EXPECTED[1:], 1)),
    ]
    assert [row.image for row in rows[:3]] == IMAGES[:3]
    assert {row.image.reason for row in rows[3:]} == {"empty"}


def test_numbers_in_lists_are_no_images_beside_an_image(tmp_path):
    boxes = pa.array([[[1, 2, 3, 4]]] * 5)
    content = (
        table().append_column("boxes", boxes).append_column("vector", pa.array([[1, 2]] * 5, pa.list_(pa.uint8())))
    )
    assert [row.image for row in read(parquet(tmp_path / "set.parquet", content))] == IMAGES
    only = content.drop_columns(["image", "vector"])
    with pytest.raises(DataError, match="no column holds images"):
        read(parquet(tmp_path / "boxes.parquet", only))
    rows = read(parquet(tmp_path / "boxes.parquet", only), image_column="boxes")
    assert not any(isinstance(row.image, Reject) for row in rows)


def test_the_library_itself_writes_what_is_read(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=list(NAMES)))
    cells = [{"bytes": data, "path": None} for data in IMAGES]
    made = datasets.Dataset.from_dict({"image": cells, "label": LABELS}, features=features)
    datasets.DatasetDict(train=made, validation=made).save_to_disk(str(tmp_path / "set"))
    rows = read(tmp_path / "set")
    assert [(row.image, row.label) for row in rows] == 2 * list(zip(IMAGES, EXPECTED, strict=True))
    assert {row.split for row in rows} == {"train", "heldout"}
