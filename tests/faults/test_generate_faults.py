"""Killed at any moment and started again, a job ends with the undisturbed job's samples."""

import os
import signal

import pytest
from processes import titled, wait_for
from tiny_model import write_model

from pipeline.config.storage import StorageConfig
from pipeline.generation.commit import committed_shards, read_manifest
from pipeline.generation.driver import generate
from pipeline.operations.verify import verify
from pipeline.storage.files import read_parquet
from pipeline.storage.store import resolve
from tiny import command, config, run, start

pytestmark = [pytest.mark.faults, pytest.mark.ray]

SHARDS = 25
LONG = {"generate": {"num_samples": 400, "steps": 40}, "ray": {"workers": 2}}
"""25 shards; long enough to be killed in the middle."""
ACTOR = "ray::MapWorker"


def hashes(uri):
    job = resolve(uri, StorageConfig())
    rows = [row for marker in read_manifest(job).shards for row in read_parquet(job, marker).to_pylist()]
    return [(row["sample_id"], row["sha256"]) for row in rows]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, ray_cluster):
    root = str(tmp_path_factory.mktemp("undisturbed"))
    write_model(f"{root}/run", config())
    return hashes(generate(config(**LONG), f"{root}/run", f"{root}/samples")["uri"])


@pytest.fixture(params=[pytest.param("local", marks=pytest.mark.nightly), "s3"])
def job(request, tmp_path):
    """A command line for a job that is not there yet, and its store."""
    root = request.getfixturevalue("s3_uri") if request.param == "s3" else str(tmp_path)
    write_model(f"{root}/run", config())
    words = command(tmp_path, "generate", "--model", f"{root}/run", "--out", f"{root}/samples", **LONG)
    return words, resolve(f"{root}/samples", StorageConfig())


def started(words, store, shards=2):
    """The driver's process, when some shards are committed and the others are not."""
    driver = start(words)
    wait_for(lambda: len(list(committed_shards(store))) >= shards or driver.poll() is not None)
    assert driver.poll() is None, driver.communicate()
    return driver


def is_whole(store, undisturbed):
    assert hashes(store.uri) == undisturbed
    counts = verify(config(), store.uri)["counts"]
    assert (counts["samples"], counts["shards"], counts["failed"]) == (400, SHARDS, 0)


@pytest.mark.nightly
def test_an_actor_is_killed_and_the_same_driver_finishes(job, undisturbed):
    words, store = job
    driver = started(words, store)
    victims = sorted(titled(ACTOR, driver.pid))
    assert victims, "no actor to kill"
    os.kill(victims[0], signal.SIGKILL)
    assert len(list(committed_shards(store))) < SHARDS
    _, err = driver.communicate(timeout=200)
    assert driver.returncode == 0, err
    is_whole(store, undisturbed)


def test_the_driver_is_killed_and_the_same_command_finishes(job, undisturbed):
    words, store = job
    driver = started(words, store, shards=3)
    os.kill(driver.pid, signal.SIGKILL)
    driver.communicate()
    assert not store.exists("manifest.json")
    again = run(words)
    assert again.returncode == 0, again.stderr
    assert "generated: 400 samples" in again.stdout
    is_whole(store, undisturbed)
    assert "already done" in run(words).stdout
    assert run([*words[:3], "verify", store.uri]).returncode == 0
