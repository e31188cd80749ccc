"""How long a lane's scheduler rests."""

from types import SimpleNamespace

import pytest
from ray.data._internal.execution.streaming_executor import StreamingExecutor

from pipeline.stages import unhurried
from pipeline.stages.unhurried import AHEAD_SECONDS, AWAITED_SECONDS, Unhurried

pytestmark = pytest.mark.unit


def rest_of(monkeypatch, executor):
    rests = []
    monkeypatch.setattr(unhurried.time, "sleep", rests.append)
    Unhurried().on_execution_step(executor)
    return rests


def executor_with(blocks):
    """Ray's own method, of an executor whose output queue holds some blocks."""
    executor = SimpleNamespace(_output_node=(None, SimpleNamespace(output_queue=[None] * blocks)))
    executor._consumer_idling = lambda: StreamingExecutor._consumer_idling(executor)
    return executor


def test_it_is_long_while_blocks_wait_for_the_trainer_and_short_when_it_waits_for_them(monkeypatch):
    assert rest_of(monkeypatch, executor_with(blocks=1)) == [AHEAD_SECONDS]
    assert rest_of(monkeypatch, executor_with(blocks=0)) == [AWAITED_SECONDS]


def test_it_is_short_with_an_executor_that_does_not_say(monkeypatch):
    assert rest_of(monkeypatch, SimpleNamespace()) == [AWAITED_SECONDS]
