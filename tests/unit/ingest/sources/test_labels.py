"""Where labels and splits come from: candidates, refusals, warnings, and the settings that choose."""

import gzip
import io
import json

import corpus
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config.ingest import IngestConfig
from pipeline.config.root import Config
from pipeline.errors import ConfigError, DataError
from pipeline.ingest.sources.labels import Candidate, choose, label_from_value, looks_like_classes
from pipeline.ingest.sources.open import open_source
from pipeline.ingest.sources.splits import roles_of, split_in_name

pytestmark = pytest.mark.unit
PNGS = [corpus.encoded(corpus.photo(number)) for number in range(12)]


def put(folder, files):
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return folder


def opened(uri, **settings):
    return open_source(str(uri), Config(ingest=IngestConfig(**settings)))


def found(uri, **settings):
    """Label and split of every row that is an image, by the last part of its name."""
    rows = corpus.read(uri, **settings)
    assert {corpus.outcome(row) for row in rows} == {"image"}
    return {row.source.rpartition("/")[2]: (row.label, row.split) for row in rows}


def labels(uri, **settings):
    return {name: label for name, (label, _) in found(uri, **settings).items()}


def table(path, **columns):
    pq.write_table(pa.table({"image": PNGS[: len(next(iter(columns.values())))], **columns}), path)
    return path


# --- the choice ------------------------------------------------------------------------------------------------------


def candidate(source, values, **more):
    return Candidate(source, source, tuple(values), **more)


def test_candidates_that_agree_need_no_choice_and_others_are_refused():
    numbers, names, other = "0011", ("cat", "cat", "dog", "dog"), ("a", "b", "a", "b")
    choice = choose("x", [candidate("cls", numbers), candidate("folders", names)], IngestConfig())
    assert (choice.source, choice.values) == ("cls", tuple(numbers))
    assert "folders: --ingest.label_source folders would use them" in choice.notes[0]
    both = [candidate("metadata", names, column="kind"), candidate("folders", other)]
    with pytest.raises(ConfigError, match=r"disagree: choose metadata .* or folders .* or --ingest.label_source none"):
        choose("x", both, IngestConfig())
    assert choose("x", both, IngestConfig(label_source="folders")).values == other
    assert choose("x", both, IngestConfig(label_column="kind")).values == names
    assert choose("x", both, IngestConfig(label_source="none")).candidate is None
    with pytest.raises(ConfigError, match=r"ingest\.label_source=text: x has no such labels\. It has metadata"):
        choose("x", both, IngestConfig(label_source="text"))


def test_doubtful_candidates_are_named_and_used_only_by_choice():
    captions = candidate("text", ("one", "two", None), doubt="captions")
    choice = choose("x", [captions], IngestConfig())
    assert (choice.candidate, choice.notes) == (
        None,
        ("labels could also come from text (captions): --ingest.label_source text would use them",),
    )
    assert choose("x", [captions], IngestConfig(label_source="text")).candidate == captions


def test_images_without_a_label_are_counted():
    (note,) = choose("x", [candidate("cls", ("a", None, "b", "a"))], IngestConfig()).notes
    assert note == "1 of 4 images have no label in cls"


@pytest.mark.parametrize(
    ("value", "label"),
    [(0.0, "0"), (2.0, "2"), (1.5, "1.5"), (float("nan"), None), (-1.0, None), (-1, None), (None, None), (b"x", "x")],
)
def test_values(value, label):
    assert label_from_value(value) == label


def test_a_number_without_a_name_is_an_error():
    with pytest.raises(ValueError, match="label 3 is beyond the 2 class names a, b"):
        label_from_value(3, ("a", "b"))


def test_captions_are_no_classes():
    assert looks_like_classes(["a", "b", "a", "b"])
    assert not looks_like_classes(["a", "b", "c"])
    assert not looks_like_classes([None])


# --- paths -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("root", ["", "photos/"])
def test_a_folder_around_a_tar_archive_is_no_class(tmp_path, root):
    names = [f"{root}{label}/{number}.png" for number, label in enumerate(["cat", "dog", "cat"])]
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(corpus.tar_of(zip(names, PNGS, strict=False))))
    assert labels(tmp_path / "a.tar.gz") == {"0.png": "cat", "1.png": "dog", "2.png": "cat"}
    assert opened(tmp_path / "a.tar.gz").classes == ("cat", "dog")


