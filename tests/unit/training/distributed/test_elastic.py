"""How large a group of workers is asked for while nodes say that they will go, and when a small one gives way."""

import itertools
import threading
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest

from pipeline.config.root import RayConfig
from pipeline.training.distributed import coordinator as module
from pipeline.training.distributed import elastic
from pipeline.training.distributed.coordinator import StepStatus, StopReason
from pipeline.training.distributed.stop_signal import WIRE_REASONS

pytestmark = pytest.mark.unit


def node(name, alive=True, **resources):
    return {"NodeID": name, "Alive": alive, "Resources": {"memory": 1.0, **resources}}


@pytest.fixture
def nodes(monkeypatch):
    """Nodes and the ids of those that will go; a test fills both."""
    there, going = [], set()
    monkeypatch.setattr(elastic.ray, "nodes", lambda: list(there))
    monkeypatch.setattr(elastic, "_draining_nodes", lambda: set(going))
    monkeypatch.setattr(elastic.ray, "get", lambda answer: answer)
    return there, going


def test_while_no_node_goes_the_whole_range_is_asked_for_so_that_an_autoscaler_hears_of_it(nodes):
    assert elastic.usable_workers(RayConfig(workers="1..8")) == 8
    nodes[0].append(node("a", CPU=2.0))
    assert elastic.usable_workers(RayConfig(workers="1..8")) == 8


@pytest.mark.parametrize(
    ("workers", "use_gpu", "most"),
    [("1..8", False, 3), ("1..2", False, 2), ("4..8", False, 4), ("8", False, 8), ("1..8", True, 1)],
    ids=["what fits on the others", "at most MAX", "at least MIN", "a fixed number", "GPUs"],
)
def test_nodes_that_go_and_nodes_that_are_gone_have_no_room(nodes, workers, use_gpu, most):
    there, going = nodes
    there += [node("a", CPU=3.9, GPU=1.0), node("b", CPU=16.0, GPU=4.0), node("c", alive=False, CPU=16.0), node("d")]
    going.add("b")
    assert elastic.usable_workers(RayConfig(workers=workers, use_gpu=use_gpu)) == most


def test_what_stays_is_counted_node_by_node(nodes):
    there, going = nodes
    there += [node("a", CPU=3.5), node("b", CPU=16.0), node("c", alive=False, CPU=16.0), node("d")]
    assert elastic.remaining_capacity("CPU") == [3.5, 16.0, 0.0]
    going.add("b")
    assert elastic.remaining_capacity("CPU") == [3.5, 0.0]


class Coordinator:
    """Of `Coordinator` what a resize monitor calls."""

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
def test_a_small_group_gives_way_once_there_may_be_room_for_more(nodes, change, monkeypatch):
    """At once when another node has come; when one has gone, not before Ray has noticed."""
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


def test_a_group_that_may_grow_by_itself_is_left_alone(nodes):
    coordinator, before = Coordinator(), threading.active_count()
    with elastic.ResizeMonitor(FAST, coordinator, 2):
        assert threading.active_count() == before, "nobody looks"
    assert coordinator.said == [False]


def test_a_busy_head_does_not_end_the_monitor(nodes, monkeypatch):
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


def test_room_that_comes_and_goes_moves_nobody(nodes, monkeypatch):
    monkeypatch.setattr(elastic, "SETTLED_SECONDS", 0.2)
    answers = itertools.cycle([2, 1])
    monkeypatch.setattr(elastic, "usable_workers", lambda config: next(answers))
    coordinator = Coordinator()
    with elastic.ResizeMonitor(FAST, coordinator, 1):
        assert not coordinator.told.wait(0.6)


def test_every_ending_is_one_that_ranks_can_tell_each_other():
    assert set(WIRE_REASONS) == {None, *StopReason}
    assert WIRE_REASONS[0] is None


def test_a_wish_to_stop_comes_before_one_to_regroup_and_a_new_group_has_neither_of_the_old(monkeypatch):
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
