"""A sweep over Ray: scores and rates of every point, nothing twice, and the same table after it was killed."""

import json
import os
import signal
import time

import pyarrow.parquet as pq
import pytest
import ray
from tiny_model import write_model

from jobs.__main__ import main
from pipeline.config.storage import StorageConfig
from pipeline.evaluation.results import read_evaluations
from pipeline.generation.commit import is_sealed
from pipeline.operations.verify import verify
from pipeline.schema import SWEEP
from pipeline.storage.store import Store, resolve
from tiny import command, config, digits, start

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

SECTIONS = {"evaluate": {"classifier_epochs": 2}, "generate": {"num_samples": 48}, "ray": {"workers": 1}}
TIMED = ("img_s", "actors", "actor_seconds")
POINTS = ["ddim-4-ema", "ddim-8-ema", "heun-4-ema", "heun-8-ema"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A tiny model and the digits."""
    root = str(tmp_path_factory.mktemp("sweep"))
    write_model(f"{root}/run", config())
    digits(root)
    return root


def words(folder, root, out, **sections):
    grid = ("--samplers", "ddim,heun", "--steps", "4,8", "--json")
    places = ("--model", f"{root}/run", "--dataset", f"{root}/datasets/digits", "--out", out)
    return command(folder, "sweep", *places, *grid, **{**SECTIONS, **sections})


def swept(folder, root, out, capsys):
    assert main(words(folder, root, out)[3:]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def files(store: Store):
    return {entry.key: store.read(entry.key) for entry in store.list()}


def untimed(uri):
    return pq.read_table(f"{uri}/sweep.parquet").drop_columns(TIMED).to_pylist()


@pytest.mark.nightly
def test_a_sweep_again_and_killed_after_its_first_point(root, tmp_path, capsys):
    first = swept(tmp_path, root, f"{root}/whole", capsys)
    assert (first["state"], first["made"]) == ("swept", 4)
    whole = resolve(f"{root}/whole", StorageConfig())
    table = pq.read_table(f"{whole.uri}/sweep.parquet")
    assert table.schema.equals(SWEEP)
    assert [row["point"] for row in table.to_pylist()] == [f"points/{name}" for name in POINTS]
    assert table["evaluations"].to_pylist() == [4, 8, 7, 15]
    for row in table.to_pylist():
        job = whole.child(row["point"])
        assert verify(config(), job.uri)["counts"]["samples"] == 48
        (scores,) = read_evaluations(job)
        assert (row["fd"], row["n"], row["evaluation"]) == (scores.value(row["metric"], "samples"), 48, scores.id)
        assert row["floor"] < min(row["blurred"], row["noise"])
        assert row["actor_seconds"] == pytest.approx(row["actors"] / row["img_s"])
    assert b"from the same noise (seed 0)" in whole.read("report.html")

    before = files(whole)
    again = swept(tmp_path, root, whole.uri, capsys)
    assert (again["state"], again["made"], again["rows"]) == ("already done", 0, first["rows"])
    assert files(whole) == before

    killed = resolve(f"{root}/killed", StorageConfig())
    kill_after_the_first_point(words(tmp_path, root, killed.uri, ray=on_this_cluster()), killed)
    resumed = swept(tmp_path, root, killed.uri, capsys)
    assert 1 <= resumed["made"] <= 3
    assert untimed(killed.uri) == untimed(whole.uri)


def on_this_cluster():
    return {**SECTIONS["ray"], "address": ray.get_runtime_context().gcs_address}


def kill_after_the_first_point(argv, out):
    driver = start(argv)
    deadline = time.monotonic() + 120
    while not (is_sealed(point := out.child("points", POINTS[0])) and read_evaluations(point)):
        assert driver.poll() is None, driver.communicate()
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)
    os.kill(driver.pid, signal.SIGKILL)
    driver.communicate()
    assert not out.exists("sweep.parquet")
