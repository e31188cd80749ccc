"""Pretrained weights are verified and copied into the dataset folder; invalid settings and files are refused."""

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import safetensors.torch
import torch
from tiny_samples import SIZE, sample_plan, shard_table

from pipeline.config.root import Config
from pipeline.config.storage import StorageConfig
from pipeline.errors import ConfigError, DataError
from pipeline.evaluation.context import EvaluationContext
from pipeline.evaluation.extractor import extractor_of
from pipeline.evaluation.pretrained_weights import given_weights
from pipeline.evaluation.results import read_extractor, read_record
from pipeline.evaluation.tasks import feature_stats_of
from pipeline.generation.commit import commit_shard, create_plan, read_sealed, seal
from pipeline.images.png import encode_png
from pipeline.ingest.dataset import read_dataset, write_dataset
from pipeline.ingest.manifest import DatasetManifest, ShardEntry
from pipeline.metrics.efficientnet import EfficientNetNetwork
from pipeline.metrics.features import fingerprint_of
from pipeline.schema import DATASET
from pipeline.storage.files import parquet_bytes, put_file
from pipeline.storage.store import Store, resolve

pytestmark = pytest.mark.unit
HELDOUT = 6


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights with the layout of EfficientNet-Lite0."""
    with torch.device("meta"):
        state = EfficientNetNetwork().state_dict()
    generator = torch.Generator().manual_seed(0)
    tensors = {name: torch.rand(t.shape, generator=generator) * 0.1 for name, t in state.items() if t.ndim}
    path = tmp_path_factory.mktemp("weights") / "lite0.safetensors"
    path.write_bytes(safetensors.torch.save(tensors))
    return path


def dataset_of(store: Store) -> None:
    images = np.random.default_rng(0).integers(0, 256, (HELDOUT, SIZE, SIZE, 1), np.uint8)
    values = {"label": None, "width": SIZE, "height": SIZE, "sha256": ""}
    rows = [{"sample_id": i, "image": {"bytes": encode_png(im), "path": None}, **values} for i, im in enumerate(images)]
    file = put_file(store, "data/heldout.parquet", parquet_bytes(pa.Table.from_pylist(rows, schema=DATASET), 10))
    about = {"source": "s", "source_rows": HELDOUT, "image_size": SIZE, "channels": 1, "classes": None, "ingest": {}}
    shards = (ShardEntry(**file.model_dump(), split="heldout", rows=HELDOUT, first_id=0),)
    about |= {"shards": shards, "rejects": (), "reject_counts": {}, "channel_mean": (0.0,), "channel_std": (1.0,)}
    write_dataset(store, DatasetManifest(**about))


def job_of(folder: Path, **evaluate) -> EvaluationContext:
    samples, dataset = (resolve(str(folder / name), StorageConfig()) for name in ("samples", "dataset"))
    if not dataset.exists("manifest.json"):
        dataset_of(dataset)
        plan = sample_plan()
        create_plan(samples, plan)
        for shard in range(3):
            commit_shard(samples, plan, shard, shard_table(plan, shard), "a")
        seal(samples, plan)
    config = Config.model_validate({"evaluate": {"extractor": "efficientnet-lite0", "input_size": 32, **evaluate}})
    return EvaluationContext(config, samples, dataset, *read_sealed(samples), read_dataset(dataset))


def test_pretrained_weights_are_copied_into_the_dataset_folder(tmp_path: Path, weights: Path):
    context = job_of(tmp_path, weights=str(weights))
    assert read_record(context.dataset, context.extractor_id) is None
    record = extractor_of(context)
    assert record == extractor_of(context)
    assert record.weights_sha256 == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert (record.name, record.feature_dim, record.heldout_accuracy) == ("efficientnet-lite0", 1280, None)
    found = read_extractor(context.dataset, context.extractor_id)
    assert found is not None
    assert found[0] == record
    assert found[1].preprocessing == record.preprocessing
    assert "32x32" in record.preprocessing
    parts = context.image_sets("samples")
    assert sum(part.count for part in parts) == context.n == HELDOUT
    sketches = [
        feature_stats_of(found[1], fingerprint_of(found[1], context.reference), context, part) for part in parts
    ]
    merged = sketches[1].merge(sketches[0])
    assert merged.moments.n == HELDOUT
    assert merged.classes is not None
    assert merged.classes.images.sum() == HELDOUT
    assert merged.pixels.counts.sum() == HELDOUT * SIZE * SIZE


def test_another_input_size_or_file_is_another_extractor(tmp_path: Path, weights: Path):
    other = tmp_path / "other.safetensors"
    other.write_bytes(weights.read_bytes() + b"")
    same, jobs = job_of(tmp_path, weights=str(other)), [job_of(tmp_path, weights=str(weights))]
    assert same.extractor_id == jobs[0].extractor_id, "a copy of the file is the same extractor"
    jobs += [job_of(tmp_path, weights=str(weights), input_size=64), job_of(tmp_path, weights=str(weights), seed=1)]
    assert len({context.extractor_id for context in jobs}) == 3
    extrapolating = job_of(tmp_path, weights=str(weights), extrapolate=True)
    assert extrapolating.extractor_id == jobs[0].extractor_id, "both use the same feature statistics"
    assert extrapolating.digest != jobs[0].digest


def test_a_missing_or_wrong_weights_file_is_one_clear_error(tmp_path: Path, weights: Path):
    with pytest.raises(ConfigError, match=r"evaluate\.weights: there is no file .*nowhere\.pth"):
        given_weights(job_of(tmp_path, weights=str(tmp_path / "nowhere.pth")).config.evaluate, StorageConfig())
    junk = tmp_path / "junk.pth"
    junk.write_bytes(b"junk")
    with pytest.raises(DataError, match=r"junk\.pth: the 4 bytes"):
        extractor_of(job_of(tmp_path, weights=str(junk)))
    with pytest.raises(DataError, match=r"lite0\.safetensors does not have the layers"):
        extractor_of(job_of(tmp_path, weights=str(weights), extractor="inception-v3", input_size=None))
    context = job_of(tmp_path, weights=str(weights))
    record = extractor_of(context)
    context.dataset.put(f"extractors/{record.id}.weights", weights.read_bytes()[:-4] + b"\x00\x00\x00\x00")
    with pytest.raises(DataError, match="does not match"):
        read_extractor(context.dataset, record.id)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"extractor": "inception-v3"}, "needs evaluate.weights"),
        ({"weights": "f.pth"}, "needs evaluate.extractor inception-v3 or"),
        ({"extractor": "inception-v3", "weights": "f.pth", "input_size": 64}, "efficientnet-lite0"),
    ],
)
def test_contradicting_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Config.model_validate({"evaluate": settings})
