"""Generation gives the same samples for any number of actors, keeps what is committed, and says what went wrong."""

import json
import logging
import os
import pickle
import sys
import uuid
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from datasets import load_dataset
from safetensors.torch import load, save
from tiny_model import write_model

from pipeline.config.storage import StorageConfig
from pipeline.errors import ConfigError, DataError, Transient, VerificationFailed
from pipeline.generation import driver as stage
from pipeline.generation.commit import commit_shard, committed_shards, create_plan, read_manifest, read_plan
from pipeline.generation.driver import generate
from pipeline.generation.sample_plan import PlannedSamples
from pipeline.generation.shard_metrics import SHARD_METRICS
from pipeline.images.png import decode_pixels
from pipeline.model_store.load_model import find_model, load_unet
from pipeline.models.diffusers_format import model_files
from pipeline.operations.verify import verify
from pipeline.schema import SAMPLES
from pipeline.storage.files import put_file, read_parquet
from pipeline.storage.store import Store, resolve
from tiny import config

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


def hashes(uri):
    """sha256 of every sample, in order of id."""
    job = resolve(uri, StorageConfig())
    rows = [row for marker in read_manifest(job).shards for row in read_parquet(job, marker).to_pylist()]
    return [(row["sample_id"], row["sha256"]) for row in rows]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    uri = str(tmp_path_factory.mktemp("model") / "run")
    write_model(uri, config())
    return uri


@pytest.fixture(scope="module")
def one_actor(model, tmp_path_factory):
    out = str(tmp_path_factory.mktemp("one") / "samples")
    return generate(config(ray={"workers": 1}), model, out)


def test_the_result_and_what_is_at_rest(one_actor):
    uri = one_actor["uri"]
    assert (one_actor["state"], one_actor["samples"], one_actor["failed"], one_actor["shards"]) == (
        "generated",
        80,
        0,
        5,
    )
    assert one_actor["images"] == 80
    assert one_actor["images_per_second"] > 0
    json.dumps(one_actor)
    counts = verify(config(), uri)["counts"]
    assert (counts["samples"], counts["failed"], counts["unnamed"]) == (80, 0, 0)
    assert len({sha256 for _, sha256 in hashes(uri)}) == 80
    log = pq.read_table(f"{uri}/metrics/shards.parquet")
    assert log.schema.equals(SHARD_METRICS)
    assert log["shard"].to_pylist() == [0, 1, 2, 3, 4]
    assert log["rows"].to_pylist() == [16] * 5


@pytest.mark.parametrize(
    ("kind", "workers"), [pytest.param("local", "1..2", marks=pytest.mark.nightly), ("s3", "1..2"), ("local", 4)]
)
def test_more_actors_make_the_same_samples_as_one(kind, workers, request, model, one_actor, tmp_path):
    root = request.getfixturevalue("s3_uri") if kind == "s3" else str(tmp_path)
    if kind == "s3":
        write_model(f"{root}/run", config())
        model = f"{root}/run"
    result = generate(config(ray={"workers": workers}), model, f"{root}/samples")
    assert hashes(result["uri"]) == hashes(one_actor["uri"])
    assert (result["digest"], result["plan"]) == (one_actor["digest"], one_actor["plan"])
    assert verify(config(), result["uri"])["counts"]["samples"] == 80


def test_again_is_already_done_and_finishes_an_interrupted_end(model, one_actor):
    job = resolve(one_actor["uri"], StorageConfig())
    job.delete("README.md")
    job.put("data/shard-000000001-zombie.parquet", b"late")
    again = generate(config(ray={"workers": 2}), model, job.uri)
    assert (again["state"], again["digest"]) == ("already done", one_actor["digest"])
    assert job.exists("README.md")
    assert not job.exists("data/shard-000000001-zombie.parquet")


def test_another_job_in_the_folder_is_refused_and_a_dry_run_does_nothing(model, one_actor, tmp_path):
    other = config(generate={"seed": 9})
    for dry_run in (True, False):
        with pytest.raises(ConfigError, match="seed 0 stored, 9 requested"):
            generate(other, model, one_actor["uri"], dry_run=dry_run)
    told = generate(other, model, str(tmp_path / "new"), dry_run=True)
    assert "80 samples in 5 shards (5 missing)" in told["summary"]
    assert not (tmp_path / "new").exists()


