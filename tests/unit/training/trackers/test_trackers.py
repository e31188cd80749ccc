"""TensorBoard, Weights & Biases and MLflow, each read back with its own reader; none blocks or ends training."""

import io
import struct
import threading
import time
from itertools import pairwise
from pathlib import Path

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_run import metric_row

from pipeline.config.root import Config
from pipeline.config.storage import StorageConfig
from pipeline.errors import ConfigError, StorageError
from pipeline.model_store.manifest import RunPlan
from pipeline.storage.documents import to_json
from pipeline.storage.store import Store, resolve
from pipeline.training.trackers import tracker as trackers
from pipeline.training.trackers.services import MLflow, WandB, tracker_id
from pipeline.training.trackers.tensorboard import TensorBoard
from pipeline.training.trackers.tracker import check_trackers, open_trackers

pytestmark = pytest.mark.unit


@pytest.fixture
def run(tmp_path):
    store = resolve(str(tmp_path / "runs" / "r1"), StorageConfig())
    plan = RunPlan(dataset_uri="d", dataset_digest="d", config=Config().model_dump(mode="json"))
    store.put("run.json", to_json(plan))
    return store


@pytest.fixture
def mlflow_client(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow.tracking import MlflowClient

    return MlflowClient()


@pytest.fixture
def wandb_folder(tmp_path, monkeypatch):
    for name, value in {"WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path), "WANDB_SILENT": "true"}.items():
        monkeypatch.setenv(name, value)
    return tmp_path / "wandb"


def rows(first, last):
    by_t = [tenth / 10 for tenth in range(9)] + [None]
    more = {"world_size": 1, "skew_seconds": 0.25, "slowest_rank": 0, "loss_by_t": by_t}
    return [metric_row(step, **more) for step in range(first, last + 1)]


def png(value=200):
    file = io.BytesIO()
    Image.new("RGB", (6, 4), (value, 0, 0)).save(file, "png")
    return file.getvalue()


def board(run):
    found = EventAccumulator(f"{run.path()}/tensorboard", size_guidance={"scalars": 0, "images": 0})
    found.Reload()
    return found


def points(events):
    return [(event.step, pytest.approx(event.value)) for event in events]


LOSSES = [(step, 1.0 / step) for step in range(1, 7)]


def test_tensorboard_shows_each_step_once_also_after_steps_were_done_again(run):
    first = TensorBoard(run)
    first.scalars(rows(1, 3))
    first.image("samples", png(100), 3)
    first.scalars(rows(4, 6))
    after_a_restart = TensorBoard(run)
    after_a_restart.scalars(rows(4, 6))
    after_a_restart.image("samples", png(250), 3)
    found = board(run)
    by_t = {f"train/loss_by_t/{tenth}" for tenth in range(9)}
    names = {f"train/{name}" for name in ("loss", "lr", "grad_norm", "skew_seconds", "data_wait", "images_per_second")}
    assert set(found.Tags()["scalars"]) == names | by_t
    assert points(found.Scalars("train/loss")) == LOSSES
    assert points(found.Scalars("train/loss_by_t/3")) == [(step, 0.3) for step in range(1, 7)]
    assert points(found.Scalars("train/images_per_second")) == [(3, 16), (6, 16)]
    times = [event.wall_time for event in found.Scalars("train/loss")][3:]
    assert [late - early for early, late in pairwise(times)] == pytest.approx([0.5, 0.5])
    (image,) = found.Images("samples")
    assert (image.step, image.width, image.height, image.encoded_image_string) == (3, 6, 4, png(250))


def test_event_files_lie_in_the_order_in_which_tensorboard_reads_them(run):
    tensorboard = TensorBoard(run)
    tensorboard.scalars(rows(1, 99))
    tensorboard.image("samples", png(), 99)
    tensorboard.image("samples", png(), 150)
    tensorboard.scalars(rows(100, 1000))
    keys = [entry.key.partition("tfevents.")[2] for entry in run.list("tensorboard/")]
    assert keys == [
        "000000000099.0-scalars",
        "000000000099.1-samples",
        "000000000150.1-samples",
        "000000001000.0-scalars",
    ]


def test_mlflow_shows_each_step_once_also_after_a_restart(run, mlflow_client):
    for first, last in ((1, 3), (2, 6)):  # a restart did 2 and 3 again
        tracker = MLflow(run)
        tracker.scalars(rows(first, last))
        tracker.image("samples", png(last), 3)
        tracker.close()
    experiment = mlflow_client.get_experiment_by_name("ddpm")
    (found,) = mlflow_client.search_runs([experiment.experiment_id])
    assert found.info.status == "FINISHED"
    assert found.data.tags["mlflow.runName"] == "r1"
    assert found.data.params["train.lr"] == "0.0002"
    assert not [name for name in found.data.params if name.startswith("storage")]
    history = mlflow_client.get_metric_history(found.info.run_id, "train/loss")
    assert [(metric.step, metric.value) for metric in history] == LOSSES
    (artifact,) = mlflow_client.list_artifacts(found.info.run_id, "samples")
    folder = mlflow_client.download_artifacts(found.info.run_id, artifact.path)
    assert Path(folder).read_bytes() == png(6)


def test_a_long_part_goes_to_mlflow_in_pieces(run, mlflow_client):
    tracker = MLflow(run)
    tracker.scalars(rows(1, 150))  # 14 charts a step: more than one request takes
    tracker.close()
    (found,) = mlflow_client.search_runs([mlflow_client.get_experiment_by_name("ddpm").experiment_id])
    assert len(mlflow_client.get_metric_history(found.info.run_id, "train/loss_by_t/8")) == 150


def wandb_records(data):
    """What is in a run's log so far: LevelDB's format, blocks of 32 KiB, records in one or more pieces."""
    from wandb.proto.wandb_internal_pb2 import Record

    at, whole = 7, b""
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        if at + 7 + length > len(data):
            return
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # the only or the last piece
            yield Record.FromString(whole)
            whole = b""


def finished_wandb_records(folder):
    """All of a run that was closed: another process writes the log, and may do so after `finish` has returned."""
    (file,) = folder.glob("offline-run-*/run-*.wandb")
    end = time.monotonic() + 60
    while True:
        records = list(wandb_records(file.read_bytes()))
        if "exit" in {record.WhichOneof("record_type") for record in records}:
            return records
        assert time.monotonic() < end, f"no end of the log in 60 s: {len(records)} records"
        time.sleep(0.1)


def test_wandb_shows_each_step_once_and_a_picture_with_its_step(run, wandb_folder):
    tracker = WandB(run)
    tracker.image("samples", png(), 2)  # comes before the checkpoint that has its step
    tracker.scalars(rows(1, 3))
    tracker.image("samples", png(), 3)
    tracker.scalars(rows(3, 6))  # done again
    tracker.close()
    records = finished_wandb_records(wandb_folder)
    (header,) = (record.run for record in records if record.WhichOneof("record_type") == "run")
    assert (header.run_id, header.project, header.display_name) == (tracker_id(run), "ddpm", "r1")
    assert {item.key for item in header.config.update} >= {"model", "diffusion", "train"}
    assert "storage" not in {item.key for item in header.config.update}
    history = [
        {"/".join(item.nested_key) or item.key: item.value_json for item in record.history.item}
        for record in records
        if record.WhichOneof("record_type") == "history"
    ]
    assert [(int(row["_step"]), float(row["train/loss"])) for row in history] == LOSSES
    assert [int(row["_step"]) for row in history if "samples/path" in row] == [2, 3]


def test_a_run_has_the_same_name_everywhere_after_a_restart_and_no_other_run_has_it(run):
    assert tracker_id(run) == tracker_id(resolve(run.uri, StorageConfig(retries=0)))
    assert tracker_id(run) != tracker_id(run.child("x"))
    assert len(tracker_id(run)) == 16


def test_a_missing_package_is_a_configuration_error_before_anything_is_opened(run, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="mlflow, which is not installed: pip install mlflow-skinny"):
        check_trackers(["mlflow"])
    with pytest.raises(ConfigError, match="pip install wandb"):
        open_trackers(run, ["wandb"])


def test_an_unreachable_server_is_warned_about_once_and_tensorboard_goes_on(run, monkeypatch, caplog):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    opened = open_trackers(run, ["mlflow"])
    for first, last in ((1, 3), (4, 6)):
        for tracker in opened:
            tracker.scalars(rows(first, last))
    for tracker in opened:
        tracker.close()
    (record,) = [record for record in caplog.records if record.name == "ddpm.training"]
    assert record.getMessage().startswith("mlflow is dropped")
    assert points(board(run).Scalars("train/loss")) == LOSSES


class Full(Store):
    """Takes nothing."""

    def put(self, key, data):
        raise StorageError(f"{key}: no space left on device: free some space")


def test_a_full_disk_ends_tensorboard_and_nothing_else(run, caplog):
    (tracker,) = open_trackers(Full(run.uri, run.config))
    for number in range(20):  # more than the queue holds
        tracker.scalars(rows(number + 1, number + 1))
        tracker.image("samples", png(), number + 1)
    tracker.close()
    (record,) = [record for record in caplog.records if record.name == "ddpm.training"]
    assert "TensorBoard is dropped" in record.getMessage()
    assert "free some space" in record.getMessage()


def test_a_tracker_that_hangs_blocks_training_for_a_limited_time(run, monkeypatch, caplog):
    monkeypatch.setattr(trackers, "WAIT_SECONDS", 0.2)
    gate = threading.Event()
    monkeypatch.setattr(Store, "put", lambda self, key, data: gate.wait(30))
    (tracker,) = open_trackers(run)
    began = time.monotonic()
    for number in range(20):
        tracker.scalars(rows(number + 1, number + 1))
    tracker.close()
    gate.set()
    assert time.monotonic() - began < 10
    (record,) = [record for record in caplog.records if record.name == "ddpm.training"]
    assert "does not keep up" in record.getMessage()
