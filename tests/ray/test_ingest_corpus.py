"""The whole corpus through the whole program: every row ends once, as stated, and nothing stops the job."""

import json
import os
from pathlib import Path

import corpus
import numpy as np
import pytest
from tiny_ingest import rejects_of, rows_of

from pipeline.config.root import Config
from pipeline.images.png import decode_pixels
from pipeline.operations.verify import verify
from tiny import ROOT, command, run

pytestmark = pytest.mark.ray

LIMITS = corpus.LIMITS | {"duplicates": "keep-all"}
LABELS = ("cat", "größe hund", None)


def spread(folder):
    """The corpus as files in class folders; what must become of each."""
    expected = {}
    for number, (name, item) in enumerate((corpus.images() | corpus.planted_faults()).items()):
        label = LABELS[number % len(LABELS)]
        key = name if label is None else f"{label}/{name}"
        path = folder / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(item.data)
        expected[key] = (label, item)
    return expected


def specials(folder):
    """Names that are no files, and one that no UTF-8 can write."""
    (folder / "cat" / "up").symlink_to(folder)
    (folder / "self.png").symlink_to(folder / "self.png")
    (folder / "broken.png").symlink_to(folder / "gone.png")
    os.mkfifo(folder / "pipe.png")
    with open(os.fsencode(folder) + b"/latin-\xe9.png", "wb") as file:
        file.write(corpus.encoded(corpus.photo(50)))
    return dict.fromkeys(("cat/up", "self.png", "broken.png", "pipe.png"), "unsafe-member")


def ingested(tmp_path, source, dataset):
    words = command(tmp_path, "ingest", "--source", str(source), "--dataset", dataset, "--json", ingest=LIMITS)
    done = run(words)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_every_row_ends_once_and_as_stated(tmp_path, monkeypatch):
    source, dataset = tmp_path / "source", str(tmp_path / "dataset")
    expected = spread(source)
    refused = {key: item.reason for key, (_, item) in expected.items() if item.reason} | specials(source)
    kept = {key: pair for key, pair in expected.items() if pair[1].reason is None}
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parents[1] / "planted"), str(ROOT)]))
    result = ingested(tmp_path, source, dataset)
    manifest, rows = rows_of(dataset)
    assert dict(rejects_of(dataset)) == refused
    by_source = {row["image"]["path"]: row for row in rows}
    assert by_source.keys() == kept.keys() | {"latin-\\udce9.png"}
    assert manifest.source_rows == len(rows) + len(rejects_of(dataset)) == len(expected) + 5
    assert sum(result["rejects"].values()) == len(refused)
    assert result["rejects"] == {reason: list(refused.values()).count(reason) for reason in sorted({*refused.values()})}
    assert manifest.classes == ("cat", "größe hund")
    for key, (label, item) in kept.items():
        row = by_source[key]
        assert (None if row["label"] is None else manifest.classes[row["label"]]) == label
        pixels = decode_pixels(row["image"]["bytes"], 10**4)
        if item.shade is not None:
            np.testing.assert_allclose(pixels.reshape(-1, 3).mean(0), item.shade, atol=1, err_msg=key)
    assert verify(Config(), dataset)["counts"]["images"] == len(rows)
