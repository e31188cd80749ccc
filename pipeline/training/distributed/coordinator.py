"""Where the driver and the workers of a run meet: how far it is, whether it shall stop, what ended it for good."""

import enum
import threading
from typing import Any, NamedTuple

import ray
from ray.util.metrics import Gauge
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.errors import PipelineError
from pipeline.log import Entry, replay
from pipeline.progress import Progress

__all__ = ["StepStatus", "StopReason", "Watch", "new_coordinator"]

POLL_SECONDS = 0.5


class StopReason(enum.Enum):
    """Why a group of workers ended in good order."""

    DONE = "done"
    STOPPED = "stopped"  # the driver was asked to
    PREEMPTED = "preempted"  # a node that hosts a worker is about to go
    REGROUPED = "regrouped"  # there may be room for more workers
    FAILED = "failed"  # the board says how


class StepStatus(NamedTuple):
    """What rank 0 says about once a second; speeds and shares are of the time since it said so before."""

    step: int
    epoch: int
    loss: float
    images_per_second: float
    data_wait_share: float  # 0..1
    world_size: int

    @property
    def text(self) -> str:
        """For the line that a person reads."""
        workers = f"{self.world_size} worker{'s' if self.world_size > 1 else ''}"
        waiting = f"{100 * self.data_wait_share:.0f} % waiting for data"
        return f"epoch {self.epoch}, {self.images_per_second:,.0f} img/s, loss {self.loss:.4f}, {waiting}, {workers}"


@ray.remote
class Coordinator:
    """Lives on the driver's node, so that it is there as long as the driver is. Numbers are Prometheus gauges too."""

    def __init__(self, run: str) -> None:
        self.reading: StepStatus | None = None
        self.stopping = False
        self.regrouping = False
        self.failure: PipelineError | None = None
        self.pending_warnings: list[Entry] = []
        self.gauges = {
            name: Gauge(f"ddpm_train_{name}", f"{name} of the training run", tag_keys=("run",))
            for name in StepStatus._fields
        }
        for gauge in self.gauges.values():
            gauge.set_default_tags({"run": run})

    def show(self, reading: StepStatus) -> StopReason | None:
        """From rank 0; returns what the workers shall end for."""
        self.reading = reading
        for name, value in reading._asdict().items():
            self.gauges[name].set(value)
        if self.stopping:
            return StopReason.STOPPED
        return StopReason.REGROUPED if self.regrouping else None

    def read(self) -> StepStatus | None:
        return self.reading

    def warn(self, entry: Entry) -> None:
        """A warning that a worker logged."""
        self.pending_warnings.append(entry)

    def take_warnings(self) -> list[Entry]:
        """Those since the last call, for the driver's log."""
        taken, self.pending_warnings = self.pending_warnings, []
        return taken

    def stop(self) -> None:
        self.stopping = True

    def regroup(self, wanted: bool) -> None:
        """Whether this group of workers shall give way to another one."""
        self.regrouping = wanted

    def fail(self, error: PipelineError) -> None:
        """An error that the same run would meet again: a restart of the workers is of no use."""
        self.failure = self.failure or error

    def failed(self) -> PipelineError | None:
        return self.failure


def new_coordinator(run: str) -> Any:
    """Handle of a fresh board on this node."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return Coordinator.options(num_cpus=0, scheduling_strategy=here).remote(run)  # type: ignore[attr-defined]


class Watch:
    """Shows the board on the driver until the block ends, and hands on the driver's wish to stop."""

    def __init__(self, coordinator: Any, steps: int, stop: threading.Event) -> None:
        self._board, self._steps, self._stop = coordinator, steps, stop
        self._progress: Progress | None = None  # begins with the first reading, so that start-up is no part of the ETA
        self._told = False
        self._note = ""
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        while not self._ended.wait(POLL_SECONDS):
            self._look()

    def _look(self) -> None:
        try:
            if self._stop.is_set() and not self._told:
                ray.get(self._board.stop.remote())
                self._told = True
            replay(ray.get(self._board.take_warnings.remote()))
            reading = ray.get(self._board.read.remote())
        except ray.exceptions.RayError:
            return  # a lost board costs the progress line, not the run
        if reading is None:
            return
        self._progress = self._progress or Progress("train", self._steps, "steps", reading.step)
        self._note = reading.text
        self._progress.update(reading.step, self._note)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._look()
        if self._progress is not None:
            self._progress.close(self._note)
