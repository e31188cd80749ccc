"""A dataset made by ingest as a source: it yields the images of its manifest and no other file of the folder."""

import corpus
import pytest
from tiny_ingest import rows_of, without_ray

from pipeline.config.root import Config
from pipeline.errors import DataError
from pipeline.ingest.driver import ingest
from pipeline.ingest.sources.open import open_source
from tiny import config

pytestmark = pytest.mark.unit


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    without_ray(monkeypatch)
    source = tmp_path / "source"
    for number in range(40):
        path = source / ("cat", "dog", "größe")[number % 3] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(corpus.encoded(corpus.photo(number)))
    (source / "cat" / "bad.png").write_bytes(b"")
    ingest(config(ingest={"channels": 3}), str(source), str(tmp_path / "dataset"))
    return tmp_path / "dataset"


def test_a_round_trip_keeps_pixels_and_class_names(dataset, tmp_path):
    ingest(config(ingest={"channels": 3}), str(dataset), str(tmp_path / "again"))
    (before, rows), (after, again) = rows_of(str(dataset)), rows_of(str(tmp_path / "again"))
    assert after.classes == before.classes == ("cat", "dog", "größe")
    assert not after.reject_counts

    def content(rows):
        return {(row["sha256"], row["label"]) for row in rows}

    assert content(again) == content(rows)
    assert len(again) == len(rows) == 40
    heldout = [
        {row["sha256"] for row in found[made.rows("train") :]} for made, found in ((before, rows), (after, again))
    ]
    assert heldout[0] == heldout[1]


def test_only_named_shards_are_read(dataset):
    (dataset / "data" / "leftover.parquet").write_bytes(b"PAR1")
    rows = corpus.read(dataset)
    assert len(rows) == 40
    assert {row.source.partition("/")[0] for row in rows} == {"data"}
    assert {row.label for row in rows} == {"cat", "dog", "größe"}
    assert open_source(str(dataset), Config()).classes == ("cat", "dog", "größe")


def test_a_foreign_manifest_is_ignored_and_a_damaged_one_is_an_error(dataset, tmp_path):
    for text in ('{"name": "a web page"}', "[1]", "not json"):
        folder = tmp_path / "pictures"
        folder.mkdir(exist_ok=True)
        (folder / "manifest.json").write_text(text)
        (folder / "1.png").write_bytes(corpus.encoded(corpus.photo()))
        assert [corpus.outcome(row) for row in corpus.read(folder)] == ["image", "image"]
    (dataset / "manifest.json").write_text('{"kind": "dataset"}')
    with pytest.raises(DataError, match="is not a DatasetManifest"):
        corpus.read(dataset)
