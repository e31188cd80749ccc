"""A pause for Ray Data's scheduler. The class goes along with every task of a dataset: this file imports no torch."""

import time
from typing import Any

__all__ = ["Unhurried"]

STEP_SECONDS = 0.02


class Unhurried:
    """Rests between the steps of a lane's scheduler.

    Ray Data's loop waits only while it has tasks under way. A lane that is read ahead has none, and then the loop runs
    as fast as it can inside the training process: two lanes took half of a worker's core.
    """

    def before_execution_starts(self, executor: Any) -> None:
        pass

    def on_execution_step(self, executor: Any) -> None:
        time.sleep(STEP_SECONDS)

    def after_execution_succeeds(self, executor: Any) -> None:
        pass

    def after_execution_fails(self, executor: Any, error: Exception) -> None:
        pass
