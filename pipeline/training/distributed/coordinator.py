"""State shared by the driver and the workers of a run: progress, requests to stop, warnings, the final error."""

import enum
import threading
from typing import Any, NamedTuple

import ray
from ray.util.metrics import Gauge
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.cluster import metric_tag
from pipeline.errors import PipelineError
from pipeline.log import Entry, replay
from pipeline.progress import Progress

POLL_SECONDS = 0.5


class StopReason(enum.Enum):
    """Why a worker group ended without being restarted by Ray."""

    DONE = "done"
    STOPPED = "stopped"  # SIGTERM to the driver
    PREEMPTED = "preempted"  # a node that hosts a worker drains
    REGROUPED = "regrouped"  # a larger group may fit
    FAILED = "failed"  # the coordinator holds the error


class StepStatus(NamedTuple):
    """Rank 0's report, about once a second; speed and share are of the time since the previous report."""

    step: int
    epoch: int
    loss: float
    images_per_second: float
    data_wait_share: float  # 0..1
    world_size: int

    @property
    def text(self) -> str:
        """For the progress line."""
        workers = f"{self.world_size} worker{'s' if self.world_size > 1 else ''}"
        waiting = f"{100 * self.data_wait_share:.0f} % waiting for data"
        return f"epoch {self.epoch}, {self.images_per_second:,.0f} img/s, loss {self.loss:.4f}, {waiting}, {workers}"


@ray.remote
class Coordinator:
    """An actor on the driver's node, so that it lives as long as the driver. Its numbers are also Prometheus gauges."""

    def __init__(self, run: str) -> None:
        self.status: StepStatus | None = None
        self.stopping = False
        self.regrouping = False
        self.failure: PipelineError | None = None
        self.pending_warnings: list[Entry] = []
        self.gauges = {
            name: Gauge(f"ddpm_train_{name}", f"{name} of the training run", tag_keys=("run",))
            for name in StepStatus._fields
        }
        for gauge in self.gauges.values():
            gauge.set_default_tags({"run": metric_tag(run)})

    def report(self, status: StepStatus) -> StopReason | None:
        """Called by rank 0; returns the reason why the workers should stop, if any."""
        self.status = status
        for name, value in status._asdict().items():
            self.gauges[name].set(value)
        if self.stopping:
            return StopReason.STOPPED
        return StopReason.REGROUPED if self.regrouping else None

    def last_status(self) -> StepStatus | None:
        return self.status

    def warn(self, entry: Entry) -> None:
        """A warning that a worker logged."""
        self.pending_warnings.append(entry)

    def take_warnings(self) -> list[Entry]:
        """Warnings since the last call, for the driver's log."""
        taken, self.pending_warnings = self.pending_warnings, []
        return taken

    def stop(self) -> None:
        self.stopping = True

    def regroup(self, wanted: bool) -> None:
        """Set or withdraw the request that this group ends so that a larger one can start."""
        self.regrouping = wanted

    def fail(self, error: PipelineError) -> None:
        """Record an error that a restart of the workers would only repeat."""
        self.failure = self.failure or error

    def failed(self) -> PipelineError | None:
        return self.failure


def new_coordinator(run: str) -> Any:
    """Handle of a new coordinator on this node."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return Coordinator.options(num_cpus=0, scheduling_strategy=here).remote(run)  # type: ignore[attr-defined]


class ProgressReporter:
    """On the driver, while the block runs: progress, the workers' warnings, and the request to stop for the workers."""

    def __init__(self, coordinator: Any, steps: int, stop: threading.Event) -> None:
        self._coordinator, self._steps, self._stop = coordinator, steps, stop
        self._progress: Progress | None = None  # from the first status on, so that start-up does not count in the ETA
        self._stop_forwarded = False
        self._note = ""
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        while not self._ended.wait(POLL_SECONDS):
            self._poll()

    def _poll(self) -> None:
        try:
            if self._stop.is_set() and not self._stop_forwarded:
                ray.get(self._coordinator.stop.remote())
                self._stop_forwarded = True
            replay(ray.get(self._coordinator.take_warnings.remote()))
            status = ray.get(self._coordinator.last_status.remote())
        except ray.exceptions.RayError:
            return  # without the coordinator there is no progress line; the run continues
        if status is None:
            return
        self._progress = self._progress or Progress("train", self._steps, "steps", status.step)
        self._note = status.text
        self._progress.update(status.step, self._note)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._poll()
        if self._progress is not None:
            self._progress.close(self._note)
