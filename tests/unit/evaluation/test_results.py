"""Extractors, feature statistics and scores read back as written, and the first writer wins."""

import dataclasses
import hashlib
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config.evaluation import EvaluateConfig
from pipeline.errors import DataError
from pipeline.evaluation.results import (
    SCORES,
    ExtractorRecord,
    evaluation_key,
    feature_stats_name,
    keep_weights,
    read_evaluation,
    read_evaluations,
    read_extractor,
    read_feature_stats,
    stored_feature_stats,
    write_evaluation,
    write_extractor,
)
from pipeline.metrics.classifier import train_classifier
from pipeline.metrics.feature_stats import FeatureStats, Score
from pipeline.metrics.features import ExtractorOutput
from pipeline.metrics.moments import merge_all
from pipeline.metrics.protocol import Fingerprint
from pipeline.metrics.scoring import bits_score, score
from pipeline.storage.store import Store

DIM = 6
FINGERPRINT = Fingerprint("class-cnn", "ab" * 32, "none", DIM, "data/train")
PROTOCOL = {
    "id": "cd" * 32,
    "dataset_digest": "d",
    "samples_plan": "p",
    "reference": "train",
    "n": 40,
    "failed": 2,
    "extractor": "class-cnn",
    "weights_sha256": "ab" * 32,
    "preprocessing": "none",
    "feature_dim": DIM,
    "heldout_accuracy": 0.9,
    "warnings": ("few",),
}


def features(n: int, seed: int, shift: float = 0.0) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=(n, DIM)) + shift).astype(np.float32)


def sketched(ids: np.ndarray, rows: np.ndarray, fingerprint: Fingerprint = FINGERPRINT) -> FeatureStats:
    """Images and class probabilities follow from the ids."""
    images = np.stack([np.random.default_rng(int(i)).integers(0, 256, (2, 2, 1), np.uint8) for i in ids])
    logits = np.stack([np.random.default_rng(int(i)).normal(size=5) for i in ids])
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return FeatureStats.of(fingerprint, 0, ids, images, ExtractorOutput(rows, probabilities.astype(np.float32)))


def sketch(n: int, seed: int, shift: float = 0.0, first: int = 0) -> FeatureStats:
    return sketched(np.arange(first, first + n), features(n, seed, shift))


def weights(seed: int) -> bytes:
    images = np.random.default_rng(0).integers(0, 256, (12, 4, 4, 1), dtype=np.uint8)
    config = EvaluateConfig(classifier_epochs=1, classifier_width=4, seed=seed)
    return train_classifier(images, np.arange(12) % 2, config).to_bytes()


def record(weights_sha256: str, accuracy: float = 0.5) -> ExtractorRecord:
    return ExtractorRecord(
        id="class-cnn-1",
        name="class-cnn",
        weights_sha256=weights_sha256,
        preprocessing="none",
        feature_dim=16,
        heldout_accuracy=accuracy,
        heldout_images=3,
        train_images=12,
        made_from={"seed": 0},
    )


def test_the_record_commits_an_extractor_and_the_first_weights_stay(store: Store):
    mine = keep_weights(store, "class-cnn-1", weights(seed=0))
    assert read_extractor(store, "class-cnn-1") is None
    theirs = keep_weights(store, "class-cnn-1", weights(seed=1))
    assert theirs.weights_sha256 == mine.weights_sha256
    first = write_extractor(store, record(mine.weights_sha256))
    assert write_extractor(store, record(mine.weights_sha256, accuracy=0.6)) == first
    found = read_extractor(store, "class-cnn-1")
    assert found is not None
    assert found[0] == first
    assert found[1].to_bytes() == weights(seed=0)


def test_weights_that_do_not_match_the_record_are_refused(store: Store):
    keep_weights(store, "class-cnn-1", weights(seed=0))
    write_extractor(store, record("00" * 32))
    with pytest.raises(DataError, match="does not match"):
        read_extractor(store, "class-cnn-1")


