"""The same 200 labelled images give the same labels, content hashes and split, however they are packed."""

import gzip
import io
import json
import struct

import corpus
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, Features, Image
from tiny_ingest import pixels_of, rows_of, sha256_of, without_ray

from pipeline.images.png import encode_png
from pipeline.ingest.driver import ingest
from pipeline.ingest.partitioning import is_heldout
from tiny import config

pytestmark = pytest.mark.unit
COUNT = 200
CLASSES = ("ant", "bee", "cow")
LABELS = [CLASSES[number % 7 % 3] for number in range(COUNT)]
NUMBERS = [CLASSES.index(label) for label in LABELS]
PNGS = [encode_png(pixels_of(number)) for number in range(COUNT)]
MAP = {str(number): name for number, name in enumerate(CLASSES)}


def named():
    """Paths in folders of classes."""
    return {f"{label}/{number:04d}.png": data for number, (label, data) in enumerate(zip(LABELS, PNGS, strict=True))}


def put(folder, files):
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def as_folder(source):
    put(source, named())


def as_zip(source):
    source.write_bytes(corpus.zip_of(named()))


def as_tar(source):
    source.write_bytes(corpus.tar_of(named().items()))


def as_tar_gz_of_a_folder(source):
    source.write_bytes(gzip.compress(corpus.tar_of((f"photos/{name}", data) for name, data in named().items())))


def samples(more):
    """Members of WebDataset shards: an image and the members that `more` gives by number."""
    for number, data in enumerate(PNGS):
        yield f"{number:09d}.png", data
        yield from ((f"{number:09d}.{extension}", text.encode()) for extension, text in more(number).items())


def as_webdataset(source):
    source.write_bytes(corpus.tar_of(samples(lambda number: {"cls": str(NUMBERS[number])})))


def as_img2dataset(source):
    """A caption differs from image to image; the label is a field of the JSON."""

    def more(number):
        fields = {"caption": f"photo {number}", "key": f"{number:09d}", "status": "success", "label": LABELS[number]}
        return {"txt": f"photo {number}", "json": json.dumps(fields)}

    table = io.BytesIO()
    pq.write_table(pa.table({"url": ["u"] * COUNT, "key": [f"{n:09d}" for n in range(COUNT)]}), table)
    shard = corpus.tar_of(samples(more))
    put(source, {"00000.tar": shard, "00000.parquet": table.getvalue(), "00000_stats.json": b'{"count": 200}'})


def chunked():
    """The layout of StyleGAN and EDM."""
    names = [f"{number // 100:05d}/img{number:08d}.png" for number in range(COUNT)]
    labels = {"labels": [[name, number] for name, number in zip(names, NUMBERS, strict=True)]}
    return dict(zip(names, PNGS, strict=True)) | {"dataset.json": json.dumps(labels).encode()}


def as_edm_zip(source):
    source.write_bytes(corpus.zip_of(chunked()))


def as_edm_tar(source):
    source.write_bytes(corpus.tar_of(chunked().items()))


def as_stylegan_folder(source):
    put(source, chunked())


def hugging_face():
    images = [{"bytes": data, "path": f"{number}.png"} for number, data in enumerate(PNGS)]
    features = Features({"image": Image(), "label": ClassLabel(names=list(CLASSES))})
    return Dataset.from_dict({"image": images, "label": NUMBERS}, features=features)


def as_hugging_face_parquet(source):
    source.mkdir()
    hugging_face().to_parquet(source / "train-00000.parquet")


def as_arrow_folder(source):
    hugging_face().save_to_disk(source)


def flat():
    return {f"files/{number:04d}.png": data for number, data in enumerate(PNGS)}


def as_csv(source):
    """pandas writes the numbers of a column with gaps as decimals."""
    lines = ["image_path,class_id", *(f"{name},{float(label)}" for name, label in zip(flat(), NUMBERS, strict=True))]
    put(source.parent, flat() | {"source": "\n".join(lines).encode()})


def as_json_lines(source):
    lines = [json.dumps({"path": name, "label": label}) for name, label in zip(flat(), LABELS, strict=True)]
    put(source.parent, flat() | {"source": "\n".join(lines).encode()})


def as_metadata_folder(source):
    names = [f"{number:04d}.png" for number in range(COUNT)]
    fields = [{"file_name": name, "label": label} for name, label in zip(names, LABELS, strict=True)]
    lines = "\n".join(map(json.dumps, fields)).encode()
    put(source, dict(zip(names, PNGS, strict=True)) | {"metadata.jsonl": lines})


def as_metadata_csv(source):
    names = [f"{number:04d}.png" for number in range(COUNT)]
    lines = ["file_name,species", *(f"{name},{label}" for name, label in zip(names, LABELS, strict=True))]
    put(source, dict(zip(names, PNGS, strict=True)) | {"metadata.csv": "\n".join(lines).encode()})


def as_npz(source):
    buffer = io.BytesIO()
    np.savez(buffer, images=np.stack([pixels_of(n) for n in range(COUNT)]), labels=np.array(NUMBERS)[:, None])
    source.write_bytes(buffer.getvalue())


def idx(array):
    return struct.pack(">I", 0x0800 | array.ndim) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def as_idx(source):
    images = np.stack([pixels_of(number)[:, :, 0] for number in range(COUNT)])
    labels = np.array(NUMBERS, np.uint8)
    put(source, {"train-images-idx3-ubyte": idx(images), "train-labels-idx1-ubyte": idx(labels)})


PACKINGS = [value for name, value in globals().items() if name.startswith("as_")]


@pytest.mark.parametrize("packing", PACKINGS)
def test_labels_content_and_split_do_not_depend_on_the_packing(tmp_path, monkeypatch, packing):
    without_ray(monkeypatch)
    source = tmp_path / "in" / "source"
    source.parent.mkdir()
    packing(source)
    settings = config(ingest={"image_size": 8, "channels": 1})
    found = ingest(settings, str(source), str(tmp_path / "out"))
    manifest, rows = rows_of(found["uri"])
    assert (len(rows), found["rejects"], found["classes"]) == (COUNT, {}, 3)
    assert f"labels: 3 classes from {manifest.label_source}" in found["summary"]
    names = [MAP.get(name, name) for name in manifest.classes]
    assert {row["sha256"]: names[row["label"]] for row in rows} == {sha256_of(n): LABELS[n] for n in range(COUNT)}
    heldout = {row["sha256"] for row in rows[found["train"] :]}
    assert heldout == {sha256_of(n) for n in range(COUNT) if is_heldout(sha256_of(n), settings.ingest.heldout_share)}
