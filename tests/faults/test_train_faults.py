"""Stopped in every way and started again, a run ends where the undisturbed one ends."""

import os
import shutil
import signal
import subprocess
import time

import pytest
import ray
from processes import titled, wait_for

from pipeline.config.storage import StorageConfig
from pipeline.model_store.checkpoint import committed_steps, latest_checkpoint
from pipeline.storage.store import resolve
from pipeline.training.driver import train
from pipeline.training.metrics_table import read_metrics
from proxy import Proxy
from tiny import command, config, digits, run, start

pytestmark = [pytest.mark.faults, pytest.mark.ray]
LONG = {
    "train": {"steps": 60, "checkpoint_every": 10, "grid_every": 60, "check_every": 15},
    "ray": {"workers": 2},
    "storage": {"outage_seconds": 120},
}
SLOW = {**LONG, "train": {**LONG["train"], "grid_every": 5, "grid_sampling_steps": 40, "grid_size": 64}}
"""The same path of weights with more to do on the way, so that there is time to disturb it."""


def finished(uri):
    """What must be equal: the step, the order of all ids, every byte of the last checkpoint."""
    found = latest_checkpoint(resolve(uri, StorageConfig()))
    assert found is not None
    return found.step, found.batch_digest, {entry.key: entry.sha256 for entry in found.files}


def metric_rows(uri):
    store = resolve(uri, StorageConfig())
    return read_metrics(store, latest_checkpoint(store)).to_pylist()


def attempts(uri):
    """Steps at which workers began, in order."""
    store = resolve(uri, StorageConfig())
    found = [store.read_json(entry.key) for entry in store.list("attempts/")]
    return [attempt["step"] for attempt in sorted(found, key=lambda attempt: (attempt["started"], attempt["step"]))]


@pytest.fixture(scope="module")
def undisturbed_run(tmp_path_factory, ray_cluster):
    root = tmp_path_factory.mktemp("undisturbed")
    train(config(**LONG), digits(str(root)), f"{root}/run")
    return root / "run"


@pytest.fixture(scope="module")
def undisturbed(undisturbed_run):
    return finished(str(undisturbed_run))


@pytest.fixture
def dataset(undisturbed_run):
    return f"{undisturbed_run.parent}/datasets/digits"


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.nightly)])
def uri(request, tmp_path, undisturbed):
    """A run's place on each kind of store."""
    return f"{request.getfixturevalue('s3_uri') if request.param == 's3' else tmp_path}/run"


def training(folder, dataset, uri, sections=SLOW, *more):
    """The command of a driver that joins the session's cluster: half of a driver's time would be Ray's start."""
    address = ray.get_runtime_context().gcs_address
    return command(folder, "train", "--dataset", dataset, "--run", uri, "--address", address, *more, **sections)


def in_the_middle(driver, uri, checkpoints=1):
    """Wait until the run has committed something and is not done."""
    store = resolve(uri, StorageConfig())
    wait_for(lambda: len(committed_steps(store)) >= checkpoints or driver.poll() is not None)
    assert driver.poll() is None, driver.communicate()
    assert committed_steps(store)[-1] < 60


def test_the_driver_is_killed(uri, dataset, tmp_path, undisturbed):
    words = training(tmp_path, dataset, uri)
    driver = start(words)
    in_the_middle(driver, uri)
    os.kill(driver.pid, signal.SIGKILL)
    driver.communicate()
    again = run(words)
    assert again.returncode == 0, again.stderr
    assert finished(uri) == undisturbed


def test_a_worker_is_killed(uri, dataset, tmp_path, undisturbed):
    """The group of workers restarts from the latest checkpoint inside the same command."""
    before = titled("ray::RayTrainWorker", os.getpid())
    driver = start(training(tmp_path, dataset, uri))
    in_the_middle(driver, uri)
    victims = sorted(titled("ray::RayTrainWorker", os.getpid()) - before)
    assert victims, driver.communicate()
    os.kill(victims[-1], signal.SIGKILL)
    _, err = driver.communicate(timeout=400)
    assert driver.returncode == 0, err
    assert finished(uri) == undisturbed
    assert len(attempts(uri)) == 2
    assert attempts(uri)[1] >= 10


@pytest.mark.nightly
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], ids=["SIGTERM", "SIGHUP"])
def test_sigterm_makes_a_checkpoint_first(uri, dataset, tmp_path, undisturbed, number):
    """Nothing is computed twice: the next attempt begins at the step where this one stopped."""
    words = training(tmp_path, dataset, uri)
    driver = start(words)
    in_the_middle(driver, uri)
    driver.send_signal(number)
    _, err = driver.communicate(timeout=400)
    assert driver.returncode == 143, err
    assert "stopped by SIGTERM" in err
    stopped = latest_checkpoint(resolve(uri, StorageConfig())).step
    assert stopped < 60
    again = run(words)
    assert again.returncode == 0, again.stderr
    assert attempts(uri) == [0, stopped]
    assert finished(uri) == undisturbed
    assert [row["step"] for row in metric_rows(uri)] == list(range(1, 61))


@pytest.mark.nightly
def test_two_drivers_of_one_run(uri, dataset, tmp_path, undisturbed):
    words = training(tmp_path, dataset, uri)
    first = start(words)
    in_the_middle(first, uri)
    second = run(words)
    assert second.returncode == 1, second.stderr
    assert f"is in use by process {first.pid}" in second.stderr, second.stderr
    _, err = first.communicate(timeout=400)
    assert first.returncode == 0, err
    assert finished(uri) == undisturbed
    assert attempts(uri) == [0]


