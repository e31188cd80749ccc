"""Whatever is changed in a file, its source tells it in rows or in one DataError: nothing else is raised, or hangs."""

import gzip
import io

import corpus
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import DataError

pytestmark = pytest.mark.property
ONE, TWO = corpus.encoded(corpus.photo()), corpus.encoded(corpus.photo(1))


def saved(write):
    buffer = io.BytesIO()
    write(buffer)
    return buffer.getvalue()


TABLE = pa.table({"image": [ONE, TWO, None, ONE], "label": ["a", "b", "c", None]})
IDX = bytes([0, 0, 8, 3]) + b"\0\0\0\4\0\0\0\5\0\0\0\5" + bytes(100)
TAR = corpus.tar_of([("1.png", ONE), ("1.cls", b"3"), ("b/2.png", TWO), ("x" * 150, ONE)])
WHOLE = {
    "a.tar": TAR,
    "a.tgz": gzip.compress(TAR),
    "a.zip": corpus.zip_of({"a/1.png": ONE, "b/2.png": TWO, "c.txt": b"x"}),
    "a.parquet": saved(lambda file: pq.write_table(TABLE, file, row_group_size=2)),
    "a.npz": saved(lambda file: np.savez(file, x=np.zeros((4, 5, 5), np.uint8), y=np.arange(4))),
    "b.npz": saved(lambda file: np.savez_compressed(file, x=np.zeros((4, 5, 5), np.uint8), y=np.arange(4))),
    "a-images-idx3-ubyte": IDX,
    "a-images-idx3-ubyte.gz": gzip.compress(IDX),
    "a.csv": b'path,label\n1.png,a\n"2.png",b\n',
    "a.jsonl": b'{"path":"1.png","label":1}\n{"path":"2.png"}\n',
}
PLACES = st.floats(0, 1, exclude_max=True)
EDITS = st.one_of(
    st.tuples(st.just("put"), PLACES, st.binary(min_size=1, max_size=4)),
    st.tuples(st.just("put"), PLACES, st.sampled_from([b"\xff\xff\xff\xff", bytes(4), b"\x7f\xff\xff\xff"])),
    st.tuples(st.just("insert"), PLACES, st.binary(min_size=1, max_size=600)),
    st.tuples(st.just("cut"), PLACES, st.just(b"")),
)


def edited(data, edits):
    for kind, place, new in edits:
        start = int(place * len(data))
        stop = {"put": start + len(new), "insert": start, "cut": len(data)}[kind]
        data = data[:start] + new + data[stop:]
    return data


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("damage")
    (folder / "1.png").write_bytes(ONE)
    (folder / "2.png").write_bytes(TWO)
    return folder


@given(name=st.sampled_from(sorted(WHOLE)), edits=st.lists(EDITS, min_size=1, max_size=8))
@settings(max_examples=400)
def test_damage_is_told(folder, name, edits):
    path = folder / name
    path.write_bytes(edited(WHOLE[name], edits))
    try:
        rows = corpus.read(path)
    except DataError:
        return
    assert all(isinstance(row.image, bytes | np.ndarray) or row.image.detail for row in rows)


@pytest.mark.parametrize("name", WHOLE)
def test_without_damage_every_image_is_there(folder, name):
    path = folder / name
    path.write_bytes(WHOLE[name])
    images = [row for row in corpus.read(path) if corpus.outcome(row) == "image"]
    assert len(images) == {"csv": 2, "jsonl": 2, "npz": 4, "gz": 4, "a-images-idx3-ubyte": 4}.get(
        name.split(".")[-1], 3
    )
