"""Tables: choice of columns, class names, damaged rows, lists of URIs."""

import json

import corpus
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, Features, Image

from pipeline.config.ingest import IngestConfig
from pipeline.config.root import Config
from pipeline.errors import DataError
from pipeline.ingest.sources.labels import class_names
from pipeline.ingest.sources.open import open_source

pytestmark = pytest.mark.unit
IMAGES = [corpus.encoded(corpus.photo(n)) for n in range(5)]


def saved(folder, table, **options):
    pq.write_table(table, folder / "a.parquet", **options)
    return folder / "a.parquet"


def labels(rows):
    return [row.label for row in rows]


def test_hugging_face_keeps_class_names(tmp_path):
    features = Features({"image": Image(), "label": ClassLabel(names=["cat", "dog", "größe"])})
    images = [{"bytes": data, "path": f"{n}.png"} for n, data in enumerate(IMAGES)]
    made = Dataset.from_dict({"image": images, "label": [2, 0, 1, -1, None]}, features=features)
    made.to_parquet(tmp_path / "a.parquet")
    rows = corpus.read(tmp_path / "a.parquet")
    assert [row.image for row in rows] == IMAGES
    assert labels(rows) == ["größe", "cat", "dog", None, None]
    assert [row.source for row in rows] == [f"a.parquet#{n}" for n in range(5)]
    assert open_source(str(tmp_path), Config()).classes == ("cat", "dog", "größe")


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary_view()])
def test_nulls_and_empty_bytes(tmp_path, kind):
    table = pa.table({"img": pa.array([IMAGES[0], None, b"", IMAGES[1]], kind), "class": ["a", "b", None, ""]})
    rows = corpus.read(saved(tmp_path, table))
    assert [corpus.outcome(row) for row in rows] == ["image", "empty", "image", "image"]
    assert [row.image for row in rows if corpus.outcome(row) == "image"] == [IMAGES[0], b"", IMAGES[1]]
    assert labels(rows) == ["a", "b", None, None]
    nested = [{"bytes": IMAGES[0], "path": "a"}, {"bytes": None, "path": "../../etc/passwd"}, None]
    rows = corpus.read(saved(tmp_path, pa.table({"image": nested})))
    assert [corpus.outcome(row) for row in rows] == ["image", "empty", "empty"]


def test_columns_are_chosen_by_name_when_several_fit(tmp_path):
    table = pa.table(
        {"thumb": IMAGES, "image": IMAGES[::-1], "fine": ["a"] * 5, "label": pa.array([1] * 5).cast("int8")}
    )
    path = saved(tmp_path, table)
    assert [row.image for row in corpus.read(path)] == IMAGES[::-1]
    assert labels(corpus.read(path)) == ["1"] * 5
    rows = corpus.read(path, image_column="thumb", label_column="fine")
    assert [row.image for row in rows] == IMAGES
    assert labels(rows) == ["a"] * 5
    for wrong in ({"label_column": "thumb"}, {"image_column": "nope"}):
        with pytest.raises(DataError, match="no column"):
            corpus.read(path, **wrong)
    dictionary = pa.table({"image": IMAGES, "label": pa.array(["a", "b", "a", None, "b"]).dictionary_encode()})
    assert labels(corpus.read(saved(tmp_path, dictionary))) == ["a", "b", "a", None, "b"]


def test_rows_after_the_damage_are_rejected_one_by_one(tmp_path):
    path = saved(
        tmp_path, pa.table({"image": IMAGES * 20}), row_group_size=20, use_dictionary=False, compression="none"
    )
    data = bytearray(path.read_bytes())
    third = pq.ParquetFile(path).metadata.row_group(2).column(0).data_page_offset
    data[third : third + 40] = bytes(40)
    path.write_bytes(bytes(data))
    found = [corpus.outcome(row) for row in corpus.read(path)]
    assert found == ["image"] * 40 + ["damaged-container"] * 60


