"""How long a lane's scheduling loop sleeps."""

from types import SimpleNamespace

import pytest
from ray.data._internal.execution.streaming_executor import StreamingExecutor

from pipeline.training.distributed import scheduler_throttle
from pipeline.training.distributed.scheduler_throttle import LONGEST_SECONDS, SHORTEST_SECONDS, SchedulerThrottle

pytestmark = pytest.mark.unit


def rests_with(monkeypatch, executors):
    rests = []
    monkeypatch.setattr(scheduler_throttle.time, "sleep", rests.append)
    callback = SchedulerThrottle()
    for executor in executors:
        callback.on_execution_step(executor)
    return rests


def executor_with(blocks):
    """Ray's own method, of an executor whose output queue holds some blocks."""
    executor = SimpleNamespace(_output_node=(None, SimpleNamespace(output_queue=[None] * blocks)))
    executor._consumer_idling = lambda: StreamingExecutor._consumer_idling(executor)
    return executor


def test_it_grows_while_blocks_wait_for_the_trainer_and_is_short_once_it_waits_for_them(monkeypatch):
    rests = rests_with(monkeypatch, [executor_with(blocks) for blocks in (0, 1, 2, 2, 2, 2, 0, 1)])
    assert rests == pytest.approx([0.02, 0.04, 0.08, 0.16, 0.2, 0.2, 0.02, 0.04])
    assert (min(rests), max(rests)) == (SHORTEST_SECONDS, LONGEST_SECONDS)


def test_it_is_short_with_an_executor_of_another_ray(monkeypatch):
    assert rests_with(monkeypatch, [SimpleNamespace()] * 3) == [SHORTEST_SECONDS] * 3
