"""A dataset without held-out images, as the CIFAR-10 recipe makes it: distances to all training images, no floor."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import scipy.linalg
from PIL import Image
from tiny_model import write_model

from pipeline.analysis.sweep import open_sweep, run_sweep
from pipeline.config.root import Config
from pipeline.config.storage import StorageConfig
from pipeline.errors import DataError
from pipeline.evaluation.driver import evaluate
from pipeline.evaluation.memorisation.driver import memorisation
from pipeline.evaluation.results import Evaluation, read_evaluations, read_extractor
from pipeline.evaluation.stored_images import decode_column, read_usable
from pipeline.generation.commit import read_sealed
from pipeline.generation.driver import generate
from pipeline.ingest.dataset import read_dataset
from pipeline.ingest.driver import ingest
from pipeline.metrics.reference_images import blurred
from pipeline.nightly.compare import EvaluatedSamples, compare
from pipeline.nightly.ledger import Night
from pipeline.nightly.night_stages import NightStages
from pipeline.report.driver import report
from pipeline.storage.store import Store, resolve
from tiny import config

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

SHAPE, NUM_TRAIN, NUM_SAMPLES = (32, 32, 3), 300, 200
NO_FLOOR = (
    "no floor: the dataset has 0 held-out images (ingest.heldout_share above 0 gives one); the blurred images are the "
    "first 200 training images"
)


def _config(share: float = 0.0, num_images: int | None = None, **sections: dict) -> Config:
    own = {
        "ingest": {"image_size": 32, "channels": 3, "heldout_share": share, "partition_rows": 600},
        "model": {"block_out_channels": [4, 8], "layers_per_block": 1, "attention_levels": [], "norm_num_groups": 4},
        "generate": {"num_samples": NUM_SAMPLES, "sampler": "ddim", "steps": 2, "batch_size": 40, "shard_size": 80},
        "evaluate": {"classifier_epochs": 2, "classifier_width": 4, "num_images": num_images},
        "ray": {"workers": "1"},
    }
    return config(**own, **sections)


def _store(uri: str) -> Store:
    return resolve(uri, StorageConfig())


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 coloured pictures of ten classes, a dataset of them without held-out images, a model and its samples."""
    root = tmp_path_factory.mktemp("cifar")
    rng = np.random.default_rng(0)
    for i in range(NUM_TRAIN):
        colour = 255 * np.array([i % 10, (3 * i) % 10, (7 * i) % 10]) / 9
        noise = rng.normal(0, 30, SHAPE) + np.linspace(-60, 60, 32)[:, None, None]
        folder = root / "pictures" / f"class{i % 10}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray((colour + noise).clip(0, 255).astype(np.uint8)).save(folder / f"{i:03d}.png")
    ingest(_config(), str(root / "pictures"), str(root / "data"))
    write_model(str(root / "run"), _config(), size=32, channels=3)
    generate(_config(), str(root / "run"), str(root / "samples"))
    return root


@pytest.fixture(scope="module")
def result(root: Path) -> dict:
    return evaluate(_config(), str(root / "samples"), str(root / "data"))


def _pixels(store: Store, shards: tuple) -> np.ndarray:
    return np.concatenate([decode_column(read_usable(store, shard), SHAPE) for shard in shards])