def test_only_missing_shards_are_made(model, one_actor, tmp_path):
    """Committed shards keep their bytes, even if this machine would make others."""
    source, job = resolve(one_actor["uri"], StorageConfig()), resolve(str(tmp_path / "samples"), StorageConfig())
    plan = create_plan(job, read_plan(source))
    for shard in (1, 3):
        table = read_parquet(source, read_manifest(source).shards[0])
        ids = pa.array(list(PlannedSamples(plan).layout.ids(shard)), pa.int64())
        commit_shard(job, plan, shard, table.set_column(0, SAMPLES.field(0), ids), "stranger")
    result = generate(config(ray={"workers": 2}), model, job.uri)
    assert result["images"] == 48
    made = [marker.attempt == "stranger" for marker in read_manifest(job).shards]
    assert made == [False, True, False, True, False]
    expected = hashes(source.uri)
    assert [pair for pair in hashes(job.uri) if pair[0] // 16 in (0, 2, 4)] == [
        pair for pair in expected if pair[0] // 16 in (0, 2, 4)
    ]


def test_one_checkpoint_raw_weights_and_a_diffusers_folder(model, one_actor, tmp_path):
    settings = {"ray": {"workers": 1}, "generate": {"num_samples": 16}}
    checkpoint = f"{model}/checkpoints/step-000000001"
    averaged = generate(config(**settings), checkpoint, str(tmp_path / "ema"))
    raw_settings = {**settings, "generate": {"num_samples": 16, "weights": "raw"}}
    raw = generate(config(**raw_settings), checkpoint, str(tmp_path / "raw"))
    assert hashes(averaged["uri"]) == hashes(one_actor["uri"])[:16]
    assert not set(hashes(raw["uri"])) & set(hashes(averaged["uri"]))
    found = find_model(model, "ema", StorageConfig())
    folder = resolve(str(tmp_path / "folder"), StorageConfig())
    for name, data in model_files(load_unet(found, StorageConfig()), found.diffusion).items():
        folder.put(name, data)
    exported = generate(config(**settings), folder.uri, str(tmp_path / "exported"))
    assert hashes(exported["uri"]) == hashes(averaged["uri"])
    with pytest.raises(ConfigError, match="no weights 'emma'; it has ema, raw"):
        generate(config(generate={"weights": "emma"}), checkpoint, str(tmp_path / "x"))


def test_a_sealed_job_grows_by_new_ids_only(model, one_actor, tmp_path):
    job = resolve(str(tmp_path / "samples"), StorageConfig())
    for entry in resolve(one_actor["uri"], StorageConfig()).list():
        job.put(entry.key, resolve(one_actor["uri"], StorageConfig()).read(entry.key))
    before = {entry.key: job.read(entry.key) for entry in job.list() if not entry.key.startswith(("metrics", "README"))}
    larger = config(ray={"workers": 2}, generate={"num_samples": 100})
    assert "100 samples in 7 shards (2 missing)" in generate(larger, model, job.uri, dry_run=True)["summary"]
    result = generate(larger, model, job.uri)
    assert (result["samples"], result["images"], result["shards"]) == (100, 20, 7)
    assert before.items() <= {entry.key: job.read(entry.key) for entry in job.list()}.items()
    assert hashes(job.uri)[:80] == hashes(one_actor["uri"])
    assert len(set(hashes(job.uri))) == 100
    assert verify(config(), job.uri)["counts"]["samples"] == 100
    assert b"100 generated images" in job.read("README.md")
    for settings, samples in ((larger, 100), (config(), 80)):
        again = generate(settings, model, job.uri)
        assert (again["state"], again["samples"]) == ("already done", samples)


def test_what_is_no_model_is_one_clear_error(model, tmp_path):
    with pytest.raises(DataError, match="no model at"):
        generate(config(), str(tmp_path), str(tmp_path / "x"))
    with pytest.raises(DataError, match="no checkpoint at step 7"):
        generate(config(), f"{model}/checkpoints/step-000000007", str(tmp_path / "x"))


