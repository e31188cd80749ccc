"""Experiment trackers: TensorBoard files in the run's folder, Weights & Biases, MLflow.

Trackers receive only committed steps. A tracker identifies the run by a hash of its URI, so a restarted run continues
the same curves and a repeated step adds no second point. A tracker never blocks or ends training: each works on its own
thread, and a tracker that fails is dropped with one warning.
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

logger = logging.getLogger("ddpm.training")

PACKAGES = {"wandb": "wandb", "mlflow": "mlflow-skinny"}
QUEUE_CALLS = 8
WAIT_SECONDS = 60.0


class Tracker(Protocol):
    """Called from one thread at a time. `scalars` receives the rows (METRICS) of one checkpoint, in order."""

    def scalars(self, rows: Sequence[Row]) -> None: ...
    def image(self, name: str, png: bytes, step: int) -> None: ...
    def close(self) -> None: ...


def check_trackers(names: Iterable[str]) -> None:
    """Raises ConfigError when a package of `train.trackers` is not installed."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise ConfigError(f"train.trackers names {name}, which is not installed: pip install {PACKAGES[name]}")


def open_trackers(run: Store, names: Iterable[str] = ()) -> Sequence[Tracker]:
    """TensorBoard and the named trackers; their methods only queue a call. Raises ConfigError for a missing package."""
    services: dict[str, Callable[[Store], Tracker]] = {"wandb": WandB, "mlflow": MLflow}
    names = list(names)
    check_trackers(names)
    chosen = {"TensorBoard": TensorBoard, **{name: services[name] for name in names}}
    return [_BackgroundTracker(name, partial(make, run)) for name, make in chosen.items()]


class _BackgroundTracker:
    """Runs a tracker on its own thread until the tracker fails or its queue stays full for `WAIT_SECONDS`."""

    def __init__(self, name: str, make: Callable[[], Tracker]) -> None:
        self._name, self._make = name, make
        self._calls: queue.Queue[Callable[[Tracker], None] | None] = queue.Queue(QUEUE_CALLS)
        self._dropped = threading.Event()
        self._thread = threading.Thread(target=self._work, name=f"ddpm-{name}", daemon=True)
        self._thread.start()

    def scalars(self, rows: Sequence[Row]) -> None:
        self._enqueue(lambda tracker: tracker.scalars(rows))

    def image(self, name: str, png: bytes, step: int) -> None:
        self._enqueue(lambda tracker: tracker.image(name, png, step))

    def close(self) -> None:
        self._enqueue(None)
        if not self._dropped.is_set():
            self._thread.join(WAIT_SECONDS)
            if self._thread.is_alive():
                self._drop(f"it did not end within {WAIT_SECONDS:.0f} s")

    def _enqueue(self, call: Callable[[Tracker], None] | None) -> None:
        if self._dropped.is_set():
            return
        try:
            self._calls.put(call, timeout=WAIT_SECONDS)
        except queue.Full:
            self._drop(f"it does not keep up: its queue was full for {WAIT_SECONDS:.0f} s")

    def _work(self) -> None:
        try:
            tracker = self._make()
            while (call := self._calls.get()) is not None:
                if self._dropped.is_set():
                    return
                call(tracker)
            tracker.close()
        except Exception as error:  # a tracking package may raise anything, and training must continue
            self._drop(f"{type(error).__name__}: {error}")

    def _drop(self, why: str) -> None:
        if not self._dropped.is_set():
            self._dropped.set()
            logger.warning("%s is dropped for this run, which continues without it: %s", self._name, why)