def test_a_folder_in_each_of_several_tar_archives_is_a_class(tmp_path):
    for label in ("cat", "dog"):
        put(tmp_path, {f"{label}.tar": corpus.tar_of([(f"{label}/{label}.png", PNGS[0])])})
    assert labels(tmp_path) == {"cat.png": "cat", "dog.png": "dog"}
    assert labels(tmp_path, label_source="none") == {"cat.png": None, "dog.png": None}


def test_numbered_folders_are_no_classes_unless_chosen(tmp_path):
    put(tmp_path, {"00000/a.png": PNGS[0], "01000/b.png": PNGS[1]})
    assert labels(tmp_path) == {"a.png": None, "b.png": None}
    assert "--ingest.label_source folders" in opened(tmp_path).info.notes[0]
    assert labels(tmp_path, label_source="folders") == {"a.png": "00000", "b.png": "01000"}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"labels": [["a.png", 1], ["b.png", 0]]}, ("1", "0")),
        ({"labels": {"a.png": 1, "b.png": 0}}, ("1", "0")),
        ({"labels": [["a.png", [0, 1]], ["b.png", [1, 0]]]}, ("1", "0")),
        ({"labels": [["a.png", [0.5, 1.5]], ["b.png", [1, 0]]]}, (None, None)),
        ({"labels": None}, (None, None)),
        ([], (None, None)),
    ],
)
def test_forms_of_dataset_json(tmp_path, content, expected):
    put(tmp_path, {"a.png": PNGS[0], "b.png": PNGS[1], "dataset.json": json.dumps(content)})
    assert labels(tmp_path) == dict(zip(("a.png", "b.png"), expected, strict=True))


def test_metadata_in_split_folders_and_two_columns(tmp_path):
    lines = [json.dumps({"file_name": f"{n}.png", "fine": "x", "label": "ab"[n % 2], "text": "free"}) for n in range(3)]
    put(tmp_path, {f"{split}/{n}.png": PNGS[n] for split in ("train", "test") for n in range(3)})
    put(tmp_path, {f"{split}/metadata.jsonl": "\n".join(lines) for split in ("train", "test")})
    rows = {row.source: (row.label, row.split) for row in corpus.read(tmp_path)}
    assert rows == {
        f"{folder}/{n}.png": ("ab"[n % 2], split)
        for folder, split in (("train", "train"), ("test", "heldout"))
        for n in range(3)
    }
    (tmp_path / "train" / "metadata.jsonl").write_text(
        "\n".join(json.dumps({"file_name": f"{n}.png", "label": "ab"[n % 2], "breed": "aab"[n]}) for n in range(3))
    )
    with pytest.raises(ConfigError, match=r"'label' .* or metadata.jsonl, field 'breed' .*--ingest.label_column breed"):
        opened(tmp_path)


# --- tables ----------------------------------------------------------------------------------------------------------


def test_two_label_columns_are_refused_unless_one_is_chosen(tmp_path):
    path = table(tmp_path / "a.parquet", fine_label=[0, 1, 2, 3], coarse_label=[0, 0, 1, 1])
    with pytest.raises(ConfigError, match=r"--ingest.label_column fine_label.*--ingest.label_column coarse_label"):
        opened(path)
    assert list(labels(path, label_column="coarse_label").values()) == ["0", "0", "1", "1"]
    assert set(labels(path, label_source="none").values()) == {None}


def test_decimal_labels(tmp_path):
    path = table(tmp_path / "a.parquet", label=pa.array([0.0, None, 2.0, 1.0]))
    assert list(labels(path).values()) == ["0", None, "2", "1"]
    put(tmp_path, {"0.png": PNGS[0], "1.png": PNGS[1], "2.png": PNGS[2], "3.png": PNGS[3]})
    put(tmp_path, {"a.csv": "file_name,label\n0.png,0.0\n1.png,\n2.png,1.0\n3.png,-1.0\n"})
    assert list(labels(tmp_path / "a.csv").values()) == ["0", None, "1", None]
    put(tmp_path, {"b.csv": "file_name,label\n0.png,0.5\n1.png,1.0\n2.png,01\n3.png,x\n"})
    assert list(labels(tmp_path / "b.csv").values()) == ["0.5", "1.0", "01", "x"]