def test_an_error_of_an_actor_arrives_as_itself(tmp_path):
    uri = str(tmp_path / "run")
    write_model(uri, config())
    path = Path(uri) / "checkpoints/step-000000001/ema.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(VerificationFailed, match=r"ema\.safetensors is not what its manifest names"):
        generate(config(ray={"workers": 2}), uri, str(tmp_path / "samples"))


def test_samples_that_cannot_be_made_are_listed_and_the_rest_is_sealed(tmp_path):
    uri = str(tmp_path / "run")
    write_model(uri, config())
    folder = resolve(f"{uri}/checkpoints/step-000000001", StorageConfig())
    weights = load(folder.read("ema.safetensors"))
    weights["conv_out.bias"][:] = float("nan")
    manifest = folder.read_json("manifest.json")
    entry = put_file(folder, "ema.safetensors", save(weights)).model_dump()
    manifest["files"] = [entry if file["key"] == entry["key"] else file for file in manifest["files"]]
    folder.put("manifest.json", json.dumps(manifest).encode())
    for _again in range(2):
        with pytest.raises(DataError, match="80 of 80 samples") as caught:
            generate(config(ray={"workers": 2}), uri, str(tmp_path / "samples"))
        assert "sample 0: the network gave NaN" in str(caught.value)
        assert len(str(caught.value).splitlines()) == 22
    counts = verify(config(), str(tmp_path / "samples"))["counts"]
    assert (counts["samples"], counts["failed"]) == (80, 80)


@dataclass(frozen=True)
class Outages(Store):
    """A store that is out of reach for the first puts of data; the count is in files, for all processes."""

    log: str = ""

    def put(self, key, data):
        if key.startswith("data/") and len(os.listdir(self.log)) < 2:
            (Path(self.log) / uuid.uuid4().hex).touch()
            logging.getLogger("ddpm.test").warning("cannot put %s", key)
            raise Transient("no route to the store")
        super().put(key, data)


@pytest.fixture
def outages(monkeypatch, tmp_path):
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    (tmp_path / "log").mkdir()
    monkeypatch.setattr(stage, "resolve", lambda uri, settings: Outages(uri, settings, str(tmp_path / "log")))
    yield
    ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


def test_an_outage_is_waited_out(outages, model, one_actor, tmp_path, caplog):
    result = generate(config(ray={"workers": 2, "max_failures": 2}), model, str(tmp_path / "samples"))
    assert hashes(result["uri"]) == hashes(one_actor["uri"])
    assert "going on: no route to the store" in caplog.text
    (first, *_) = [record for record in caplog.records if record.name == "ddpm.test"]  # of an actor
    assert first.getMessage().startswith("cannot put data/")
    assert first.origin["actor"].startswith(f"{first.origin['node']}:")


def test_failures_are_bounded_and_nothing_committed_is_lost(outages, model, tmp_path):
    job = resolve(str(tmp_path / "samples"), StorageConfig())
    with pytest.raises(Transient, match="no route to the store"):
        generate(config(ray={"workers": 1, "max_failures": 0}), model, job.uri)
    done = list(committed_shards(job))
    assert len(done) == 3
    assert generate(config(ray={"workers": 1}), model, job.uri)["images"] == 32


def test_the_folder_is_a_hugging_face_dataset(one_actor, tmp_path):
    data = load_dataset(one_actor["uri"], split="train", cache_dir=str(tmp_path))
    assert len(data) == 80
    by_id = {row["sample_id"]: row for row in data}
    assert by_id[17]["image"].size == (8, 8)
    job = resolve(one_actor["uri"], StorageConfig())
    row = read_parquet(job, read_manifest(job).shards[1]).to_pylist()[1]
    assert np.array_equal(np.asarray(by_id[17]["image"]), decode_pixels(row["image"]["bytes"], 64)[:, :, 0])


def test_what_travels_to_an_actor_holds_no_credential(s3_environment):
    job = resolve(f"{s3_environment.uri}/x", StorageConfig())
    text = pickle.dumps(job)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        assert os.environ[name].encode() not in text
