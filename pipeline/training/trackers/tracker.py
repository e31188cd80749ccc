"""Where the curves and pictures of a run are shown: TensorBoard files in the run, Weights & Biases, MLflow.

They show what checkpoints have committed, under an identity that is a function of the run's URI, so a run that was
restarted goes on in the same charts and a step that was done again is no second point. None of them may hold up or end
training: each works on a thread of its own, and one that fails is warned about once and dropped.
"""

import importlib.util
import logging
import queue
import threading
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Protocol

from pipeline.errors import ConfigError
from pipeline.storage.store import Store
from pipeline.training.metrics_table import Row
from pipeline.training.trackers.services import MLflow, WandB
from pipeline.training.trackers.tensorboard import TensorBoard

__all__ = ["Tracker", "check_trackers", "open_trackers"]

logger = logging.getLogger("ddpm.training")

PACKAGES = {"wandb": "wandb", "mlflow": "mlflow-skinny"}
QUEUE_CALLS = 8
WAIT_SECONDS = 60.0


class Tracker(Protocol):
    """Called from one thread at a time. `scalars` gets the rows (METRICS) of one checkpoint, in order."""

    def scalars(self, rows: Sequence[Row]) -> None: ...
    def image(self, name: str, png: bytes, step: int) -> None: ...
    def close(self) -> None: ...


def check_trackers(names: Iterable[str]) -> None:
    """Raises ConfigError when a package of `train.trackers` is not installed."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise ConfigError(f"train.trackers names {name}, which is not installed: pip install {PACKAGES[name]}")


def open_trackers(run: Store, names: Iterable[str] = ()) -> Sequence[Tracker]:
    """TensorBoard and the named ones; calls are only queued. Raises ConfigError for a missing package."""
    services: dict[str, Callable[[Store], Tracker]] = {"wandb": WandB, "mlflow": MLflow}
    names = list(names)
    check_trackers(names)
    chosen = {"TensorBoard": TensorBoard, **{name: services[name] for name in names}}
    return [_BackgroundTracker(name, partial(make, run)) for name, make in chosen.items()]


class _BackgroundTracker:
    """A tracker on a thread of its own, until it fails or is so far behind that somebody waited `WAIT_SECONDS`."""

    def __init__(self, name: str, make: Callable[[], Tracker]) -> None:
        self._name, self._make = name, make
        self._calls: queue.Queue[Callable[[Tracker], None] | None] = queue.Queue(QUEUE_CALLS)
        self._dropped = threading.Event()
        self._thread = threading.Thread(target=self._work, name=f"ddpm-{name}", daemon=True)
        self._thread.start()

    def scalars(self, rows: Sequence[Row]) -> None:
        self._hand_over(lambda tracker: tracker.scalars(rows))

    def image(self, name: str, png: bytes, step: int) -> None:
        self._hand_over(lambda tracker: tracker.image(name, png, step))

    def close(self) -> None:
        self._hand_over(None)
        if not self._dropped.is_set():
            self._thread.join(WAIT_SECONDS)
            if self._thread.is_alive():
                self._drop(f"it did not end within {WAIT_SECONDS:.0f} s")

    def _hand_over(self, call: Callable[[Tracker], None] | None) -> None:
        if self._dropped.is_set():
            return
        try:
            self._calls.put(call, timeout=WAIT_SECONDS)
        except queue.Full:
            self._drop(f"it does not keep up: nothing was taken for {WAIT_SECONDS:.0f} s")

    def _work(self) -> None:
        try:
            tracker = self._make()
            while (call := self._calls.get()) is not None:
                if self._dropped.is_set():
                    return
                call(tracker)
            tracker.close()
        except Exception as error:  # whatever a foreign package raises, the run is worth more
            self._drop(f"{type(error).__name__}: {error}")

    def _drop(self, why: str) -> None:
        if not self._dropped.is_set():
            self._dropped.set()
            logger.warning("%s is shown no more of this run, which goes on without it: %s", self._name, why)
