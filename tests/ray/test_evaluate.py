"""Evaluation over Ray Data: the scores are ordered as the images are good, and the same for any number of tasks."""

import dataclasses
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from tiny_model import write_model
from tiny_samples import sample_plan

from pipeline.config.root import Config
from pipeline.config.storage import StorageConfig
from pipeline.errors import DataError
from pipeline.evaluation.driver import evaluate
from pipeline.evaluation.likelihood import heldout_bound
from pipeline.evaluation.results import Evaluation, read_evaluations, read_extractor
from pipeline.generation.commit import commit_shard, create_plan, read_sealed, seal
from pipeline.generation.manifest import SamplePlan
from pipeline.images.png import encode_png
from pipeline.ingest.dataset import write_dataset
from pipeline.ingest.manifest import DatasetManifest, ShardEntry
from pipeline.metrics.features import fingerprint_of
from pipeline.metrics.frechet import frechet
from pipeline.metrics.moments import Moments
from pipeline.metrics.reference_images import blurred, noise_images
from pipeline.model_store.load_model import find_model, load_unet
from pipeline.schema import DATASET, IMAGE, SAMPLES, STATUS_FAILED, STATUS_OK
from pipeline.storage.files import parquet_bytes, put_file
from pipeline.storage.store import Store, resolve

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

SIZE = 16
NUM_TRAIN, NUM_HELDOUT = 1200, 200
SHARD_ROWS = 300
FAILED = 7
"""One sample that the generation could not make, in every job of these tests."""
EVALUATE = {"classifier_epochs": 5, "seed": 3}


@dataclass(frozen=True)
class World:
    """A dataset of digits, its images in order of id, and further real digits that are in neither of its splits."""

    dataset: Store
    images: np.ndarray
    unseen: np.ndarray

    def run(self, samples: Store, workers: int = 1, **settings: int) -> dict:
        config = Config.model_validate({"evaluate": {**EVALUATE, **settings}, "ray": {"workers": str(workers)}})
        return evaluate(config, samples.uri, self.dataset.uri)


def _digits() -> tuple[np.ndarray, np.ndarray]:
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.images))
    small = (digits.images[order] * 255 / 16).round().astype(np.uint8)
    large = [np.asarray(Image.fromarray(image).resize((SIZE, SIZE), Image.Resampling.BICUBIC)) for image in small]
    return np.stack(large)[..., None], digits.target[order]


def _image_column(images: np.ndarray) -> pa.Array:
    return pa.array([{"bytes": encode_png(image), "path": None} for image in images], IMAGE)


def _make_dataset(store: Store, images: np.ndarray, labels: np.ndarray | None) -> None:
    entries = []
    for first in range(0, len(images), SHARD_ROWS):
        split = "train" if first < NUM_TRAIN else "heldout"
        rows = images[first : first + SHARD_ROWS]
        ids = np.arange(first, first + len(rows))
        size = pa.array(np.full(len(rows), SIZE, np.int32))
        label = pa.nulls(len(rows), pa.int32()) if labels is None else pa.array(labels[ids].astype(np.int32))
        hashes = [hashlib.sha256(image.tobytes()).hexdigest() for image in rows]
        table = pa.table([ids, _image_column(rows), label, size, size, hashes], schema=DATASET)
        file = put_file(store, f"data/{split}-{first:05d}.parquet", parquet_bytes(table, 100))
        entries.append(ShardEntry(**file.model_dump(), split=split, rows=len(rows), first_id=first))
    manifest = DatasetManifest(
        source="digits",
        source_rows=len(images),
        image_size=SIZE,
        channels=1,
        classes=None if labels is None else tuple("0123456789"),
        shards=tuple(entries),
        rejects=(),
        reject_counts={},
        channel_mean=(0.0,),
        channel_std=(1.0,),
        ingest={},
    )
    write_dataset(store, manifest)


