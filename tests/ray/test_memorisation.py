"""Samples looked up in the training split over Ray: planted copies are found, unseen images are left alone."""

import hashlib
import io
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from tiny_samples import sample_plan

from pipeline.config.root import Config
from pipeline.config.storage import StorageConfig
from pipeline.errors import DataError
from pipeline.evaluation.memorisation.driver import memorisation
from pipeline.evaluation.memorisation.results import Memorisation, read_memorisations, read_sheet
from pipeline.generation.commit import commit_shard, create_plan, seal
from pipeline.images.png import encode_png
from pipeline.ingest.dataset import write_dataset
from pipeline.ingest.manifest import DatasetManifest, ShardEntry
from pipeline.schema import DATASET, IMAGE, SAMPLES, STATUS_FAILED, STATUS_OK
from pipeline.storage.files import parquet_bytes, put_file
from pipeline.storage.store import Store, resolve

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

SIZE, NUM_TRAIN, NUM_HELDOUT, NUM_SAMPLES, SHARD_ROWS = 8, 1000, 300, 120, 150
FAILED = 11
EXACT = {3: 17, 40: 999}
NEAR = {77: 0, 101: 512}
"""Sample id -> id of the training image that it is a copy of; near ones differ by up to two levels a pixel."""
SETTINGS = {"evaluate": {"classifier_epochs": 8, "classifier_width": 8, "seed": 3}}


@dataclass(frozen=True)
class World:
    dataset: Store
    samples: Store
    images: np.ndarray  # of the dataset, by id

    def run(self, workers: int = 1, dataset: Store | None = None, samples: Store | None = None, **settings) -> dict:
        config = Config.model_validate({**SETTINGS, "memorisation": settings, "ray": {"workers": str(workers)}})
        return memorisation(config, (samples or self.samples).uri, (dataset or self.dataset).uri)


def _store(path) -> Store:
    return resolve(str(path), StorageConfig())


def _write_dataset(store: Store, images: np.ndarray, labels: np.ndarray, num_train: int) -> Store:
    entries = []
    edges = [*range(0, num_train, SHARD_ROWS), *range(num_train, len(images), SHARD_ROWS), len(images)]
    for first, stop in pairwise(edges):
        split, rows = ("train" if first < num_train else "heldout"), images[first:stop]
        ids, size = np.arange(first, stop), pa.array(np.full(stop - first, SIZE, np.int32))
        column = pa.array([{"bytes": encode_png(image), "path": None} for image in rows], IMAGE)
        hashes = [hashlib.sha256(image.tobytes()).hexdigest() for image in rows]
        table = pa.table([ids, column, pa.array(labels[ids].astype(np.int32)), size, size, hashes], schema=DATASET)
        file = put_file(store, f"data/{split}-{first:05d}.parquet", parquet_bytes(table, 100))
        entries.append(ShardEntry(**file.model_dump(), split=split, rows=len(rows), first_id=first))
    values = {"source": "digits", "source_rows": len(images), "image_size": SIZE, "channels": 1, "ingest": {}}
    values |= {"classes": tuple("0123456789"), "shards": tuple(entries), "rejects": (), "reject_counts": {}}
    write_dataset(store, DatasetManifest(**values, channel_mean=(0.0,), channel_std=(1.0,)))
    return store


