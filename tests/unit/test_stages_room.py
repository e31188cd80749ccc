"""How large a group of workers is asked for while nodes say that they will go, and when a small one gives way."""

import threading
from types import SimpleNamespace

import pytest

from pipeline.config import RayConfig
from pipeline.stages import room

pytestmark = pytest.mark.unit


def node(name, alive=True, **resources):
    return {"NodeID": name, "Alive": alive, "Resources": {"memory": 1.0, **resources}}


@pytest.fixture
def nodes(monkeypatch):
    """Nodes and the ids of those that will go; a test fills both."""
    there, going = [], set()
    monkeypatch.setattr(room.ray, "nodes", lambda: list(there))
    monkeypatch.setattr(room, "_going", lambda: set(going))
    monkeypatch.setattr(room.ray, "get", lambda answer: answer)
    return there, going


def test_while_no_node_goes_the_whole_range_is_asked_for_so_that_an_autoscaler_hears_of_it(nodes):
    assert room.most_workers(RayConfig(workers="1..8")) == 8
    nodes[0].append(node("a", CPU=2.0))
    assert room.most_workers(RayConfig(workers="1..8")) == 8


@pytest.mark.parametrize(
    ("workers", "use_gpu", "most"),
    [("1..8", False, 3), ("1..2", False, 2), ("4..8", False, 4), ("8", False, 8), ("1..8", True, 1)],
    ids=["what fits on the others", "at most MAX", "at least MIN", "a fixed number", "GPUs"],
)
def test_nodes_that_go_and_nodes_that_are_gone_have_no_room(nodes, workers, use_gpu, most):
    there, going = nodes
    there += [node("a", CPU=3.9, GPU=1.0), node("b", CPU=16.0, GPU=4.0), node("c", alive=False, CPU=16.0), node("d")]
    going.add("b")
    assert room.most_workers(RayConfig(workers=workers, use_gpu=use_gpu)) == most


def test_what_stays_is_counted_node_by_node(nodes):
    there, going = nodes
    there += [node("a", CPU=3.5), node("b", CPU=16.0), node("c", alive=False, CPU=16.0), node("d")]
    assert room.staying("CPU") == [3.5, 16.0, 0.0]
    going.add("b")
    assert room.staying("CPU") == [3.5, 0.0]


class Board:
    """Of `stages.board.Board` what a look-out calls."""

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
def test_a_small_group_gives_way_once_there_may_be_room_for_more(nodes, change):
    there, going = nodes
    there += [node("a", CPU=1.0), node("b", CPU=1.0)]
    going.add("b")
    board = Board()
    with room.LookOut(FAST, board, room.most_workers(FAST)):
        assert not board.told.wait(0.1), "nothing has changed"
        if change == "the node has gone":
            going.clear()
        else:
            there.append(node("c", CPU=1.0))
        assert board.told.wait(10)
    assert board.said == [False, True]


def test_a_group_that_may_grow_by_itself_is_left_alone(nodes):
    board = Board()
    with room.LookOut(FAST, board, 2):
        assert not board.told.wait(0.1)
    assert board.said == [False]