def test_a_class_number_beyond_the_names_is_rejected(tmp_path):
    features = {"label": {"_type": "ClassLabel", "names": ["a", "b"]}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    made = pa.table({"image": PNGS[:3], "label": [0, 2, 1]}).replace_schema_metadata(metadata)
    pq.write_table(made, tmp_path / "a.parquet")
    rows = corpus.read(tmp_path / "a.parquet")
    assert [row.label for row in rows] == ["a", None, "b"]
    assert rows[1].image.reason == "unknown-label"
    assert "label 2 is beyond the 2 class names" in rows[1].image.detail


def test_a_list_whose_columns_are_not_found_names_them_and_the_flags(tmp_path):
    put(tmp_path, {"a.csv": "nr,where,what\n0,0.png,cat\n", "0.png": PNGS[0]})
    with pytest.raises(DataError, match=r"nr, where, what: --ingest.image_column .* --ingest.label_column"):
        opened(tmp_path / "a.csv")
    assert labels(tmp_path / "a.csv", image_column="where", label_column="what") == {"0.png": "cat"}
    with pytest.raises(ConfigError, match=r"ingest\.label_column=species"):
        opened(tmp_path / "a.csv", image_column="where", label_column="species")


def test_a_table_of_names_beside_tables_of_images_is_left_out(tmp_path):
    table(tmp_path / "b.parquet", label=["a"] * 3)
    pq.write_table(pa.table({"url": ["x"]}), tmp_path / "a-index.parquet")
    assert set(labels(tmp_path).values()) == {"a"}
    assert opened(tmp_path).info.left_out == ("a-index.parquet",)
    assert "a-index.parquet" in opened(tmp_path).info.notes[-1]


# --- splits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "settings", "roles"),
    [
        (["train", "val", "test"], "auto", {"train": "train", "val": "heldout", "test": "out"}),
        (["train", "test"], "auto", {"train": "train", "test": "heldout"}),
        (["Training", "validation"], "auto", {"Training": "train", "validation": "heldout"}),
        (["train"], "auto", {"train": "train"}),
        (["train", "test"], "pool", {"train": "train", "test": "train"}),
        (["train", "test"], "none", {}),
        (["train", "car", "bus"], "auto", {}),
        (["val", "test"], "auto", {}),
        (["train", None], "auto", {}),
        (["a", "b"], {"a": "train", "b": "heldout", "c": "out"}, {"a": "train", "b": "heldout"}),
    ],
)
def test_roles(names, settings, roles):
    assert dict(roles_of(names, IngestConfig(splits=settings), "x")) == roles


def test_none_of_the_command_line_is_a_value():
    assert IngestConfig(splits=None, label_source=None) == IngestConfig(splits="none", label_source="none")


def test_words_in_names():
    names = ["data/train-00000-of-00002.parquet", "x_test", "t10k-images-idx3-ubyte", "cars_val.tar", "trained.tar"]
    assert [split_in_name(name) for name in names] == ["train", "test", "t10k", "val", None]


FILES = {
    f"{split}/{label}/{label}{split}.png": PNGS[0] for split in ("train", "val", "test") for label in ("cat", "dog")
}
EXPECTED = {
    f"{label}{split}.png": (label, role)
    for split, role in (("train", "train"), ("val", "heldout"))
    for label in ("cat", "dog")
}


