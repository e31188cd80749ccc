"""Elastic sizing: the maximum group while nodes drain, and when a small group ends for a larger one."""

import itertools
import threading
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest

from pipeline.config.cluster import RayConfig
from pipeline.training.distributed import coordinator as module
from pipeline.training.distributed import elastic
from pipeline.training.distributed.coordinator import StepStatus, StopReason
from pipeline.training.distributed.stop_decision import WIRE_REASONS

pytestmark = pytest.mark.unit


def node(name, alive=True, **resources):
    return {"NodeID": name, "Alive": alive, "Resources": {"memory": 1.0, **resources}}


@pytest.fixture
def nodes(monkeypatch):
    """Nodes, and the ids of draining nodes; a test fills both."""
    there, going = [], set()
    monkeypatch.setattr(elastic.ray, "nodes", lambda: list(there))
    monkeypatch.setattr(elastic, "_draining_nodes", lambda: set(going))
    monkeypatch.setattr(elastic.ray, "get", lambda answer: answer)
    return there, going


def test_without_draining_nodes_the_maximum_is_the_configured_one_so_that_an_autoscaler_adds_nodes(nodes):
    assert elastic.usable_workers(RayConfig(workers="1..8")) == 8
    nodes[0].append(node("a", CPU=2.0))
    assert elastic.usable_workers(RayConfig(workers="1..8")) == 8


@pytest.mark.parametrize(
    ("workers", "use_gpu", "most"),
    [("1..8", False, 3), ("1..2", False, 2), ("4..8", False, 4), ("8", False, 8), ("1..8", True, 1)],
    ids=["what fits on the others", "at most MAX", "at least MIN", "a fixed number", "GPUs"],
)
def test_draining_and_dead_nodes_do_not_count(nodes, workers, use_gpu, most):
    there, going = nodes
    there += [node("a", CPU=3.9, GPU=1.0), node("b", CPU=16.0, GPU=4.0), node("c", alive=False, CPU=16.0), node("d")]
    going.add("b")
    assert elastic.usable_workers(RayConfig(workers=workers, use_gpu=use_gpu)) == most


def test_remaining_capacity_is_listed_by_node(nodes):
    there, going = nodes
    there += [node("a", CPU=3.5), node("b", CPU=16.0), node("c", alive=False, CPU=16.0), node("d")]
    assert elastic.remaining_capacity("CPU") == [3.5, 16.0, 0.0]
    going.add("b")
    assert elastic.remaining_capacity("CPU") == [3.5, 0.0]


class Coordinator:
    """The methods of `Coordinator` that a resize monitor calls."""

    def __init__(self):
        self.said = []
        self.told = threading.Event()
        self.regroup = SimpleNamespace(remote=self._regroup)

    def _regroup(self, wanted):
        self.said.append(wanted)
        if wanted:
            self.told.set()


FAST = RayConfig(workers="1..2", resize_seconds=0.01)


@pytest.mark.parametrize("change", ["the node has gone", "there is another"])
def test_a_small_group_is_asked_to_end_once_a_larger_one_may_fit(nodes, change, monkeypatch):
    """At once when a node was added; after a node was removed, only once Ray has noticed."""
    monkeypatch.setattr(elastic, "SETTLED_SECONDS", 0.5 if change == "the node has gone" else 1000.0)
    there, going = nodes
    there += [node("a", CPU=1.0), node("b", CPU=1.0)]
    going.add("b")
    coordinator = Coordinator()
    with elastic.ResizeMonitor(FAST, coordinator, elastic.usable_workers(FAST)):
        assert not coordinator.told.wait(0.1), "nothing has changed"
        if change == "the node has gone":
            going.clear()
            assert not coordinator.told.wait(0.1)
        else:
            there.append(node("c", CPU=1.0))
        assert coordinator.told.wait(10)
    assert coordinator.said == [False, True]


def test_a_group_with_the_full_range_is_not_monitored(nodes):
    coordinator, before = Coordinator(), threading.active_count()
    with elastic.ResizeMonitor(FAST, coordinator, 2):
        assert threading.active_count() == before, "nobody looks"
    assert coordinator.said == [False]


def test_an_error_of_a_busy_head_node_does_not_end_the_monitor(nodes, monkeypatch):
    there, going = nodes
    there.append(node("a", CPU=1.0))
    going.add("b")
    coordinator, answers = Coordinator(), iter([elastic.ray.exceptions.RaySystemError("busy"), 1, 1])

    def most(config):
        answer = next(answers, 2)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(elastic, "usable_workers", most)
    monkeypatch.setattr(elastic, "SETTLED_SECONDS", 0.0)
    with elastic.ResizeMonitor(FAST, coordinator, 1):
        assert coordinator.told.wait(10)


def test_capacity_that_comes_and_goes_changes_nothing(nodes, monkeypatch):
    monkeypatch.setattr(elastic, "SETTLED_SECONDS", 0.2)
    answers = itertools.cycle([2, 1])
    monkeypatch.setattr(elastic, "usable_workers", lambda config: next(answers))
    coordinator = Coordinator()
    with elastic.ResizeMonitor(FAST, coordinator, 1):
        assert not coordinator.told.wait(0.6)


def test_every_stop_reason_can_be_broadcast():
    assert set(WIRE_REASONS) == {None, *StopReason}
    assert WIRE_REASONS[0] is None


def test_a_stop_request_takes_precedence_and_a_new_group_starts_without_requests(monkeypatch):
    monkeypatch.setattr(module, "Gauge", MagicMock())
    coordinator = module.Coordinator.__ray_metadata__.modified_class("run")
    status = StepStatus(1, 0, 0.5, 10.0, 0.0, 1)
    assert coordinator.report(status) is None
    coordinator.regroup(True)
    assert coordinator.report(status) is StopReason.REGROUPED
    coordinator.stop()
    assert coordinator.report(status) is StopReason.STOPPED
    coordinator.stopping = False
    coordinator.regroup(False)
    assert coordinator.report(status) is None
