"""One run of Ray Train, again and again until the run is done or asked to stop."""

import signal
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
import ray.train
import ray.train.torch
from ray.data import ExecutionOptions, ExecutionResources

from pipeline.config import Config
from pipeline.errors import Stopped
from pipeline.manifests import DatasetManifest
from pipeline.planning import TrainPlan
from pipeline.stages.board import Ending, Watch, new_board
from pipeline.stages.lanes import LANE_BYTES, LaneDataset, lane_name
from pipeline.stages.room import LookOut, most_workers
from pipeline.stages.train_worker import TrainJob, train_worker
from pipeline.storage.store import Store

__all__ = ["Fit"]

RAY_FOLDER = "ray"


@dataclass(frozen=True)
class Fit:
    """What is trained on what, where; `lease` is the token that workers look for before they commit."""

    config: Config
    source: Store
    run: Store
    manifest: DatasetManifest
    plan: TrainPlan
    lease: str

    def __call__(self) -> None:
        """Train to the last step. Raises Stopped after SIGTERM, and whatever ended the run for good."""
        board = new_board(self.run.uri)
        with _sigterm() as stop, Watch(board, self.config.train.steps, stop):
            ending = self._fit(board)
            while ending in (Ending.PREEMPTED, Ending.REGROUPED):  # on at once, without waiting for nodes to go
                ending = self._fit(board)
        self._remove_ray_state()
        failure = ray.get(board.failed.remote())
        if failure is not None:
            raise failure
        if ending is Ending.STOPPED:
            raise Stopped("stopped by SIGTERM after a checkpoint: the same command continues where this one stopped")

    def _fit(self, board: Any) -> Ending:
        job = TrainJob(self.config, self.run, self.manifest, self.manifest.digest(), self.lease, board)
        most = most_workers(self.config.ray)
        trainer = ray.train.torch.TorchTrainer(
            lambda settings: train_worker(settings["job"]),
            train_loop_config={"job": job},
            datasets={lane_name(lane): self._lane(lane) for lane in range(self.config.train.lanes)},
            dataset_config=ray.train.DataConfig(datasets_to_split=[], execution_options=_read_ahead()),
            scaling_config=self._scaling(most),
            run_config=self._run_config(),
        )
        with _interrupts_as_usual(), LookOut(self.config.ray, board, most):
            try:
                return Ending(trainer.fit().return_value)
            except ray.train.TrainingFailedError as error:
                failure = ray.get(board.failed.remote())
                if failure is not None:
                    raise failure from error
                raise

    def _lane(self, lane: int) -> LaneDataset:
        workers, steps = self.config.ray.max_workers, self.config.train.steps
        return LaneDataset(self.run, self.source, self.manifest, self.plan, lane, steps, workers)

    def _scaling(self, most: int) -> ray.train.ScalingConfig:
        least = self.config.ray.min_workers
        return ray.train.ScalingConfig(
            num_workers=most if least == most else (least, most),
            use_gpu=self.config.ray.use_gpu,
            elastic_resize_monitor_interval_s=self.config.ray.resize_seconds,
        )

    def _run_config(self) -> ray.train.RunConfig:
        # Ray's own state is of one attempt only: what a run resumes from is its latest checkpoint.
        return ray.train.RunConfig(
            name=uuid.uuid4().hex,
            storage_path=self.run.path(RAY_FOLDER),
            storage_filesystem=self.run.pa_fs,
            failure_config=ray.train.FailureConfig(
                max_failures=self.config.ray.max_failures, max_preemption_failures=-1
            ),
        )

    def _remove_ray_state(self) -> None:
        for entry in list(self.run.list(f"{RAY_FOLDER}/")):
            self.run.delete(entry.key)


def _read_ahead() -> ExecutionOptions:
    """In order, and a few blocks a lane: Ray Data would give each lane a quarter of the object store, and spill."""
    limits = ExecutionResources.for_limits(object_store_memory=LANE_BYTES)
    return ExecutionOptions(preserve_order=True, resource_limits=limits)


@contextmanager
def _sigterm() -> Iterator[threading.Event]:
    """Set by SIGTERM inside the block, when on the main thread: the run then ends with a checkpoint."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = signal.signal(signal.SIGTERM, lambda *_: asked.set())
    try:
        yield asked
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _interrupts_as_usual() -> Iterator[None]:
    """Ray's fit() answers Ctrl-C with exit 0 and leaves its handler behind; here it means stop, not done."""
    on_main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT) if on_main else None
    try:
        yield
    except SystemExit as error:
        raise KeyboardInterrupt from error
    finally:
        if on_main:
            signal.signal(signal.SIGINT, handler)
