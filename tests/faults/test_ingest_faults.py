"""Killed at any moment and started again, an ingest ends with the dataset of an undisturbed one, and nothing twice."""

import os
import random
import signal
import time
from contextlib import suppress

import pytest
from tiny_ingest import pixels_of, put_images, rejects_of, rows_of, without_ray

from pipeline.config.storage import StorageConfig
from pipeline.errors import Transient
from pipeline.images.png import encode_png
from pipeline.ingest import map_tasks, phases
from pipeline.ingest.driver import ingest
from pipeline.operations.verify import verify
from pipeline.storage.memory import BACKEND
from pipeline.storage.store import resolve
from tiny import command, config, run, start

pytestmark = pytest.mark.faults

WRITES = ("put", "create_once", "compare_and_swap", "delete")


class Killed(BaseException):
    """The process is gone: nothing may catch it."""


class Line:
    """Counts the writes to the memory store; number `at` fails, before or after it is done."""

    def __init__(self, monkeypatch, at=None, after=False, error=Killed):
        self.count, self.at, self.after, self.error = 0, at, after, error
        for name in WRITES:
            monkeypatch.setattr(BACKEND, name, self.counted(getattr(BACKEND, name)))

    def counted(self, write):
        def do(*words):
            self.count += 1
            hit = self.count == self.at
            if hit and not self.after:
                raise self.error("before")
            result = write(*words)
            if hit:
                raise self.error("after")
            return result

        return do


def keys(uri):
    return sorted(entry.key for entry in resolve(uri, StorageConfig()).list())


def source(name, grown=False):
    """Good, bad and repeated images in several partitions; in two states."""
    uri = f"memory://{name}/source"
    put_images(uri, range(9), "b/")
    store = put_images(uri, (3, 4), "c/again-")
    store.put("b/bad.png", b"text")
    if grown:
        put_images(uri, (1, 20, 21), "a/")
        store.put("a/zero.png", b"")
    return uri


@pytest.fixture
def small(monkeypatch):
    """Several runs, ranges, groups and files of each kind from a dozen images."""
    without_ray(monkeypatch)
    monkeypatch.setattr(map_tasks, "SORTED_RUN_BYTES", 200)
    monkeypatch.setattr(phases, "DEDUPLICATE_BYTES", 1800)
    monkeypatch.setattr(phases, "REJECTS_A_FILE", 1)
    monkeypatch.setattr("pipeline.ingest.partitioning.MIN_SLOTS", 4)
    monkeypatch.setattr("pipeline.ingest.journal.WORKERS", 1)
    return config(ingest={"partition_rows": 4, "shard_rows": 3})


def writes_of(monkeypatch, settings, words):
    with monkeypatch.context() as patch:
        line = Line(patch)
        made = ingest(settings, *words)
    return line.count, made


@pytest.mark.unit
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("after", [False, True])
def test_killed_before_or_after_any_write(small, monkeypatch, version, after):
    name = f"faults-{version}-{after}"
    uri = source(name)
    if version == 2:
        ingest(small, uri, f"memory://{name}/base")
        base = {
            key: resolve(f"memory://{name}/base", StorageConfig()).read(key) for key in keys(f"memory://{name}/base")
        }
        source(name, grown=True)

    def fresh(folder):
        store = resolve(f"memory://{name}/{folder}", StorageConfig())
        if version == 2:
            for key, data in base.items():
                store.put(key, data)
        return store.uri

    undisturbed = fresh("undisturbed")
    count, expected = writes_of(monkeypatch, small, (uri, undisturbed))
    assert count > 20
    for at in range(1, count + 1):
        target = fresh(f"{at}")
        with monkeypatch.context() as patch:
            Line(patch, at, after)
            with pytest.raises(Killed):
                ingest(small, uri, target)
        again = ingest(small, uri, target)
        assert again["digest"] == expected["digest"], at
        assert keys(target) == keys(undisturbed), at
    assert verify(small, target)["counts"]["unnamed"] == 0


@pytest.mark.unit
def test_a_lost_reply_is_not_a_second_writer(small, monkeypatch):
    """The store does the write and does not say so: everywhere the ingest must go on, or fail and be run again."""
    uri = source("lost")
    count, expected = writes_of(monkeypatch, small, (uri, "memory://lost/undisturbed"))
    for at in range(1, count + 1):
        target = f"memory://lost/{at}"
        with monkeypatch.context() as patch:
            patch.setattr("pipeline.storage.create_once.FIRST_PAUSE_SECONDS", 0)
            Line(patch, at, True, Transient)
            with suppress(Transient):
                ingest(small, uri, target)
        assert ingest(small, uri, target)["digest"] == expected["digest"], at
        assert keys(target) == keys("memory://lost/undisturbed"), at


