"""Training is the same whatever the number of workers, and whatever stopped it on the way."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.config.storage import StorageConfig
from pipeline.errors import ConfigError, DataError, PipelineError
from pipeline.ingest.dataset import read_dataset
from pipeline.model_store.checkpoint import committed_steps, latest_checkpoint, read_tensors
from pipeline.model_store.manifest import CheckpointManifest, RunPlan
from pipeline.storage.store import resolve
from pipeline.training.driver import train
from pipeline.training.metrics_table import read_metrics
from tiny import config, digits

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


@pytest.fixture(scope="module")
def root(tmp_path_factory, ray_cluster):
    folder = str(tmp_path_factory.mktemp("train"))
    digits(folder)
    return folder


def finish(root, name, workers, steps=48):
    return train(
        config(ray={"workers": workers}, train={"steps": steps}), f"{root}/datasets/digits", f"{root}/runs/{name}"
    )


@pytest.fixture(scope="module")
def undisturbed(root):
    return finish(root, "w2", 2)


def checkpoint(result) -> CheckpointManifest:
    found = latest_checkpoint(resolve(result["uri"], StorageConfig()))
    assert found is not None
    return found


def weights(result):
    store = resolve(result["uri"], StorageConfig())
    return read_tensors(store, checkpoint(result), "model", "ema")


def hashes(result):
    return {entry.key: entry.sha256 for entry in checkpoint(result).files}


def test_workers_change_neither_the_batches_nor_the_weights_beyond_rounding(root, undisturbed):
    alone = finish(root, "w1", 1)
    assert alone["batch_digest"] == undisturbed["batch_digest"]
    for group, tensors in weights(alone).items():
        for name, tensor in tensors.items():
            other = weights(undisturbed)[group][name]
            assert (tensor - other).abs().max() < 2e-4, f"{group} {name}"


@pytest.mark.nightly
def test_a_run_in_two_parts_ends_bit_identical(root, undisturbed):
    assert finish(root, "parts", 2, steps=21)["step"] == 21
    whole = finish(root, "parts", 2)
    assert whole["batch_digest"] == undisturbed["batch_digest"]
    assert hashes(whole) == hashes(undisturbed)


def test_a_finished_run_is_left_as_it_is(root, undisturbed):
    assert finish(root, "w2", 2)["state"] == "already done"


def test_other_settings_are_refused_by_name(root, undisturbed):
    with pytest.raises(ConfigError, match=r"train\.lr"):
        train(config(train={"lr": 0.1}), f"{root}/datasets/digits", f"{root}/runs/w2")


def test_metrics_have_every_step_once_and_the_loss_falls(root, undisturbed):
    store = resolve(undisturbed["uri"], StorageConfig())
    rows = read_metrics(store, checkpoint(undisturbed)).to_pylist()
    assert [row["step"] for row in rows] == list(range(1, 49))
    assert [row["images"] for row in rows] == [32 * step for step in range(1, 49)]
    first, last = (sum(row["loss"] for row in part) / 8 for part in (rows[:8], rows[-8:]))
    assert last < 0.6 * first
    assert rows[0]["lr"] == pytest.approx(0.0002)
    assert rows[-1]["lr"] == pytest.approx(0.002)
    assert all(0 <= row["data_wait_seconds"] <= row["step_seconds"] for row in rows)


def test_the_run_folder_holds_what_the_design_says(root, undisturbed, tmp_path):
    store = resolve(undisturbed["uri"], StorageConfig())
    keys = [entry.key for entry in store.list()]
    assert committed_steps(store) == [16, 32, 48]
    assert {"config.yaml", "run.json", "_SUCCESS.json"} <= set(keys)
    assert [key for key in keys if key.startswith("grids/")] == ["grids/step-000000024.png", "grids/step-000000048.png"]
    assert any(key.startswith("tensorboard/events") for key in keys)
    assert not [key for key in keys if key.startswith("ray/")]
    (tmp_path / "grid.png").write_bytes(store.read("grids/step-000000048.png"))
    assert Image.open(tmp_path / "grid.png").size == (3 * 64 + 2 * 2,) * 2
    assert json.loads(store.read("_SUCCESS.json"))["step"] == 48


def test_retention_keeps_the_newest_and_a_worker_s_warning_arrives(root, caplog):
    (Path(root) / "runs/kept").mkdir(parents=True)
    (Path(root) / "runs/kept/tensorboard").write_text("a file where the folder should be")
    result = train(
        config(train={"steps": 12, "checkpoint_every": 3, "keep_checkpoints": 2}, ray={"workers": 1}),
        f"{root}/datasets/digits",
        f"{root}/runs/kept",
    )
    store = resolve(result["uri"], StorageConfig())
    assert committed_steps(store) == [9, 12]
    assert len([e for e in store.list("checkpoints/") if e.key.endswith(".safetensors")]) == 6
    (warning,) = [record for record in caplog.records if record.name == "ddpm.training"]
    assert warning.getMessage().startswith("TensorBoard is dropped for this run")
    assert warning.origin["rank"] == 0


@pytest.mark.nightly
def test_on_s3_a_run_gives_the_same_batches(root, undisturbed, s3_uri):
    dataset = digits(s3_uri)
    result = train(config(ray={"workers": 2}), dataset, f"{s3_uri}/runs/w2")
    assert result["batch_digest"] == undisturbed["batch_digest"]
    assert hashes(result) == hashes(undisturbed)


@pytest.mark.parametrize(
    ("sections", "error", "text"),
    [
        ({"ray": {"workers": 3}}, ConfigError, "3 workers do not divide train.lanes = 4"),
        ({"train": {"micro_batch": 64}}, DataError, "do not give each of 4 lanes a micro-batch of 64"),
        ({"model": {"num_classes": 3}}, ConfigError, "model.num_classes is 3 and the dataset has 10 classes"),
    ],
)
def test_impossible_requests_are_refused_before_anything_starts(root, sections, error, text):
    with pytest.raises(error, match=text):
        train(config(**sections), f"{root}/datasets/digits", f"{root}/runs/never")


def test_shards_and_metrics_are_plain_parquet(root, undisturbed):
    shard = read_dataset(resolve(f"{root}/datasets/digits", StorageConfig())).split("train")[0]
    table = pq.read_table(f"{root}/datasets/digits/{shard.key}")
    assert table.num_rows == shard.rows
    assert table.schema.metadata[b"huggingface"]


@pytest.mark.nightly
def test_a_run_stopped_before_its_record_is_completed(root, undisturbed):
    """The last checkpoint is there and `_SUCCESS.json` is not: nothing is left to train, and the run is done."""
    finish(root, "unrecorded", 2, steps=8)
    store = resolve(f"{root}/runs/unrecorded", StorageConfig())
    store.delete("_SUCCESS.json")
    result = finish(root, "unrecorded", 2, steps=8)
    assert (result["state"], result["step"]) == ("trained", 8)
    assert store.exists("_SUCCESS.json")


def test_weights_that_blow_up_end_the_run_by_name_and_without_a_restart(root):
    """The same run would meet the same step again, so `ray.max_failures` restarts would be of no use."""
    uri = f"{root}/runs/blown"
    with pytest.raises(PipelineError, match=r"step \d+ \(epoch 0, batch \d+\) has loss .*sample ids"):
        train(config(train={"lr": 1e30, "warmup_steps": 0, "grad_clip": 1e30}), f"{root}/datasets/digits", uri)
    store = resolve(uri, StorageConfig())
    assert not committed_steps(store)
    assert len(list(store.list("attempts/"))) == 1
    assert not store.exists("_SUCCESS.json")


@pytest.mark.nightly
def test_split_weights_a_warm_start_and_two_averages(root, undisturbed):
    """fsdp on two workers, from the weights of another run; then on one worker from the same checkpoint."""
    sections = {
        "sharding": "fsdp",
        "more_ema": {"fast": {"half_life_images": 64}},
        "init_from": undisturbed["checkpoint"],
        "checkpoint_every": 4,
        "grid_every": 4,
    }
    made = [
        train(config(train={**sections, "steps": steps}, ray={"workers": workers}), f"{root}/datasets/digits", uri)
        for steps, workers, uri in ((4, 2, f"{root}/runs/warm"), (8, 1, f"{root}/runs/warm"))
    ]
    assert made[1]["step"] == 8
    store = resolve(f"{root}/runs/warm", StorageConfig())
    found = latest_checkpoint(store)
    assert found.ema == ("ema", "fast")
    tensors = read_tensors(store, found, "ema", "fast")
    assert any((tensors["ema"][name] != tensors["fast"][name]).any() for name in tensors["ema"])
    rows = read_metrics(store, found).to_pylist()
    assert [row["world_size"] for row in rows] == [2] * 4 + [1] * 4
    trained = read_metrics(resolve(undisturbed["uri"], StorageConfig()), checkpoint(undisturbed)).to_pylist()
    assert rows[0]["loss"] < 0.6 * trained[0]["loss"]  # it begins where the other run ended
    assert RunPlan.model_validate_json(store.read("run.json")).init_digest == hashes(undisturbed)["ema.safetensors"]


@pytest.mark.nightly
def test_loss_curves_of_any_number_of_workers_agree(root):
    """200 steps on 1, 2 and 4 workers, and on 3 of which two have an idle lane's time."""
    curves = {}
    for workers in ("1", "2", "4", "1..3"):
        result = train(
            config(train={"steps": 200, "checkpoint_every": 100, "grid_every": 200}, ray={"workers": workers}),
            f"{root}/datasets/digits",
            f"{root}/runs/curve-{workers}",
        )
        rows = read_metrics(resolve(result["uri"], StorageConfig()), checkpoint(result)).to_pylist()
        assert {row["world_size"] for row in rows} == {int(workers[-1])}
        curves[workers] = (result["batch_digest"], [row["loss"] for row in rows])
    digest, losses = curves.pop("1")
    for other, curve in curves.values():
        assert other == digest
        assert curve == pytest.approx(losses, rel=2e-3)
