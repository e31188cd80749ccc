"""Nodes go and come: the run shrinks, grows, and ends with the order of images of an undisturbed one."""

import subprocess
import sys
import time
from contextlib import contextmanager

import pytest
import ray
from ray._raylet import GcsClient
from ray.cluster_utils import Cluster

from pipeline.config.storage import StorageConfig
from pipeline.model_store.checkpoint import committed_steps, latest_checkpoint
from pipeline.storage.store import resolve
from pipeline.training.metrics_table import read_metrics
from tiny import command, digits, run, start

pytestmark = [pytest.mark.faults, pytest.mark.ray]
STEPS = 400
ELASTIC = {
    "train": {"steps": STEPS, "checkpoint_every": 20, "grid_every": 20, "grid_size": 64, "grid_sampling_steps": 30},
    "ray": {"workers": "1..2", "resize_seconds": 3},
}
PREEMPTION = 2
"""ray.autoscaler DrainNodeReason.DRAIN_NODE_REASON_PREEMPTION."""
NODE = {"num_cpus": 1, "object_store_memory": 100 * 2**20}


def wait_for(condition, driver, seconds=150):
    deadline = time.monotonic() + seconds
    while not condition():
        assert driver.poll() is None, driver.communicate()
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)


def world_sizes(store):
    """Of the steps so far, without repetition: [2, 1, 2] for a run that lost a node and got one back."""
    found = latest_checkpoint(store)
    rows = [] if found is None else read_metrics(store, found).to_pylist()
    sizes = [row["world_size"] for row in rows]
    return [size for i, size in enumerate(sizes) if i == 0 or sizes[i - 1] != size]


@pytest.fixture
def cluster(monkeypatch):
    """A head and a node with room for one worker each, which may start several processes at a time."""
    monkeypatch.setenv("RAY_worker_maximum_startup_concurrency", "8")
    monkeypatch.setenv("RAY_num_workers_soft_limit", "8")
    # After a loss Ray may ask for the lost node once more, and waits that long before it asks for what is there.
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "30")
    nodes = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
    nodes.add_node(**NODE)
    nodes.wait_for_nodes()
    yield nodes
    nodes.shutdown()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, ray_cluster):
    """The whole run on one worker."""
    root = tmp_path_factory.mktemp("nodes")
    sections = {**ELASTIC, "ray": {"workers": 1}, "train": {**ELASTIC["train"], "grid_every": STEPS}}
    address = ray.get_runtime_context().gcs_address
    words = command(root, "train", "--dataset", digits(str(root)), "--run", f"{root}/run", "--address", address)
    done = run([*words[:-2], *command(root, **sections)[-2:]])
    assert done.returncode == 0, done.stderr
    return latest_checkpoint(resolve(f"{root}/run", StorageConfig()))


def begin(folder, cluster):
    root = str(folder)
    words = command(
        folder, "train", "--dataset", digits(root), "--run", f"{root}/run", "--address", cluster.address, **ELASTIC
    )
    return start(words), resolve(f"{root}/run", StorageConfig())


def end(driver, store, undisturbed):
    _, err = driver.communicate(timeout=250)
    assert driver.returncode == 0, err
    found = latest_checkpoint(store)
    assert (found.step, found.images) == (undisturbed.step, undisturbed.images)
    assert found.batch_digest == undisturbed.batch_digest
    assert [row["step"] for row in read_metrics(store, found).to_pylist()] == list(range(1, STEPS + 1))
    return err


@pytest.mark.nightly
def test_a_node_is_lost_and_another_comes(cluster, tmp_path, undisturbed):
    driver, store = begin(tmp_path, cluster)
    wait_for(lambda: world_sizes(store) == [2], driver)
    cluster.remove_node(sorted(cluster.worker_nodes, key=str)[-1], allow_graceful=False)
    wait_for(lambda: world_sizes(store) == [2, 1], driver)
    cluster.add_node(**NODE)
    wait_for(lambda: world_sizes(store) == [2, 1, 2], driver)
    end(driver, store, undisturbed)
    assert world_sizes(store) == [2, 1, 2]


TENANT = """
import sys, ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
address, node = sys.argv[1:]
ray.init(address=address, log_to_driver=False)
here = NodeAffinitySchedulingStrategy(node, soft=False)
class Work:
    def node(self):
        return ray.get_runtime_context().get_node_id()
work = ray.remote(num_cpus=0)(Work).options(scheduling_strategy=here).remote()
print(ray.get(work.node.remote()), flush=True)
sys.stdin.read()
assert ray.get(work.node.remote(), timeout=20) == node
"""


@contextmanager
def occupied(cluster, node):
    """Somebody else's work on a node, which then does not go before its deadline; it is still there at the end."""
    words = [sys.executable, "-c", TENANT, cluster.address, node.node_id]
    tenant = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert tenant.stdout.readline().strip() == node.node_id
        yield
        tenant.communicate(timeout=60)
        assert tenant.returncode == 0, "the node had gone"
    finally:
        tenant.kill()


@pytest.mark.nightly
def test_a_node_says_that_it_will_go(cluster, tmp_path, undisturbed):
    """A preemption notice: a checkpoint at once, on with what stays while the node is still there, then with another.

    Ray counts the node as long as it is there, so it must be there long enough to be asked for in vain.
    """
    driver, store = begin(tmp_path, cluster)
    wait_for(lambda: world_sizes(store) == [2], driver)
    node = sorted(cluster.worker_nodes, key=str)[-1]
    with occupied(cluster, node):
        deadline = int((time.time() + 600) * 1000)
        accepted, why = GcsClient(address=cluster.address).drain_node(node.node_id, PREEMPTION, "spot", deadline)
        assert accepted, why
        wait_for(lambda: world_sizes(store) == [2, 1], driver)
        cluster.add_node(**NODE)
        wait_for(lambda: world_sizes(store) == [2, 1, 2], driver)
    end(driver, store, undisturbed)
    assert world_sizes(store) == [2, 1, 2]
    resumed = sorted(store.read_json(entry.key)["step"] for entry in store.list("attempts/"))
    sizes = [row["world_size"] for row in read_metrics(store, latest_checkpoint(store)).to_pylist()]
    changes = [step for step in range(1, STEPS) if sizes[step] != sizes[step - 1]]
    assert resumed == [0, *changes], "one group of workers for each size"
    assert committed_steps(store)[-1] == STEPS
