"""Worker groups of Ray Train: one after another until the run is done or SIGTERM arrives."""

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

from pipeline.config.cluster import RayConfig
from pipeline.config.root import Config
from pipeline.errors import Stopped
from pipeline.ingest.manifest import DatasetManifest
from pipeline.storage.store import Store
from pipeline.training.data_plan import TrainPlan
from pipeline.training.distributed.coordinator import ProgressReporter, StopReason, new_coordinator
from pipeline.training.distributed.data_loader import LANE_BYTES, LaneDataset, lane_name
from pipeline.training.distributed.elastic import ResizeMonitor, usable_workers
from pipeline.training.distributed.worker import WorkerContext, train_worker

RAY_FOLDER = "ray"


@dataclass(frozen=True)
class TrainingContext:
    """Dataset, plan and storage of a run. lease: token of the driver's lease, checked by workers before each commit."""

    config: Config
    source: Store
    run: Store
    manifest: DatasetManifest
    plan: TrainPlan
    lease: str


def run_worker_groups(context: TrainingContext) -> None:
    """Train to the last step, one worker group after another.

    A group that ends because a node drains, or because more workers fit, is followed by the next at once. Raises
    Stopped after SIGTERM, and any error that a new group would repeat.
    """
    coordinator = new_coordinator(context.run.uri)
    with _catch_sigterm() as stop, ProgressReporter(coordinator, context.config.train.steps, stop):
        reason = StopReason.REGROUPED
        while reason in (StopReason.PREEMPTED, StopReason.REGROUPED):
            reason = _run_group(context, coordinator)
    _remove_ray_state(context.run)
    failure = ray.get(coordinator.failed.remote())
    if failure is not None:
        raise failure
    if reason is StopReason.STOPPED:
        raise Stopped("stopped by SIGTERM after a checkpoint: the same command continues where this one stopped")


def _run_group(context: TrainingContext, coordinator: Any) -> StopReason:
    most = usable_workers(context.config.ray)
    trainer = ray.train.torch.TorchTrainer(
        lambda settings: train_worker(settings["context"]),
        train_loop_config={"context": _worker_context(context, coordinator)},
        datasets={lane_name(lane): _lane(context, coordinator, lane) for lane in range(context.config.train.lanes)},
        dataset_config=ray.train.DataConfig(datasets_to_split=[], execution_options=_read_ahead()),
        scaling_config=_scaling(context.config.ray, most),
        run_config=_run_config(context),
    )
    with _keyboard_interrupts(), ResizeMonitor(context.config.ray, coordinator, most):
        try:
            return StopReason(trainer.fit().return_value)
        except ray.train.TrainingFailedError as error:
            failure = ray.get(coordinator.failed.remote())
            if failure is not None:
                raise failure from error
            raise


def _worker_context(context: TrainingContext, coordinator: Any) -> WorkerContext:
    digest = context.manifest.digest()
    return WorkerContext(context.config, context.run, context.manifest, digest, context.lease, coordinator)


def _lane(context: TrainingContext, coordinator: Any, lane: int) -> LaneDataset:
    steps, workers = context.config.train.steps, context.config.ray.max_workers
    return LaneDataset(context.run, context.source, context.manifest, context.plan, lane, steps, workers, coordinator)


def _scaling(config: RayConfig, most: int) -> ray.train.ScalingConfig:
    return ray.train.ScalingConfig(
        num_workers=most if config.min_workers == most else (config.min_workers, most),
        use_gpu=config.use_gpu,
        elastic_resize_monitor_interval_s=config.resize_seconds,
    )


def _run_config(context: TrainingContext) -> ray.train.RunConfig:
    # Ray Train's state serves one attempt only: a run resumes from its own newest checkpoint.
    return ray.train.RunConfig(
        name=uuid.uuid4().hex,
        storage_path=context.run.path(RAY_FOLDER),
        storage_filesystem=context.run.pa_fs,
        failure_config=ray.train.FailureConfig(
            max_failures=context.config.ray.max_failures, max_preemption_failures=-1
        ),
    )


def _remove_ray_state(run: Store) -> None:
    for entry in list(run.list(f"{RAY_FOLDER}/")):
        run.delete(entry.key)


def _read_ahead() -> ExecutionOptions:
    """In order, with a few blocks a lane: by default each lane may fill a quarter of the object store, which spills."""
    limits = ExecutionResources.for_limits(object_store_memory=LANE_BYTES)
    return ExecutionOptions(preserve_order=True, resource_limits=limits)


@contextmanager
def _catch_sigterm() -> Iterator[threading.Event]:
    """An event that SIGTERM sets inside the block (main thread only); the run then ends with a checkpoint."""
    requested = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield requested
        return
    before = signal.signal(signal.SIGTERM, lambda *_: requested.set())
    try:
        yield requested
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _keyboard_interrupts() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt: Ray's fit() would exit with code 0 and leave its own handler installed."""
    on_main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT) if on_main else None
    try:
        yield
    except SystemExit as error:
        raise KeyboardInterrupt from error
    finally:
        if on_main:
            signal.signal(signal.SIGINT, handler)