def _make_samples(store: Store, images: np.ndarray, channels: int = 1, sealed: bool = True, **model: Any) -> Store:
    """A job whose samples are these images, with a failed one in between."""
    digest = hashlib.sha256(images.tobytes()).hexdigest()
    own = {"num_samples": len(images) + 1, "shard_size": 80, "image_size": SIZE, "channels": channels}
    plan = sample_plan(model_digest=digest, **own).model_copy(update=model)
    create_plan(store, plan)
    pngs = [encode_png(image) for image in images]
    pngs.insert(FAILED, b"")
    for shard, first in enumerate(range(0, plan.num_samples, plan.shard_size)):
        rows = [_sample(plan, i, pngs[i]) for i in range(first, min(first + plan.shard_size, plan.num_samples))]
        commit_shard(store, plan, shard, pa.Table.from_pylist(rows, schema=SAMPLES), "a")
    if sealed:
        seal(store, plan)
    return store


def _sample(plan: SamplePlan, sample_id: int, png: bytes) -> dict:
    return {
        "sample_id": sample_id,
        "image": {"bytes": png, "path": None} if png else None,
        "seed": plan.seed,
        "model_digest": plan.model_digest,
        "ema": plan.weights,
        "sampler": plan.sampler,
        "steps": plan.steps,
        "eta": plan.eta,
        "width": SIZE,
        "height": SIZE,
        "status": STATUS_OK if png else STATUS_FAILED,
    }


def _store(path: Path) -> Store:
    return resolve(str(path), StorageConfig())


def _files(store: Store, prefix: str) -> dict[str, bytes]:
    return {entry.key: store.read(entry.key) for entry in store.list(prefix)}


def _only(samples: Store) -> Evaluation:
    (evaluation,) = read_evaluations(samples)
    return evaluation


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    images, labels = _digits()
    used = NUM_TRAIN + NUM_HELDOUT
    dataset = _store(tmp_path_factory.mktemp("world") / "dataset")
    _make_dataset(dataset, images[:used], labels[:used])
    return World(dataset, images[:used], images[used:])


@pytest.fixture(scope="module")
def real_samples(world: World, tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, dict]:
    """Samples as good as they can be, evaluated by one task at a time."""
    samples = _make_samples(_store(tmp_path_factory.mktemp("real") / "samples"), world.unseen[:300])
    return samples, world.run(samples)


def test_real_images_as_samples_score_about_the_floor(real_samples: tuple[Store, dict]):
    samples, result = real_samples
    assert result["n"] == NUM_HELDOUT
    assert result["failed"] == 1
    assert result["metric"] == "FD-class-cnn"
    assert "FID" not in str(result).replace("FD-class-cnn", "")
    blur, noise = result["ceilings"].values()
    assert result["floor"] < blur < noise
    assert 0.5 < result["value"] / result["floor"] < 2
    assert result["extractor_accuracy"] > 0.9
    assert result["warnings"] == []
    evaluation = _only(samples)
    assert evaluation.n > evaluation.feature_dim
    low, high = result["interval"]
    assert low < result["value"] < high < blur
    assert result["floor"] < high
    assert result["scores"]["class-score-class-cnn"] == pytest.approx(
        evaluation.value("class-score-class-cnn", "floor"), rel=0.1
    )
    assert evaluation.value("class-score-class-cnn", "noise") < result["scores"]["class-score-class-cnn"] < 10
    assert result["scores"]["pixel-histogram"] < 0.1 * evaluation.value("pixel-histogram", "noise")
    for metric in ("KD-class-cnn", "precision-class-cnn", "recall-class-cnn", "coverage-class-cnn"):
        of = [evaluation.value(metric, kind) for kind in ("samples", "floor", "noise")]
        assert abs(of[0] - of[1]) < 0.25 * abs(of[1] - of[2]), metric


