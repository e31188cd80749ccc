"""Renaming of labels by a mapping in the settings or in a file."""

import corpus
import pytest
from tiny_ingest import rows_of, without_ray

from pipeline.config.ingest import IngestConfig
from pipeline.config.root import Config
from pipeline.errors import ConfigError
from pipeline.ingest.driver import ingest
from pipeline.ingest.sources.label_map import with_label_map
from pipeline.ingest.sources.open import open_source
from tiny import config

pytestmark = pytest.mark.unit
GOOD = corpus.encoded(corpus.photo())


@pytest.fixture
def source(tmp_path):
    for name in ("cat/1.png", "kitten/2.png", "dog/3.png", "fish/4.png", "5.png"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(GOOD)
    (tmp_path / "in" / "fish" / "6.png").symlink_to("nowhere")
    return tmp_path / "in"


NAMES = {"dog": "hound", "cat": "feline", "kitten": "feline", "fish": None}


@pytest.mark.parametrize("form", ["mapping", "json", "yaml"])
def test_labels_get_their_new_names(source, tmp_path, form):
    text = {"json": '{"dog": "hound", "cat": "feline", "kitten": "feline", "fish": null}'}.get(
        form, "dog: hound\ncat: feline\nkitten: feline\nfish:\n"
    )
    (tmp_path / "map").write_text(text)
    label_map = NAMES if form == "mapping" else str(tmp_path / "map")
    rows = corpus.read(source, label_map=label_map)
    assert {row.source: row.label for row in rows if corpus.outcome(row) == "image"} == {
        "cat/1.png": "feline",
        "kitten/2.png": "feline",
        "dog/3.png": "hound",
        "fish/4.png": None,
        "5.png": None,
    }
    config = Config(ingest=IngestConfig(label_map=label_map))
    assert open_source(str(source), config).classes == ("hound", "feline")
    assert with_label_map(config).ingest.label_map == NAMES


def test_a_label_missing_in_the_map_is_rejected_and_rejects_stay(source):
    rows = corpus.read(source, label_map={"cat": "cat", "dog": "dog"})
    assert {row.source: corpus.outcome(row) for row in rows} == {
        "cat/1.png": "image",
        "dog/3.png": "image",
        "kitten/2.png": "unknown-label",
        "fish/4.png": "unknown-label",
        "fish/6.png": "unsafe-member",
        "5.png": "image",
    }


@pytest.mark.parametrize("text", [None, "{", "- a\n- b\n", "a: [1, 2]\n"])
def test_an_invalid_map_is_a_configuration_error(source, tmp_path, text):
    if text is not None:
        (tmp_path / "map").write_text(text)
    with pytest.raises(ConfigError, match="label_map"):
        corpus.read(source, label_map=str(tmp_path / "map"))


def test_a_dataset_stores_the_content_of_the_map_not_its_path(source, tmp_path, monkeypatch):
    without_ray(monkeypatch)
    for name in ("map", "copy"):
        (tmp_path / name).write_text("{cat: a, kitten: b, dog: a, fish: null}")
    settings = {name: config(ingest={"label_map": str(tmp_path / name)}) for name in ("map", "copy")}
    assert ingest(settings["map"], str(source), str(tmp_path / "out"))["state"] == "ingested"
    assert rows_of(str(tmp_path / "out"))[0].classes == ("a", "b")
    assert ingest(settings["copy"], str(source), str(tmp_path / "out"))["state"] == "already done"
    (tmp_path / "copy").write_text("{cat: a, kitten: a, dog: a, fish: null}")
    with pytest.raises(ConfigError, match="label_map"):
        ingest(settings["copy"], str(source), str(tmp_path / "out"))
