"""A pause for Ray Data's scheduler. The class goes along with every task of a dataset: this file imports no torch."""

import time
from typing import Any

__all__ = ["Unhurried"]

SHORTEST_SECONDS = 0.02
LONGEST_SECONDS = 0.2


class Unhurried:
    """Rests between the steps of a lane's scheduler: ever longer while finished blocks wait for the trainer.

    Ray Data's loop waits only while it has tasks under way. A lane that is read ahead has none, and then the loop runs
    as fast as it can inside the training process: two lanes took half of a worker's core. A step costs one to three
    milliseconds, so even 50 a second were some per cent of a core a lane.
    """

    def __init__(self) -> None:
        self._seconds = SHORTEST_SECONDS

    def before_execution_starts(self, executor: Any) -> None:
        pass

    def on_execution_step(self, executor: Any) -> None:
        self._seconds = SHORTEST_SECONDS if _is_awaited(executor) else min(2 * self._seconds, LONGEST_SECONDS)
        time.sleep(self._seconds)

    def after_execution_succeeds(self, executor: Any) -> None:
        pass

    def after_execution_fails(self, executor: Any, error: Exception) -> None:
        pass


def _is_awaited(executor: Any) -> bool:
    """Whether no finished block is left for the consumer. A method of Ray 2.60's own; True where there is none."""
    idling = getattr(executor, "_consumer_idling", None)
    return idling is None or bool(idling())
