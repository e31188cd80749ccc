"""A pause for Ray Data's scheduler. The class goes along with every task of a dataset: this file imports no torch."""

import time
from typing import Any

__all__ = ["Unhurried"]

AWAITED_SECONDS = 0.02
AHEAD_SECONDS = 0.2


class Unhurried:
    """Rests between the steps of a lane's scheduler: long while finished blocks wait for the trainer, else shortly.

    Ray Data's loop waits only while it has tasks under way. A lane that is read ahead has none, and then the loop runs
    as fast as it can inside the training process: two lanes took half of a worker's core. A step costs one to three
    milliseconds, so even 50 a second were some per cent of a core a lane.
    """

    def before_execution_starts(self, executor: Any) -> None:
        pass

    def on_execution_step(self, executor: Any) -> None:
        time.sleep(AWAITED_SECONDS if _is_awaited(executor) else AHEAD_SECONDS)

    def after_execution_succeeds(self, executor: Any) -> None:
        pass

    def after_execution_fails(self, executor: Any, error: Exception) -> None:
        pass


def _is_awaited(executor: Any) -> bool:
    """Whether no finished block is left for the consumer. A method of Ray 2.60's own; True where there is none."""
    idling = getattr(executor, "_consumer_idling", None)
    return idling is None or bool(idling())