def test_feature_stats_are_named_by_their_images_and_merge_exactly(store: Store):
    bounds = [0, 50, 51, 120]
    rows = features(120, seed=1)
    keys = [f"m/{feature_stats_name('samples', i, b - a, 'f' * 64)}" for i, (a, b) in enumerate(pairwise(bounds))]
    for key, (a, b) in zip(keys, pairwise(bounds), strict=True):
        store.put(key, sketched(np.arange(a, b), rows[a:b]).to_bytes())
    store.put("m/notes.txt", b"")
    assert stored_feature_stats(store, "m") == set(keys)
    merged = merge_all(read_feature_stats((store, key) for key in keys))
    whole = sketched(np.arange(120), rows)
    assert merged.moments.n == 120
    np.testing.assert_allclose(merged.moments.covariance, np.cov(rows.astype(float).T), rtol=1e-7, atol=1e-9)
    assert merged.to_bytes() == whole.to_bytes()
    assert merge_all(read_feature_stats((store, key) for key in keys[::-1])).to_bytes() == whole.to_bytes()
    assert feature_stats_name("samples", 1, 50, "f" * 64) != feature_stats_name("samples", 1, 50, "e" * 64)
    with pytest.raises(DataError, match="no parts"):
        merge_all([])


def test_scores_come_back_in_both_forms(store: Store):
    scores = (
        Score(metric="FD-class-cnn", kind="samples", value=1.5, n=40, reference_n=90),
        Score(metric="KD-class-cnn", kind="floor", value=-0.25, spread=0.5, n=39, reference_n=90),
    )
    written = write_evaluation(store, scores, PROTOCOL)
    assert read_evaluation(store, PROTOCOL["id"]) == written
    assert read_evaluation(store, "ef" * 32) is None
    assert (written.frechet_name, written.value("FD-class-cnn", "samples")) == ("FD-class-cnn", 1.5)
    assert written.value("FD-class-cnn", "floor") is None
    table = pq.read_table(pa.BufferReader(store.read(written.table.key)))
    assert table.schema.equals(SCORES)
    assert table["value"].to_pylist() == [1.5, -0.25]
    assert table["spread"].to_pylist() == [None, 0.5]
    assert table["n"].to_pylist() == [40, 39]
    assert table["weights_sha256"].to_pylist() == ["ab" * 32] * 2
    other = write_evaluation(store, scores[:1], {**PROTOCOL, "id": "aa" * 32})
    assert read_evaluations(store) == [other, written]


def test_a_later_writer_of_the_same_evaluation_takes_the_first(store: Store):
    first = write_evaluation(store, (Score(metric="FD-x", kind="samples", value=1, n=2, reference_n=2),), PROTOCOL)
    again = write_evaluation(store, (Score(metric="FD-x", kind="samples", value=9, n=2, reference_n=2),), PROTOCOL)
    assert again == first
    data = store.read(first.table.key)
    assert hashlib.sha256(data).hexdigest() == first.table.sha256
    assert pq.read_table(pa.BufferReader(data))["value"].to_pylist() == [1.0]
    assert evaluation_key(PROTOCOL["id"]) == f"metrics/evaluation-{'cd' * 8}.json"