def test_a_large_file_is_cut_at_row_groups(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.ingest.sources.parquet._WHOLE_BYTES", 100)
    path = saved(tmp_path, pa.table({"image": IMAGES * 20}), row_group_size=8)
    source = open_source(str(path), Config(ingest=IngestConfig(partition_rows=20)))
    parts = list(source.partitions())
    assert [part.rows for part in parts] == [range(24 * n, min(24 * n + 24, 100)) for n in range(5)]
    rows = [row for part in parts for row in source.rows(part)]
    assert [row.source for row in rows] == [f"a.parquet#{n}" for n in range(100)]
    assert [row.image for row in rows] == IMAGES * 20


def test_integer_labels_keep_their_number_and_names_are_sorted():
    assert class_names({"2", "0", "10"}) == tuple(str(n) for n in range(11))
    assert class_names({"cat", "b", "10"}) == ("10", "b", "cat")
    assert class_names({"01", "2"}) == ("01", "2")
    assert class_names({"7", "123456789"}) == ("123456789", "7")
    assert class_names(set()) is None
    assert class_names({"a", "z", "b"}, ("z", "y")) == ("z", "y", "a", "b")


# --- lists -----------------------------------------------------------------------------------------------------------


def pictures(folder):
    for number, data in enumerate(IMAGES):
        (folder / f"{number}.png").write_bytes(data)


def listed(folder, text, name="list.csv"):
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return corpus.read(folder / name)


def test_lists_in_every_format(tmp_path):
    pictures(tmp_path)
    expected = [("0.png", IMAGES[0], "a"), ("1.png", IMAGES[1], "b, c"), ("2.png", IMAGES[2], None)]
    for text in (
        'path,label\n0.png,a\n1.png,"b, c"\n2.png,\n',
        '\ufeffFile_Name,Label\r\n0.png,a\r\n1.png,"b, c"\r\n2.png,\r\n',
        "label\turi\na\t0.png\nb, c\t1.png\n\t2.png\n",
        "url;class\n0.png;a\n1.png;b, c\n2.png;\n",
        '{"uri": "0.png", "label": "a"}\n\n{"uri": "1.png", "label": "b, c"}\n{"uri": "2.png"}',
    ):
        assert [(row.source, row.image, row.label) for row in listed(tmp_path, text)] == expected, text


def test_unsafe_uris_are_rejected(tmp_path):
    pictures(tmp_path)
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "folder").mkdir()
    uris = [
        "../0.png",
        "a//0.png",
        f"file://{tmp_path}/2.png",
        "./x/./0.png",
        "gone.png",
        "folder",
        str(tmp_path / "1.png"),
        "/dev/zero",
        "http://example.org/a.png",
    ]
    rows = listed(tmp_path / "inner", "path\n" + "\n".join(uris))
    assert [corpus.outcome(row) for row in rows] == [
        "unsafe-name",
        "unsafe-name",
        "image",
        "unsafe-name",
        "missing",
        "missing",
        "image",
        "missing",
        "unreadable",
    ]


@pytest.mark.s3
def test_a_list_in_a_bucket_names_no_local_files(tmp_path, s3_uri):
    pictures(tmp_path)
    from pipeline.config.storage import StorageConfig
    from pipeline.storage.store import resolve

    store = resolve(s3_uri, StorageConfig())
    store.put("a/0.png", IMAGES[0])
    uris = [str(tmp_path / "0.png"), f"file://{tmp_path}/0.png", f"{s3_uri}/a/0.png", "a/0.png", "a/1.png"]
    uris += [f"{s3_uri}/a//0.png", "s3://no-such-bucket-here/a/0.png"]
    store.put("list.jsonl", "\n".join(json.dumps({"path": uri, "label": 3}) for uri in uris).encode())
    rows = corpus.read(f"{s3_uri}/list.jsonl")
    assert [corpus.outcome(row) for row in rows] == [
        "unsafe-name",
        "unsafe-name",
        "image",
        "image",
        "missing",
        "unsafe-name",
        "missing",
    ]


def test_bad_lines_and_repeated_uris_are_rows(tmp_path):
    pictures(tmp_path)
    rows = listed(tmp_path, "path,label\n0.png,a\n0.png,a,b\n,c\n0.png,a\n")
    assert [corpus.outcome(row) for row in rows] == ["image", "wrong-schema", "wrong-schema", "image"]
    lines = ['{"path": "0.png"}', '{"path": 7}', "{oops", "[1]", '{"path": "1.png"}']
    rows = listed(tmp_path, "\n".join(lines), "list.jsonl")
    assert [corpus.outcome(row) for row in rows] == ["image", *["wrong-schema"] * 3, "image"]
    with pytest.raises(DataError, match="not a list in UTF-8"):
        listed(tmp_path, b"path,label\n0.png,a\n" + b"x" * 9000 + b"\xff\xfe,b\n")


def test_a_listed_file_over_the_size_limit_is_not_read_whole(tmp_path):
    with open(tmp_path / "sparse.png", "wb") as file:
        file.truncate(2**40)
    assert [corpus.outcome(row) for row in listed(tmp_path, "path\nsparse.png\n")] == ["too-many-bytes"]
