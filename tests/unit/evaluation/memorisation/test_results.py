"""Memorisation results in the store: created once, document last, read back for a report."""

import numpy as np
import pyarrow as pa
import pytest

from pipeline.config.storage import StorageConfig
from pipeline.errors import VerificationFailed
from pipeline.evaluation.memorisation.results import (
    NEIGHBOURS,
    Pair,
    memorisation_key,
    read_memorisation,
    read_memorisations,
    read_sheet,
    write_memorisation,
)
from pipeline.metrics.memorisation import RULE, find_near_copies
from pipeline.metrics.nearest import Nearest
from pipeline.report.memorisation import memorisation_content
from pipeline.storage.store import Store, resolve

pytestmark = pytest.mark.unit

PLAN = "a" * 64
PNG = b"\x89PNG pixel"


@pytest.fixture
def samples(tmp_path) -> Store:
    return resolve(str(tmp_path), StorageConfig())


def fields(identity: str, n: int = 10, plan: str = PLAN) -> dict:
    squared = np.tile(np.array([4.0, 16.0, 36.0]), (n, 1))
    squared[0] = [0, 16, 36]
    near = Nearest(squared, np.tile(np.arange(3), (n, 1)))
    spaces = tuple(
        find_near_copies(space, unit, 1.0, 0.5, near, Nearest(squared[1:], near.ids[1:]))[0]
        for space, unit in (("pixel", "levels"), ("feature", "features"))
    )
    pair = {"place": 1, "sample_id": 0, "train_id": 0, "distance": 0.0, "relative": 0.0, "near_copy": True}
    return {
        "id": identity * 64,
        "dataset_digest": "d" * 64,
        "samples_plan": plan,
        "reference": "train",
        "reference_n": 3,
        "n": n,
        "usable": n,
        "failed": 0,
        "heldout_n": n - 1,
        "rule": RULE,
        "closeness": 0.5,
        "neighbours": 3,
        "flips": False,
        "extractor": "class-cnn",
        "weights_sha256": "e" * 64,
        "preprocessing": "none",
        "feature_dim": 2,
        "heldout_accuracy": 0.9,
        "warnings": (),
        "spaces": spaces,
        "pairs": tuple(Pair(space=space, **pair) for space in ("pixel", "feature")),
    }


def write(samples: Store, identity: str, png: bytes = PNG, **changes):
    table = pa.Table.from_pylist([], schema=NEIGHBOURS)
    return write_memorisation(samples, table, {"pixel": png, "feature": b"feature"}, fields(identity, **changes))


def test_what_was_written_is_read_back(samples: Store):
    written = write(samples, "1")
    assert read_memorisation(samples, "1" * 64) == written
    assert read_memorisation(samples, "2" * 64) is None
    assert read_sheet(samples, written, "pixel") == PNG
    assert (written.of("pixel").near_copies.count, written.of("pixel").exact_copies) == (1, 1)


def test_the_document_comes_last(samples: Store, monkeypatch: pytest.MonkeyPatch):
    order = []
    create = Store.create_once
    monkeypatch.setattr(Store, "create_once", lambda self, key, data: (order.append(key), create(self, key, data)))
    write(samples, "1")
    assert order[-1] == memorisation_key("1" * 64)
    assert len(order) == 4


def test_a_later_equal_search_returns_the_first_result(samples: Store):
    first = write(samples, "1")
    assert write(samples, "1", png=b"another machine's") == first
    assert read_sheet(samples, first, "pixel") == PNG


def test_a_damaged_sheet_is_refused(samples: Store):
    written = write(samples, "1")
    samples.put(written.sheets["pixel"].key, b"other")
    with pytest.raises(VerificationFailed, match="is not what its manifest names"):
        read_sheet(samples, written, "pixel")


def test_a_report_shows_the_search_over_the_most_samples(samples: Store):
    assert memorisation_content(samples, PLAN) == ([], [])
    write(samples, "1", n=10)
    write(samples, "2", n=20)
    write(samples, "3", n=90, plan="f" * 64)
    assert len(read_memorisations(samples)) == 3
    facts, pictures = memorisation_content(samples, PLAN)
    assert [fact.name for fact in facts] == [
        "Near-copies of training images, by pixels",
        "Near-copies of training images, by features of class-cnn",
    ]
    assert facts[0].value.startswith("5.00% (0.89% to 23.61%) of 20 samples; 0.00% (0.00% to ")
    assert facts[0].value.endswith(" of 19 held-out images by the same rule")
    assert [picture.png for picture in pictures] == [PNG, b"feature"]
    assert "1 of these samples are near-copies" in pictures[0].caption