def _write_samples(store: Store, images: np.ndarray, failed: int | None = FAILED, **plan_fields) -> Store:
    size, channels = images.shape[1], images.shape[3]
    plan = sample_plan(num_samples=len(images), shard_size=50, batch_size=10, image_size=size, channels=channels)
    create_plan(store, plan)
    for shard, first in enumerate(range(0, len(images), plan.shard_size)):
        rows = []
        for i in range(first, min(first + plan.shard_size, len(images))):
            row = {"sample_id": i, "image": {"bytes": encode_png(images[i]), "path": None}, "status": STATUS_OK}
            if i == failed:
                row |= {"image": None, "status": STATUS_FAILED}
            fixed = {"seed": 0, "model_digest": "f" * 64, "ema": "ema", "sampler": "ddim", "steps": 5, "eta": 0.0}
            rows.append({**row, **fixed, "width": size, "height": size})
        commit_shard(store, plan, shard, pa.Table.from_pylist(rows, schema=SAMPLES), "a")
    seal(store, plan)
    return store


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.images))
    images = (digits.images[order] * 255 / 16).round().astype(np.uint8)[..., None]
    labels, used = digits.target[order], NUM_TRAIN + NUM_HELDOUT
    root = tmp_path_factory.mktemp("memorisation")
    dataset = _write_dataset(_store(root / "dataset"), images[:used], labels[:used], NUM_TRAIN)
    samples = images[used : used + NUM_SAMPLES].copy()
    for sample_id, train_id in EXACT.items():
        samples[sample_id] = images[train_id]
    for sample_id, train_id in NEAR.items():
        change = np.random.default_rng(sample_id).integers(-2, 3, images[train_id].shape)
        samples[sample_id] = np.clip(images[train_id].astype(int) + change, 0, 255)
    return World(dataset, _write_samples(_store(root / "samples"), samples), images[:used])


@pytest.fixture(scope="module")
def found(world: World) -> tuple[dict, Memorisation]:
    result = world.run(workers=1)
    (stored,) = read_memorisations(world.samples)
    return result, stored


def _rows(store: Store, stored: Memorisation, space: str) -> list[dict]:
    table = pq.read_table(pa.BufferReader(store.read(stored.table.key)))
    return [row for row in table.to_pylist() if row["space"] == space]


def test_planted_copies_are_found_first_and_unseen_images_are_not_flagged(world: World, found: tuple):
    result, stored = found
    planted = EXACT | NEAR
    nearest = {row["sample_id"]: row for row in _rows(world.samples, stored, "pixel") if row["rank"] == 1}
    assert {i: nearest[i]["train_id"] for i in planted} == planted
    assert {i for i, row in nearest.items() if row["near_copy"]} == set(planted)
    assert [nearest[i]["distance"] for i in EXACT] == [0.0, 0.0]
    assert result["exact_copies"] == len(EXACT)
    closest = [pair.sample_id for pair in stored.pairs if pair.space == "pixel"]
    assert (closest[:2], set(closest[2:4])) == (list(EXACT), set(NEAR))
    feature = {row["sample_id"]: row for row in _rows(world.samples, stored, "feature") if row["rank"] == 1}
    assert {i: feature[i]["train_id"] for i in EXACT} == EXACT
    assert all(feature[i]["near_copy"] for i in EXACT)


def test_the_figures_stand_beside_those_of_held_out_images(world: World, found: tuple):
    result, stored = found
    pixel = stored.of("pixel")
    assert (pixel.near_copies.count, pixel.near_copies.n) == (len(EXACT | NEAR), NUM_SAMPLES - 1)
    assert (pixel.baseline.n, stored.reference_n, stored.failed) == (NUM_HELDOUT, NUM_TRAIN, 1)
    assert pixel.baseline.value < 0.01
    for word in ("4 of", "extractor"):
        assert word not in result["summary"]
    assert "3.36% by pixels (held-out images" in result["summary"]
    assert "features of class-cnn" in result["summary"]
    assert "\n" not in result["summary"]
    assert stored.extractor == "class-cnn"
    assert stored.dataset_digest in world.dataset.read("extractors/" + _extractor_id(world) + ".json").decode()


def _extractor_id(world: World) -> str:
    (key,) = [entry.key for entry in world.dataset.list("extractors/") if entry.key.endswith(".json")]
    return key.removeprefix("extractors/").removesuffix(".json")