def test_every_side_is_of_the_images_that_it_names(world: World, real_samples: tuple[Store, dict]):
    """The same distances once more, from the images in memory and all at once."""
    _, result = real_samples
    _, extractor = read_extractor(world.dataset, result["extractor"])
    heldout = world.images[NUM_TRAIN:]
    sides = {
        "samples": world.unseen[:NUM_HELDOUT],
        "floor": heldout,
        "blurred": blurred(heldout),
        "noise": noise_images(NUM_HELDOUT, (SIZE, SIZE, 1), EVALUATE["seed"]),
    }

    def moments(images: np.ndarray) -> Moments:
        return Moments.empty(fingerprint_of(extractor, "train")).update(extractor.features(images))

    reference = moments(world.images[:NUM_TRAIN])
    measured = [result["value"], result["floor"], *result["ceilings"].values()]
    assert measured == pytest.approx([frechet(moments(i), reference).value for i in sides.values()], rel=1e-12)


def test_noise_as_samples_scores_about_the_noise_ceiling(world: World, tmp_path: Path):
    samples = _make_samples(_store(tmp_path / "samples"), noise_images(300, (SIZE, SIZE, 1), seed=99))
    result = world.run(samples, workers=2)
    assert result["value"] == pytest.approx(list(result["ceilings"].values())[1], rel=0.05)
    assert result["images"] == NUM_HELDOUT, "the dataset's sketches were there already"


def test_the_same_bits_for_one_and_three_tasks(world: World, real_samples: tuple[Store, dict], tmp_path: Path):
    one, first = real_samples
    other = dataclasses.replace(world, dataset=_store(tmp_path / "dataset"))
    for key, data in _files(world.dataset, "").items():
        if not key.startswith("extractors/") or key.count("/") == 1:  # data and extractor, but no sketch
            other.dataset.put(key, data)
    three = _make_samples(_store(tmp_path / "samples"), world.unseen[:300])
    second = other.run(three, workers=3)
    assert second["images"] == first["images"] == NUM_TRAIN + 4 * NUM_HELDOUT
    assert _files(three, "metrics/") == _files(one, "metrics/")
    assert len(_files(one, "metrics/moments-")) == 3  # 79 + 80 + 41 samples
    sketches = f"extractors/{first['extractor']}/"
    assert _files(other.dataset, sketches) == _files(world.dataset, sketches)


@pytest.mark.s3
def test_on_s3_as_on_disk(world: World, real_samples: tuple[Store, dict], s3_uri: str):
    local, first = real_samples
    there = dataclasses.replace(world, dataset=resolve(f"{s3_uri}/dataset", StorageConfig()))
    for key, data in _files(world.dataset, "data/").items():
        there.dataset.put(key, data)
    there.dataset.put("manifest.json", world.dataset.read("manifest.json"))
    samples = _make_samples(resolve(f"{s3_uri}/samples", StorageConfig()), world.unseen[:300])
    result = there.run(samples, workers=2)
    assert result["scores"] == first["scores"]
    assert _files(samples, "metrics/") == _files(local, "metrics/")


def test_again_is_already_done_and_a_smaller_n_reads_only_what_it_cuts(
    world: World, real_samples: tuple[Store, dict], tmp_path: Path
):
    samples, first = real_samples
    again = world.run(samples)
    assert (again["state"], again["value"], again["images"]) == ("already done", first["value"], 0)
    mine = _make_samples(_store(tmp_path / "samples"), world.unseen[:300])
    for key, data in _files(samples, "metrics/moments-").items():
        mine.put(key, data)
    smaller = world.run(mine, num_images=100)
    assert smaller["n"] == 100
    assert smaller["images"] == 21 + 3 * 100  # the first 79 samples are one whole shard, sketched before
    assert "100 images for 128 features" in smaller["summary"]
    assert smaller["value"] > first["value"]


def test_more_images_than_there_are_is_refused(world: World, real_samples: tuple[Store, dict]):
    """A score at another n is another score."""
    with pytest.raises(DataError, match=r"num_images is 1,000, but .* has 300 usable samples"):
        world.run(real_samples[0], num_images=1000)


