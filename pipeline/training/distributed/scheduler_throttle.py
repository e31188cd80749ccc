"""Limits the CPU use of Ray Data's scheduling loop. Ray sends this class with every task: no torch import here."""

import time
from typing import Any

SHORTEST_SECONDS = 0.02
LONGEST_SECONDS = 0.2


class SchedulerThrottle:
    """Sleeps after each step of a lane's scheduling loop, longer and longer while finished blocks wait for the trainer.

    Ray Data's loop blocks only while tasks run. A lane that has read ahead runs no task, and then the loop spins inside
    the training process: two lanes used half of a worker's core. A step costs one to three milliseconds, so even 50
    steps a second were several per cent of a core a lane.
    """

    def __init__(self) -> None:
        self._seconds = SHORTEST_SECONDS

    def before_execution_starts(self, executor: Any) -> None:
        pass

    def on_execution_step(self, executor: Any) -> None:
        self._seconds = SHORTEST_SECONDS if _consumer_is_waiting(executor) else min(2 * self._seconds, LONGEST_SECONDS)
        time.sleep(self._seconds)

    def after_execution_succeeds(self, executor: Any) -> None:
        pass

    def after_execution_fails(self, executor: Any, error: Exception) -> None:
        pass


def _consumer_is_waiting(executor: Any) -> bool:
    """Whether no finished block is left for the consumer. By a private method of Ray 2.60; True without that method."""
    idling = getattr(executor, "_consumer_idling", None)
    return idling is None or bool(idling())