def copied(undisturbed_run, uri):
    """The finished run at another place, as if its driver had died before the record."""
    store, source = resolve(uri, StorageConfig()), resolve(str(undisturbed_run), StorageConfig())
    for entry in source.list():
        if entry.key != "_SUCCESS.json":
            store.put(entry.key, source.read(entry.key))
    return store


@pytest.mark.nightly
def test_torn_and_damaged_checkpoints_are_passed_over(uri, dataset, undisturbed_run, undisturbed, caplog):
    """Files whose manifest was never written are not read, nor is what an attempt of Ray left behind; a file of the
    same length with other bytes shows by its hash. The run goes on from the newest checkpoint that is whole."""
    store = copied(undisturbed_run, uri)
    store.delete("checkpoints/step-000000060/manifest.json")
    store.put("checkpoints/step-000000060/model.safetensors", b"half a file")
    store.put("ray/left/checkpoint_manager_snapshot.json", b'{"torn": ')
    assert committed_steps(store) == [40, 50]
    key = "checkpoints/step-000000050/model.safetensors"
    good = store.read(key)
    store.put(key, good[:-1] + bytes([good[-1] ^ 1]))
    train(config(**LONG), dataset, uri)
    assert finished(uri) == undisturbed
    assert 40 in attempts(uri)
    assert "the checkpoint of step 50 is damaged; continuing from step 40" in caplog.text  # rank 0's words, here


@pytest.mark.nightly
@pytest.mark.parametrize("seconds", [10, 60])
def test_the_store_is_away_for_a_while(seconds, s3_environment, s3_uri, tmp_path, undisturbed, monkeypatch):
    """Every connection is cut and none comes about: the run waits and goes on, and needs no restart for it."""
    server = s3_environment
    dataset = digits(s3_uri)
    with Proxy("127.0.0.1", int(server.endpoint.rpartition(":")[2])) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.endpoint)
        driver = start(training(tmp_path, dataset, f"{s3_uri}/run"))
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", server.endpoint)
        in_the_middle(driver, f"{s3_uri}/run")
        proxy.cut()
        time.sleep(seconds)
        assert driver.poll() is None, driver.communicate()
        proxy.mend()
        _, err = driver.communicate(timeout=400)
    assert driver.returncode == 0, err
    assert finished(f"{s3_uri}/run") == undisturbed
    assert attempts(f"{s3_uri}/run") == [0]


@pytest.mark.nightly
def test_the_store_is_away_for_too_long(s3_environment, s3_uri, tmp_path, undisturbed, monkeypatch):
    """One clear line and exit 4; the same command goes on when the store is back."""
    server = s3_environment
    dataset = digits(s3_uri)
    impatient = {**SLOW, "storage": {"outage_seconds": 3, "retries": 1}, "ray": {"workers": 2, "max_failures": 0}}
    with Proxy("127.0.0.1", int(server.endpoint.rpartition(":")[2])) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.endpoint)
        driver = start(training(tmp_path, dataset, f"{s3_uri}/run", impatient))
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", server.endpoint)
        in_the_middle(driver, f"{s3_uri}/run")
        proxy.cut()
        _, err = driver.communicate(timeout=400)
        assert driver.returncode == 4, err
        assert "Traceback" not in err
    again = run(training(tmp_path, dataset, f"{s3_uri}/run"))
    assert again.returncode == 0, again.stderr
    assert finished(f"{s3_uri}/run") == undisturbed


@pytest.mark.nightly
def test_the_disk_is_full(tmp_path, dataset, undisturbed):
    """Exit 4 and what to do; after some space was freed the same command goes on."""
    place = tmp_path / "disk"
    place.mkdir()
    words = command(tmp_path, "train", "--dataset", dataset, "--run", f"{place}/run", **LONG)
    script = f"""
    mount -t tmpfs -o size=16m tmpfs {place} || exit 99
    "$@" --steps 20 || exit 98
    head -c 20m /dev/zero > {place}/filler 2>/dev/null
    "$@"; echo "first exit $?" >&2
    rm {place}/filler
    "$@" || exit 97
    cp -r {place}/run {tmp_path}/run
    """
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode != 0:
        pytest.skip("this machine allows no mount namespace (unshare -rm), so there is no small disk to fill")
    done = run(["unshare", "-rm", "sh", "-c", script, "sh", *words])
    assert done.returncode == 0, done.stderr
    assert "first exit 4" in done.stderr
    assert "free some space" in done.stderr
    assert finished(f"{tmp_path}/run") == undisturbed


@pytest.mark.nightly
def test_ctrl_c_is_no_success(tmp_path, dataset):
    words = training(tmp_path, dataset, f"{tmp_path}/run")
    store = resolve(f"{tmp_path}/run", StorageConfig())
    driver = start(words)
    in_the_middle(driver, store.uri)
    driver.send_signal(signal.SIGINT)
    _, err = driver.communicate(timeout=400)
    assert driver.returncode == 130, err
    assert "the same command continues" in err
    assert not store.exists("_SUCCESS.json")
    assert committed_steps(store)[-1] < 60


@pytest.mark.nightly
def test_a_run_goes_back_to_a_step(tmp_path, dataset, undisturbed_run, undisturbed):
    """--from-step: later checkpoints go, and the same ones come again."""
    shutil.copytree(undisturbed_run, tmp_path / "run")
    store = resolve(str(tmp_path / "run"), StorageConfig())
    assert committed_steps(store) == [40, 50, 60]
    train(config(**LONG), dataset, store.uri, from_step=40)
    assert finished(store.uri) == undisturbed
    assert 40 in attempts(store.uri)