def _frechet(a: np.ndarray, b: np.ndarray) -> float:
    """|mean difference|^2 + trace(A + B - 2 sqrt(A B)) of features [N, D], by scipy."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    one, other = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(one @ other)
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(one + other - 2 * root.real))


def _only(root: Path) -> Evaluation:
    (evaluation,) = read_evaluations(_store(str(root / "samples")))
    return evaluation


def test_the_distances_are_those_of_all_samples_to_the_training_set(root: Path, result: dict):
    samples, data = _store(str(root / "samples")), _store(str(root / "data"))
    manifest = read_dataset(data)
    assert (manifest.rows("train"), manifest.rows("heldout")) == (NUM_TRAIN, 0)
    record, extractor = read_extractor(data, result["extractor"])
    assert (record.name, record.heldout_accuracy, record.heldout_images) == ("class-cnn", None, 0)
    train = _pixels(data, manifest.split("train"))
    made = _pixels(samples, read_sealed(samples)[1].shards)
    assert (len(train), len(made), result["n"]) == (NUM_TRAIN, NUM_SAMPLES, NUM_SAMPLES)
    reference = extractor.features(train)
    assert result["value"] == pytest.approx(_frechet(extractor.features(made), reference), rel=1e-4)
    blur = _frechet(extractor.features(blurred(train[:NUM_SAMPLES])), reference)
    assert next(iter(result["ceilings"].values())) == pytest.approx(blur, rel=1e-4)


def test_output_and_document_state_why_there_is_no_floor(root: Path, result: dict):
    assert (result["floor"], result["floor_n"], result["extractor_accuracy"]) == (None, 0, None)
    assert NO_FLOOR in result["warnings"]
    assert "at n = 200 (no floor; " in result["summary"]
    assert f"warning: {NO_FLOOR}" in result["summary"]
    evaluation = _only(root)
    assert NO_FLOOR in evaluation.warnings
    assert {s.kind for s in evaluation.scores} == {"samples", "blurred", "noise"}
    assert evaluate(_config(), str(root / "samples"), str(root / "data"))["state"] == "already done"
    assert json.loads(json.dumps(result))["floor"] is None


def test_the_report_page_has_the_distance_and_the_reason(root: Path, result: dict):
    report(_config(), [str(root / "samples")])
    page = _store(str(root / "samples")).read("report.html").decode()
    assert "at n = 200: no floor, blurred images" in page
    assert "N" + NO_FLOOR[1:] in page
    assert "held-out real" not in page


def test_a_sweep_without_a_floor(root: Path, result: dict):
    grid = _config(sweep={"samplers": ["ddim"], "steps": [1, 2], "ema": ["ema"]})
    sweep = open_sweep(grid, str(root / "run"), str(root / "data"), str(root / "sweep"))
    swept = run_sweep(sweep, generate, evaluate)
    assert [(row["floor"], row["n"]) for row in swept["rows"]] == [(None, NUM_SAMPLES)] * 2
    assert swept["rows"][1]["fd"] == result["value"], "the same samples"
    assert "; no floor)" in swept["summary"]
    assert NO_FLOOR in swept["warnings"]
    assert pq.read_table(root / "sweep" / "sweep.parquet")["floor"].null_count == 2
    assert "no floor, blurred images" in (root / "sweep" / "report.html").read_text()
    assert run_sweep(sweep, generate, evaluate)["state"] == "already done"


def test_near_copies_and_the_gate_are_refused_with_the_setting_to_change(root: Path, result: dict):
    samples, data = str(root / "samples"), str(root / "data")
    with pytest.raises(DataError, match=r"has 0 heldout images, the baseline needs 2: .*ingest\.heldout_share"):
        memorisation(_config(), samples, data)
    with pytest.raises(DataError, match=r"the gate needs a floor.* has 0: raise ingest\.heldout_share"):
        compare(_config(), data, EvaluatedSamples("v1", samples), None)
    night = Night(name="default", date="2026-11-28", began="", settings="s", champion=None, record=0, attempts=1)
    nightly = _config(nightly={"source": str(root / "pictures")})
    with pytest.raises(DataError, match=r"the gate needs a floor.* has 0: raise ingest\.heldout_share"):
        NightStages(nightly, _store(str(root)), _Drivers()).snapshot(night)


class _Drivers:
    """The drivers of a night, of which only the first is called."""

    ingest = staticmethod(ingest)


def test_fewer_held_out_images_than_samples_make_a_smaller_floor_when_n_is_stated(root: Path):
    """Unstated, n is the number of held-out images."""
    samples, data = str(root / "samples"), str(root / "some")
    ingest(_config(share=0.1), str(root / "pictures"), data)
    heldout = read_dataset(_store(data)).rows("heldout")
    assert 10 < heldout < 60
    assert evaluate(_config(), samples, data)["n"] == heldout
    result = evaluate(_config(num_images=NUM_SAMPLES), samples, data)
    assert (result["n"], result["floor_n"]) == (NUM_SAMPLES, heldout)
    assert f"at n = {NUM_SAMPLES} (floor {result['floor']:.4g} at n = {heldout}; " in result["summary"]
    assert any(line.startswith(f"the floor has n = {heldout}, because") for line in result["warnings"])
    (stored,) = (e for e in read_evaluations(_store(samples)) if e.id == result["digest"])
    sizes = {(s.kind, s.metric.partition("-")[0]): s.n for s in stored.scores}
    for metric in ("FD", "KD", "recall"):
        assert (sizes["samples", metric], sizes["floor", metric]) == (NUM_SAMPLES, heldout)
    with pytest.raises(DataError, match=r"evaluate\.num_images is 201, but .* has 200 usable samples"):
        evaluate(_config(num_images=NUM_SAMPLES + 1), samples, data)
