"""How large a group of workers is asked for while nodes say that they will go, and when a small one gives way."""

import itertools
import threading
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest

from pipeline.config import RayConfig
from pipeline.stages import board as boards
from pipeline.stages import room
from pipeline.stages.board import Ending, Reading
from pipeline.stages.control import NUMBERED

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
def test_a_small_group_gives_way_once_there_may_be_room_for_more(nodes, change, monkeypatch):
    """At once when another node has come; when one has gone, not before Ray has noticed."""
    monkeypatch.setattr(room, "SETTLED_SECONDS", 0.5 if change == "the node has gone" else 1000.0)
    there, going = nodes
    there += [node("a", CPU=1.0), node("b", CPU=1.0)]
    going.add("b")
    board = Board()
    with room.LookOut(FAST, board, room.most_workers(FAST)):
        assert not board.told.wait(0.1), "nothing has changed"
        if change == "the node has gone":
            going.clear()
            assert not board.told.wait(0.1)
        else:
            there.append(node("c", CPU=1.0))
        assert board.told.wait(10)
    assert board.said == [False, True]


def test_a_group_that_may_grow_by_itself_is_left_alone(nodes):
    board, before = Board(), threading.active_count()
    with room.LookOut(FAST, board, 2):
        assert threading.active_count() == before, "nobody looks"
    assert board.said == [False]


def test_a_busy_head_does_not_end_the_look_out(nodes, monkeypatch):
    there, going = nodes
    there.append(node("a", CPU=1.0))
    going.add("b")
    board, answers = Board(), iter([room.ray.exceptions.RaySystemError("busy"), 1, 1])

    def most(config):
        answer = next(answers, 2)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(room, "most_workers", most)
    monkeypatch.setattr(room, "SETTLED_SECONDS", 0.0)
    with room.LookOut(FAST, board, 1):
        assert board.told.wait(10)


def test_room_that_comes_and_goes_moves_nobody(nodes, monkeypatch):
    monkeypatch.setattr(room, "SETTLED_SECONDS", 0.2)
    answers = itertools.cycle([2, 1])
    monkeypatch.setattr(room, "most_workers", lambda config: next(answers))
    board = Board()
    with room.LookOut(FAST, board, 1):
        assert not board.told.wait(0.6)


def test_every_ending_is_one_that_ranks_can_tell_each_other():
    assert set(NUMBERED) == {None, *Ending}
    assert NUMBERED[0] is None


def test_a_wish_to_stop_comes_before_one_to_regroup_and_a_new_group_has_neither_of_the_old(monkeypatch):
    monkeypatch.setattr(boards, "Gauge", MagicMock())
    board = boards.Board.__ray_metadata__.modified_class("run")
    reading = Reading(1, 0, 0.5, 10.0, 0.0, 1)
    assert board.show(reading) is None
    board.regroup(True)
    assert board.show(reading) is Ending.REGROUPED
    board.stop()
    assert board.show(reading) is Ending.STOPPED
    board.stopping = False
    board.regroup(False)
    assert board.show(reading) is None