@pytest.mark.unit
def test_another_driver_of_the_same_plan_may_be_faster(small, monkeypatch):
    """It commits and removes what this one was reading: then this one's dataset is that one's."""
    uri = source("race")
    deduplicate = phases.deduplicate
    with monkeypatch.context() as patch:
        entered = []

        def late(job, slots):
            if not entered:
                entered.append(slots)
                with monkeypatch.context() as inner:
                    inner.setattr(phases, "deduplicate", deduplicate)
                    ingest(small, uri, "memory://race/dataset")
            return deduplicate(job, slots)

        patch.setattr(phases, "deduplicate", late)
        made = ingest(small, uri, "memory://race/dataset")
    assert entered
    assert made["digest"] == ingest(small, uri, "memory://race/alone")["digest"]
    assert keys("memory://race/dataset") == keys("memory://race/alone")


# --- real processes --------------------------------------------------------------------------------------------------

IMAGES = 400


@pytest.fixture(scope="module")
def picture_folder(tmp_path_factory):
    """Good, bad and repeated files; small partitions, so that there is much to be killed in."""
    folder = tmp_path_factory.mktemp("ingest") / "source"
    for number in range(IMAGES):
        place = folder / f"class-{number % 3}"
        place.mkdir(parents=True, exist_ok=True)
        image = encode_png(pixels_of(number % 350, size=24))
        (place / f"{number:04d}.png").write_bytes(image[: 40 if number % 25 == 0 else None])
    return folder


SETTINGS = {"ingest": {"partition_rows": 20, "shard_rows": 16}}


@pytest.fixture(scope="module")
def undisturbed(picture_folder, tmp_path_factory, ray_cluster):
    made = ingest(config(**SETTINGS), str(picture_folder), str(tmp_path_factory.mktemp("undisturbed")))
    return rows_of(made["uri"])[0]


def is_the_same(uri, undisturbed):
    manifest, rows = rows_of(uri)
    assert manifest == undisturbed
    assert manifest.source_rows == IMAGES == len(rows) + len(rejects_of(uri))
    counts = verify(config(), uri)["counts"]
    assert (counts["images"], counts["unnamed"]) == (len(rows), 0)
    left = [key for key in keys(uri) if key.startswith("work/")]
    assert left == []


def kill_at_a_random_moment(words, store, chance):
    """Most of the time is Ray's start: wait for a trace of new work, then for a random part of the rest."""
    before = len(list(store.list("work/")))
    driver = start(words)
    deadline = time.monotonic() + 120
    while driver.poll() is None and time.monotonic() < deadline and len(list(store.list("work/"))) <= before:
        time.sleep(0.05)
    time.sleep(chance.uniform(0.0, 2.0))
    if driver.poll() is None:
        os.kill(driver.pid, signal.SIGKILL)
    driver.communicate()


def ends_the_same(words, store, undisturbed):
    again = run(words)
    assert again.returncode == 0, again.stderr
    is_the_same(store.uri, undisturbed)
    assert "already done" in run(words).stdout


@pytest.mark.ray
@pytest.mark.nightly
def test_killed_at_three_random_moments_in_a_row(picture_folder, undisturbed, tmp_path):
    words = command(tmp_path, "ingest", "--source", str(picture_folder), "--dataset", f"{tmp_path}/d", **SETTINGS)
    store = resolve(f"{tmp_path}/d", StorageConfig())
    for number in range(3):
        kill_at_a_random_moment(words, store, random.Random(number))
    ends_the_same(words, store, undisturbed)


@pytest.mark.ray
@pytest.mark.nightly
@pytest.mark.parametrize("number", range(3, 13))
def test_killed_at_a_random_moment_and_run_again(number, picture_folder, undisturbed, tmp_path, request):
    root = request.getfixturevalue("s3_uri") if number % 2 else str(tmp_path)
    words = command(tmp_path, "ingest", "--source", str(picture_folder), "--dataset", f"{root}/d", **SETTINGS)
    store = resolve(f"{root}/d", StorageConfig())
    kill_at_a_random_moment(words, store, random.Random(number))
    ends_the_same(words, store, undisturbed)


@pytest.mark.ray
def test_two_ingests_into_one_folder(picture_folder, undisturbed, tmp_path):
    """Equal ones share the work; one with other settings is told what differs."""
    target = str(tmp_path / "dataset")
    words = command(tmp_path, "ingest", "--source", str(picture_folder), "--dataset", target, **SETTINGS)
    (tmp_path / "other").mkdir()
    other = command(
        tmp_path / "other",
        *words[3:-2],
        ingest={**SETTINGS["ingest"], "image_size": 16},
    )
    first, second = start(words), start(words)
    store = resolve(target, StorageConfig())
    deadline = time.monotonic() + 120
    while not store.exists("plans/000001.json"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    refused = run(other)
    assert refused.returncode == 2
    assert "image_size" in refused.stderr
    for process in (first, second):
        _, err = process.communicate(timeout=250)
        assert process.returncode == 0, err
    is_the_same(target, undisturbed)