def test_the_table_says_by_which_protocol(world: World, real_samples: tuple[Store, dict]):
    samples, result = real_samples
    evaluation = _only(samples)
    table = pq.read_table(pa.BufferReader(samples.read(evaluation.table.key)))
    rows = [row for row in table.to_pylist() if row["metric"] == "FD-class-cnn"]
    assert [row["kind"] for row in rows] == ["samples", "floor", "blurred", "noise"]
    assert rows[0]["value"] == result["value"]
    for row in rows:
        assert (row["n"], row["reference_n"], row["reference"]) == (NUM_HELDOUT, NUM_TRAIN, "train")
        assert (
            row["weights_sha256"]
            == hashlib.sha256(world.dataset.read(f"extractors/{result['extractor']}.safetensors")).hexdigest()
        )
        assert row["dataset_digest"] == evaluation.dataset_digest
        assert row["preprocessing"] == "uint8 16x16x1 / 127.5 - 1, no resize"


def test_without_labels_the_extractor_learns_rotations(world: World, tmp_path: Path):
    dataset = dataclasses.replace(world, dataset=_store(tmp_path / "dataset"))
    _make_dataset(dataset.dataset, world.images, None)
    samples = _make_samples(_store(tmp_path / "samples"), world.unseen[:250])
    result = dataset.run(samples, workers=2)
    assert result["metric"] == "FD-rotation-cnn"
    assert result["floor"] < min(result["ceilings"].values())
    assert 0.5 < result["value"] / result["floor"] < 2


def test_bits_per_dim_are_those_of_the_first_heldout_images(world: World, tmp_path: Path):
    """And a model that is not the one that drew the samples any more is refused."""
    model = {"block_out_channels": [8, 8], "layers_per_block": 1, "attention_levels": [], "norm_num_groups": 4}
    settings = {"model": model, "diffusion": {"num_timesteps": 4}}
    config = Config.model_validate(settings)
    uri = write_model(str(tmp_path / "run"), config, size=SIZE)
    found = find_model(uri, "ema", config.storage)
    model = {"model_uri": uri, "model_digest": found.digest, "diffusion": config.diffusion.model_dump(mode="json")}
    samples = _make_samples(_store(tmp_path / "samples"), world.unseen[:100], **model)
    result = world.run(samples, workers=2, num_images=20, bits_per_dim=20)
    plan, _ = read_sealed(samples)
    heldout, ids = world.images[NUM_TRAIN : NUM_TRAIN + 20], np.arange(NUM_TRAIN, NUM_TRAIN + 20)
    expected = heldout_bound(load_unet(found, config.storage), plan, heldout, ids, None, EVALUATE["seed"])
    assert result["scores"]["bits/dim"] == pytest.approx(expected.mean(), rel=1e-5)
    (score,) = (s for s in _only(samples).scores if s.metric == "bits/dim")
    assert (score.kind, score.n) == ("heldout", 20)
    assert score.low < score.value < score.high
    other = _make_samples(_store(tmp_path / "other"), world.unseen[:100], **{**model, "model_digest": "0" * 64})
    with pytest.raises(DataError, match="has changed since it generated"):
        world.run(other, num_images=20, bits_per_dim=20)
    with pytest.raises(DataError, match=rf"bits_per_dim is 300, but .* has only {NUM_HELDOUT}"):
        world.run(other, num_images=20, bits_per_dim=300)


def test_what_cannot_be_measured_is_one_clear_error(world: World, tmp_path: Path):
    images = world.unseen[:100]
    unsealed = _make_samples(_store(tmp_path / "unsealed"), images, sealed=False)
    with pytest.raises(DataError, match="not sealed"):
        world.run(unsealed)
    with pytest.raises(DataError, match="no samples at"):
        world.run(_store(tmp_path / "nothing"))
    colour = _make_samples(_store(tmp_path / "colour"), images.repeat(3, axis=3), channels=3)
    with pytest.raises(DataError, match=r"16x16x3.*16x16x1"):
        world.run(colour)
    grey = _make_samples(_store(tmp_path / "grey"), images)
    with pytest.raises(DataError, match="no dataset at"):
        dataclasses.replace(world, dataset=_store(tmp_path / "nowhere")).run(grey)