@pytest.mark.parametrize("kind", ["folder", "zip", "tar", "zip of a folder", "tar of a folder"])
def test_folders_of_splits(tmp_path, kind):
    files = {f"photos/{name}": data for name, data in FILES.items()} if "of a folder" in kind else FILES
    source = tmp_path / "a"
    if kind == "folder":
        put(source, files)
    else:
        source.write_bytes(corpus.zip_of(files) if kind.startswith("zip") else corpus.tar_of(files.items()))
    assert found(source) == EXPECTED
    assert set(opened(source).classes) == {"cat", "dog"}
    assert "split test is left out" in opened(source).info.notes[-1]
    pooled = found(source, splits="pool")
    assert (len(pooled), {split for _, split in pooled.values()}) == (6, {None})
    mapped = found(source, splits={"train": "train", "val": "train", "test": "heldout"})
    assert mapped["cattest.png"] == ("cat", "heldout")
    with pytest.raises(ConfigError, match=r"ingest\.splits says nothing about test"):
        opened(source, splits={"train": "train", "val": "out"})


def test_names_of_splits_can_be_classes(tmp_path):
    put(tmp_path, {"train/a.png": PNGS[0], "test/b.png": PNGS[1]})
    assert found(tmp_path, splits="none") == {"a.png": ("train", None), "b.png": ("test", None)}
    with pytest.raises(ConfigError, match="names no splits"):
        opened(put(tmp_path / "x", {"cat.png": PNGS[0]}), splits={"train": "train"})


def test_a_column_of_splits(tmp_path):
    splits, expected = ["train", "train", "val", "test"], ["train", "train", "heldout"]
    path = table(tmp_path / "a.parquet", label=["a", "b", "a", "b"], split=splits)
    assert [split for _, split in found(path).values()] == expected
    lines = [json.dumps({"path": f"{n}.png", "label": "a", "split": split}) for n, split in enumerate(splits)]
    put(tmp_path, {f"{n}.png": PNGS[n] for n in range(4)} | {"a.jsonl": "\n".join(lines)})
    assert [split for _, split in found(tmp_path / "a.jsonl").values()] == expected


def test_file_names_of_splits(tmp_path):
    for name in ("train-00000-of-00001", "validation-00000-of-00001", "test-00000-of-00001"):
        table(tmp_path / f"{name}.parquet", label=["a", "b"])
    rows = found(tmp_path)
    assert {(name.partition("-")[0], split) for name, (_, split) in rows.items()} == {
        ("train", "train"),
        ("validation", "heldout"),
    }


def test_arrays_of_splits(tmp_path):
    buffer = io.BytesIO()
    arrays = {
        f"{split}_images": corpus.random_pixels(3, 4, 4, 3, seed=n) for n, split in enumerate(("train", "val", "test"))
    }
    np.savez(
        buffer,
        **arrays,
        **{f"{split}_labels": np.array([[0], [1], [1]], np.uint8) for split in ("train", "val", "test")},
    )
    (tmp_path / "a.npz").write_bytes(buffer.getvalue())
    rows = corpus.read(tmp_path / "a.npz")
    assert [(row.source.partition("#")[2], row.label, row.split) for row in rows] == [
        (f"{split}_images/{number}", "011"[number], role)
        for split, role in (("train", "train"), ("val", "heldout"))
        for number in range(3)
    ]


# --- WebDataset ------------------------------------------------------------------------------------------------------


def test_keys_with_dots(tmp_path):
    members = [
        (f"scan.{n:04d}.{end}", data) for n in range(6) for end, data in (("png", PNGS[n]), ("cls", b"%d" % (n % 3)))
    ]
    (tmp_path / "a.tar").write_bytes(corpus.tar_of(members))
    rows = corpus.read(tmp_path / "a.tar")
    assert [row.label for row in rows] == list("012012")


def test_tables_and_statistics_beside_archives_are_left_out(tmp_path):
    for number in range(2):
        stem = f"{number:05d}"
        put(
            tmp_path,
            {f"{stem}.tar": corpus.tar_of([(f"{stem}.png", PNGS[0]), (f"{stem}.txt", b"a caption %d" % number)])},
        )
        put(tmp_path, {f"{stem}_stats.json": "{}"})
        pq.write_table(pa.table({"url": ["u"], "caption": ["c"]}), tmp_path / f"{stem}.parquet")
    assert list(labels(tmp_path).values()) == [None, None]
    info = opened(tmp_path).info
    assert (info.kind, len(info.left_out)) == ("WebDataset (tar)", 4)
    assert "--ingest.label_source text" in info.notes[0]
