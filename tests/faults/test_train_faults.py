"""Killed at any moment and started again, a run ends where the undisturbed one ends."""

import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from pipeline.config import StorageConfig
from pipeline.stages.train import train
from pipeline.storage.checkpoints import committed_steps, latest_checkpoint
from pipeline.storage.store import resolve
from tiny import command, config, digits, run, start

pytestmark = [pytest.mark.faults, pytest.mark.ray]
LONG = {"train": {"steps": 120, "checkpoint_every": 20, "grid_every": 120}, "ray": {"workers": 2}}


def wait_for(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


def finished(uri):
    found = latest_checkpoint(resolve(uri, StorageConfig()))
    assert found is not None
    return found.step, found.batch_digest, {entry.key: entry.sha256 for entry in found.files}


def children(name):
    """Process ids of Ray processes whose title has the name."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if name in (folder / "cmdline").read_bytes().decode(errors="replace"):
                found.append(int(folder.name))
        except OSError:
            continue
    return found


@pytest.fixture(scope="module")
def undisturbed_run(tmp_path_factory, ray_cluster):
    root = tmp_path_factory.mktemp("undisturbed")
    train(config(**LONG), digits(str(root)), f"{root}/run")
    return root / "run"


@pytest.fixture(scope="module")
def undisturbed(undisturbed_run):
    return finished(str(undisturbed_run))


@pytest.mark.parametrize("kind", ["local", "s3"])
def test_driver_killed_mid_epoch_and_rerun(kind, request, tmp_path, undisturbed):
    root = request.getfixturevalue("s3_uri") if kind == "s3" else str(tmp_path)
    uri = f"{root}/run"
    words = command(tmp_path, "train", "--dataset", digits(root), "--run", uri, **LONG)
    store = resolve(uri, StorageConfig())
    driver = start(words)
    wait_for(lambda: len(committed_steps(store)) >= 1 or driver.poll() is not None)
    assert driver.poll() is None, driver.communicate()
    os.kill(driver.pid, signal.SIGKILL)
    driver.communicate()
    assert committed_steps(store)[-1] < 120
    again = run(words)
    assert again.returncode == 0, again.stderr
    assert finished(uri) == undisturbed


def test_worker_killed_is_restarted_within_the_run(tmp_path, undisturbed, ray_cluster):
    """The worker group restarts from the latest checkpoint inside the same command."""
    root = str(tmp_path)
    words = command(tmp_path, "train", "--dataset", digits(root), "--run", f"{root}/run", **LONG)
    store = resolve(f"{root}/run", StorageConfig())
    before = set(children("ray::RayTrainWorker"))
    driver = start(words)
    wait_for(lambda: committed_steps(store) or driver.poll() is not None)
    victims = [pid for pid in children("ray::RayTrainWorker") if pid not in before]
    assert victims, driver.communicate()
    os.kill(victims[-1], signal.SIGKILL)
    _, err = driver.communicate(timeout=200)
    assert driver.returncode == 0, err
    assert finished(f"{root}/run") == undisturbed


def test_a_torn_checkpoint_does_not_exist(tmp_path, undisturbed_run, undisturbed):
    """Files of a checkpoint whose manifest was never written are neither read nor in the way."""
    shutil.copytree(undisturbed_run, tmp_path / "run")
    store = resolve(str(tmp_path / "run"), StorageConfig())
    store.delete("_SUCCESS.json")
    for step in (100, 120):
        store.delete(f"checkpoints/step-{step:09d}/manifest.json")
    store.put("checkpoints/step-000000100/model.safetensors", b"half a file")
    assert committed_steps(store) == [80]
    train(config(**LONG), f"{undisturbed_run.parent}/datasets/digits", store.uri)
    assert finished(store.uri) == undisturbed


def test_ctrl_c_is_no_success(tmp_path, ray_cluster):
    root = str(tmp_path)
    words = command(tmp_path, "train", "--dataset", digits(root), "--run", f"{root}/run", **LONG)
    store = resolve(f"{root}/run", StorageConfig())
    driver = start(words)
    wait_for(lambda: committed_steps(store) or driver.poll() is not None)
    driver.send_signal(signal.SIGINT)
    _, err = driver.communicate(timeout=120)
    assert driver.returncode == 130, err
    assert "the same command continues" in err
    assert not store.exists("_SUCCESS.json")
    assert committed_steps(store)[-1] < 120