@pytest.mark.unit
def test_scores_separate_shifted_features_from_the_floor():
    reference = sketch(400, seed=0)
    measured = {"samples": sketch(90, seed=1, shift=1.0), "floor": sketch(90, seed=2)}
    by = {(s.metric, s.kind): s for s in score(reference, measured)}
    metrics = ["FD", "KD", "precision", "recall", "density", "coverage"]
    pixels = ["pixel-histogram", "pixel-mean", "pixel-std", "pixel-saturated"]
    assert list(dict.fromkeys(metric for metric, _ in by)) == [
        *(f"{name}-class-cnn" for name in (*metrics, "class-score")),
        *pixels,
    ]
    # Unit Gaussians whose means are apart by 1 in each dimension: squared distance DIM, plus the bias of n = 90.
    assert by["FD-class-cnn", "samples"].value - by["FD-class-cnn", "floor"].value == pytest.approx(DIM, rel=0.25)
    assert by["KD-class-cnn", "samples"].value > 10 * abs(by["KD-class-cnn", "floor"].value)
    assert by["KD-class-cnn", "samples"].spread is not None
    for name in metrics[2:]:
        assert by[f"{name}-class-cnn", "samples"].value < by[f"{name}-class-cnn", "floor"].value
    assert (by["FD-class-cnn", "samples"].n, by["FD-class-cnn", "samples"].reference_n) == (90, 400)
    assert (by["recall-class-cnn", "samples"].n, by["recall-class-cnn", "samples"].reference_n) == (90, 90)


@pytest.mark.unit
def test_few_images_get_distances_but_no_neighbour_scores():
    names = {s.metric for s in score(sketch(9, seed=0), {"samples": sketch(5, seed=1)})}
    assert {name for name in names if not name.startswith("pixel")} == {
        *("FD-class-cnn", "KD-class-cnn", "class-score-class-cnn")
    }


@pytest.mark.unit
def test_feature_stats_of_different_extractors_do_not_merge():
    other = dataclasses.replace(FINGERPRINT, weights_sha256="00" * 32)
    with pytest.raises(DataError, match="weights_sha256"):
        sketch(3, seed=0).merge(sketched(np.arange(3), features(3, 1), other))


@pytest.mark.unit
def test_feature_stats_of_another_layout_are_refused():
    data = sketch(4, seed=0).to_bytes()
    assert b'\\"layout\\": 2' in data
    for old in (data.replace(b'\\"layout\\": 2', b'\\"layout\\": 1'), data.replace(b'\\"layout\\"', b'\\"l_yout\\"')):
        with pytest.raises(DataError, match="layout 1, not 2"):
            FeatureStats.from_bytes(old)


@pytest.mark.unit
def test_intervals_and_the_distance_at_infinite_n():
    reference = sketch(4000, seed=0)
    measured = {"samples": sketch(1500, seed=1, shift=0.2), "floor": sketch(1500, seed=2), "noise": sketch(90, seed=3)}
    by = {(s.metric, s.kind): s for s in score(reference, measured, extrapolate=True)}
    for kind in ("samples", "floor"):
        for metric in ("FD-class-cnn", "KD-class-cnn", "class-score-class-cnn"):
            of = by[metric, kind]
            assert of.low <= of.value <= of.high, (metric, kind)
    assert by["FD-class-cnn", "noise"].low is None
    assert by["FD-class-cnn-infinity", "samples"].spread > 0
    assert ("FD-class-cnn-infinity", "noise") not in by
    assert not any(s.metric.endswith("infinity") for s in score(reference, measured))


@pytest.mark.unit
def test_bits_per_dim_are_a_mean_with_its_interval():
    of = bits_score(np.array([3.0, 4.0, 5.0]))
    assert (of.metric, of.kind, of.value, of.spread, of.n, of.reference_n) == ("bits/dim", "heldout", 4.0, 1.0, 3, 0)
    half = 4.302653 / np.sqrt(3)  # Student's t, two degrees of freedom
    assert (of.low, of.high) == pytest.approx((4 - half, 4 + half), rel=1e-6)


def test_unequal_protocols_are_not_compared(store: Store):
    scores = (Score(metric="FD-x", kind="samples", value=1, n=2, reference_n=2),)
    mine = write_evaluation(store, scores, PROTOCOL)
    mine.require_comparable(mine)
    for field, value in (("weights_sha256", "00"), ("preprocessing", "other"), ("reference", "heldout"), ("n", 41)):
        with pytest.raises(DataError, match=rf"{field}.*{value}"):
            mine.require_comparable(mine.model_copy(update={field: value}))