def test_distances_are_those_of_all_pairs(world: World, found: tuple):
    """Every sample's three nearest once more, in memory and all at once."""
    rows = _rows(world.samples, found[1], "pixel")
    pixels = {}
    for entry in world.samples.list("data/"):
        for row in pq.read_table(pa.BufferReader(world.samples.read(entry.key))).to_pylist():
            if row["image"]:
                pixels[row["sample_id"]] = np.asarray(Image.open(io.BytesIO(row["image"]["bytes"]))).ravel()
    train = world.images[:NUM_TRAIN].reshape(NUM_TRAIN, -1).astype(np.int64)
    assert list(dict.fromkeys(row["sample_id"] for row in rows)) == sorted(pixels)
    for sample_id, image in pixels.items():
        squared = np.square(train - image).sum(axis=1)
        expected = np.lexsort((np.arange(NUM_TRAIN), squared))[:3]
        mine = [row for row in rows if row["sample_id"] == sample_id]
        assert [row["train_id"] for row in mine] == expected.tolist()
        assert [row["distance"] for row in mine] == pytest.approx(np.sqrt(squared[expected] / 64) / 255, rel=1e-12)


def test_sheets_show_sample_and_training_image_side_by_side(world: World, found: tuple):
    _, stored = found
    sheet = np.asarray(Image.open(io.BytesIO(read_sheet(world.samples, stored, "pixel"))))
    scale = 64 // SIZE
    first = sheet[: SIZE * scale, : 2 * SIZE * scale][::scale, ::scale]
    copied = world.images[EXACT[3], :, :, 0]
    assert np.array_equal(first, np.hstack([copied, copied]))
    assert len([pair for pair in stored.pairs if pair.space == "feature"]) == 32


def test_the_same_bits_for_two_workers_and_other_cuts(world: World, found: tuple, tmp_path, monkeypatch):
    from pipeline.evaluation.memorisation import driver as stage
    from pipeline.evaluation.memorisation.nearest_search import chunks_of, groups_of

    _, stored = found
    monkeypatch.setattr(stage, "groups_of", lambda job, n, heldout: groups_of(job, n, heldout, group_rows=97))
    monkeypatch.setattr(stage, "chunks_of", lambda shards, workers: chunks_of(shards, workers, chunk_rows=1))
    samples = _store(tmp_path / "samples")
    for entry in world.samples.list():
        if not entry.key.startswith("metrics/"):
            samples.put(entry.key, world.samples.read(entry.key))
    world.run(workers=2, samples=samples)
    (other,) = read_memorisations(samples)
    assert other == stored
    for key in (stored.table.key, *(file.key for file in stored.sheets.values())):
        assert samples.read(key) == world.samples.read(key)


def test_again_is_already_done_and_other_settings_are_another_result(world: World, found: tuple):
    result, stored = found
    again = world.run(workers=2)
    assert (again["state"], again["digest"], again["spaces"]) == ("already done", stored.id, result["spaces"])
    fewer = world.run(num_samples=20, flips=True)
    assert fewer["n"] == 20
    assert "the first 20 of 119" in fewer["summary"]
    assert fewer["heldout_n"] == NUM_HELDOUT
    assert fewer["digest"] != stored.id


def test_mirrored_copies_are_found_with_flips_only(world: World, tmp_path):
    images = world.images[NUM_TRAIN : NUM_TRAIN + 4].copy()
    images[2] = world.images[33][:, ::-1]
    samples = _write_samples(_store(tmp_path / "samples"), images, failed=None)
    exact = {flips: world.run(samples=samples, flips=flips)["exact_copies"] for flips in (False, True)}
    assert exact == {False: 0, True: 1}


def test_what_cannot_be_looked_up_is_one_clear_error(world: World, tmp_path):
    with pytest.raises(DataError, match="no samples at"):
        world.run(samples=_store(tmp_path / "nothing"))
    with pytest.raises(DataError, match="no dataset at"):
        world.run(dataset=_store(tmp_path / "nowhere"))
    colour = _write_samples(_store(tmp_path / "colour"), world.images[:20].repeat(3, axis=3), failed=None)
    with pytest.raises(DataError, match=r"8x8x3.*8x8x1"):
        world.run(samples=colour)
    none_held = _write_dataset(_store(tmp_path / "none"), world.images[:200], np.zeros(200), 200)
    with pytest.raises(DataError, match="0 heldout images, the baseline needs 2"):
        world.run(dataset=none_held)
    nothing_made = _write_samples(_store(tmp_path / "failed"), world.images[:1], failed=0)
    with pytest.raises(DataError, match="no usable sample: all 1 failed"):
        world.run(samples=nothing_made)
