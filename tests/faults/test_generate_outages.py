"""What takes Ray to break: actors killed or asleep, a node lost, a server that dies under a running job."""

import os
import signal
import time
from contextlib import contextmanager

import pytest
from invariants import check_invariants, created_once
from processes import titled, wait_for
from tiny_model import write_model

from pipeline.config.storage import StorageConfig
from pipeline.generation.commit import committed_shards
from pipeline.generation.driver import generate
from pipeline.operations.verify import verify
from pipeline.storage.store import resolve
from proxy import HttpProxy
from tiny import command, config, start

pytestmark = [pytest.mark.faults, pytest.mark.ray]

SAMPLES, SHARDS = 400, 25
LONG = {"generate": {"num_samples": SAMPLES, "steps": 40}, "ray": {"workers": 2, "max_failures": 6}}
ACTOR = "ray::MapWorker"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, ray_cluster):
    root = str(tmp_path_factory.mktemp("undisturbed"))
    write_model(f"{root}/run", config())
    return check_invariants(resolve(generate(config(**LONG), f"{root}/run", f"{root}/samples")["uri"], StorageConfig()))


@pytest.fixture
def address(ray_cluster):
    import ray

    return ray.get_runtime_context().gcs_address


@contextmanager
def driver(folder, root, address, *flags):
    """(process, store) of `ddpm generate` with some shards committed, the others not; killed when the test is over."""
    model, uri = f"{root}/run", f"{root}/samples"
    words = [*command(folder, "generate", "--model", model, "--out", uri, "--address", address, **LONG), *flags]
    store = resolve(uri, StorageConfig())
    process = start(words)
    try:
        wait_for(lambda: len(list(committed_shards(store))) >= 2 or process.poll() is not None)
        assert process.poll() is None, process.communicate()
        yield process, store
    finally:
        process.kill()
        process.communicate()


def ends_well(process, seconds=200):
    _, err = process.communicate(timeout=seconds)
    assert process.returncode == 0, err


def is_whole(store, undisturbed, earlier):
    assert check_invariants(store, earlier) == undisturbed
    counts = verify(config(), store.uri)["counts"]
    assert (counts["samples"], counts["shards"], counts["failed"], counts["unnamed"]) == (SAMPLES, SHARDS, 0, 0)


def test_every_actor_is_killed_and_the_driver_finishes(tmp_path, address, undisturbed):
    write_model(f"{tmp_path}/run", config())
    others = titled(ACTOR, os.getpid())
    with driver(tmp_path, tmp_path, address) as (process, store):
        earlier = created_once(store)
        victims = titled(ACTOR, os.getpid()) - others
        assert victims
        for pid in victims:
            os.kill(pid, signal.SIGKILL)
        assert len(list(committed_shards(store))) < SHARDS
        ends_well(process)
    is_whole(store, undisturbed, earlier)


@pytest.mark.nightly
def test_a_sleeping_actor_wakes_after_another_driver_has_sealed_and_collected(tmp_path, address, undisturbed):
    write_model(f"{tmp_path}/run", config())
    others = titled(ACTOR, os.getpid())
    with driver(tmp_path, tmp_path, address) as (first, store):
        asleep = titled(ACTOR, os.getpid()) - others
        try:
            for pid in asleep:
                os.kill(pid, signal.SIGSTOP)
            assert not store.exists("manifest.json")
            assert generate(config(**LONG), f"{tmp_path}/run", store.uri)["state"] == "generated"
            earlier = created_once(store)
        finally:
            for pid in asleep:
                os.kill(pid, signal.SIGCONT)
        ends_well(first)
    is_whole(store, undisturbed, earlier)


def test_the_server_is_killed_and_started_again(tmp_path, address, s3_uri, seaweed, undisturbed):
    write_model(f"{s3_uri}/run", config())
    with driver(tmp_path, s3_uri, address) as (process, store):
        earlier = created_once(store)
        seaweed.kill()
        time.sleep(1.0)
        seaweed.restart()
        assert len(list(committed_shards(store))) < SHARDS
        ends_well(process)
    is_whole(store, undisturbed, earlier)


@pytest.mark.nightly
def test_a_bad_line_to_the_server(tmp_path, address, s3_uri, seaweed, undisturbed):
    write_model(f"{s3_uri}/run", config())
    with HttpProxy("127.0.0.1", int(seaweed.endpoint.rpartition(":")[2])) as line:
        for every, action in ((7, "503"), (13, "500"), (11, "lost reply"), (17, "lost request")):
            line.break_next(".", action, times=10**6, every=every)
        with driver(tmp_path, s3_uri, address, "--storage.endpoint", line.endpoint) as (process, store):
            earlier = created_once(store)
            ends_well(process)
    is_whole(store, undisturbed, earlier)


@pytest.mark.nightly
def test_two_drivers_at_once(tmp_path, address, undisturbed):
    write_model(f"{tmp_path}/run", config())
    with (
        driver(tmp_path, tmp_path, address) as (first, store),
        driver(tmp_path, tmp_path, address) as (second, _),
    ):
        earlier = created_once(store)
        ends_well(first)
        ends_well(second)
    is_whole(store, undisturbed, earlier)


@pytest.mark.nightly
@pytest.mark.parametrize("spare", [1, 0])
def test_a_node_is_lost(spare, tmp_path, undisturbed):
    """Its shards are made by the nodes that are left, with room for its actor or without."""
    from ray.cluster_utils import Cluster

    write_model(f"{tmp_path}/run", config())
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1 + spare, "include_dashboard": False})
    try:
        lost = cluster.add_node(num_cpus=1)
        with driver(tmp_path, tmp_path, cluster.address) as (process, store):
            earlier = created_once(store)
            cluster.remove_node(lost, allow_graceful=False)
            assert len(list(committed_shards(store))) < SHARDS
            ends_well(process)
    finally:
        cluster.shutdown()
    is_whole(store, undisturbed, earlier)
