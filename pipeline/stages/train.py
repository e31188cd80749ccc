"""Dataset -> run: Ray Data feeds lanes to Ray Train workers; every restart goes on from our own latest checkpoint."""

import signal
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import ray
import ray.train
import ray.train.torch
from ray.data import ExecutionOptions

from pipeline.config import Config
from pipeline.config_sources import to_yaml
from pipeline.errors import AlreadyExists, ConfigError, DataError, NotFound
from pipeline.manifests import CheckpointManifest, DatasetManifest, RunPlan, RunSuccess, parse
from pipeline.planning import TrainPlan, lanes_of_worker
from pipeline.progress import Progress
from pipeline.stages.cluster import cluster
from pipeline.stages.lanes import READ_CPUS, LaneDataset, lane_name
from pipeline.stages.train_worker import TrainJob, train_worker
from pipeline.storage.checkpoints import (
    RUN,
    SUCCESS,
    checkpoint_key,
    latest_checkpoint,
    read_success,
)
from pipeline.storage.metrics import read_metrics
from pipeline.storage.shards import document, read_dataset
from pipeline.storage.store import Store, resolve

__all__ = ["train"]

POLL_SECONDS = 0.5
RAY_FOLDER = "ray"


def train(config: Config, dataset: str, run: str, dry_run: bool = False) -> dict[str, Any]:
    """Train to `train.steps`, from wherever the run stands.

    Raises ConfigError when the run was started with other settings or the workers do not divide the lanes, DataError
    when the dataset is missing or too small.
    """
    began = time.monotonic()
    source, store = resolve(dataset, config.storage), resolve(run, config.storage)
    manifest = read_dataset(source)
    plan = _plan(config, manifest)
    _check_workers(config)
    asked = RunPlan(dataset_uri=source.uri, dataset_digest=manifest.digest(), config=config.model_dump(mode="json"))
    if dry_run:
        return {"summary": _describe(config, manifest, plan)}
    _join(store, asked, config)
    done = read_success(store)
    if done is not None and done.step >= config.train.steps:
        return _result(store, done, "already done", {})
    if done is not None:
        store.delete(SUCCESS)  # a run that is being extended is not finished, and its last checkpoint may be retired
    start = latest_checkpoint(store)
    with cluster(config.ray, config.ray.max_workers + 1 + round(config.train.lanes * READ_CPUS)):
        _fit(config, source, store, manifest, plan)
    checkpoint = _finished(store, config)
    success = RunSuccess(
        step=checkpoint.step,
        images=checkpoint.images,
        checkpoint=checkpoint_key(checkpoint.step),
        batch_digest=checkpoint.batch_digest,
        config_digest=checkpoint.config_digest,
    )
    store.put(SUCCESS, document(success))
    figures = _figures(store, checkpoint, 0 if start is None else start.step)
    return {**_result(store, success, "trained", figures), "seconds": round(time.monotonic() - began, 1)}


def _plan(config: Config, manifest: DatasetManifest) -> TrainPlan:
    shards = manifest.split("train")
    if not shards:
        raise DataError("the dataset has no training images")
    classes = config.model.num_classes
    if classes is not None and (manifest.classes is None or len(manifest.classes) != classes):
        has = "no labels" if manifest.classes is None else f"{len(manifest.classes)} classes"
        raise ConfigError(f"model.num_classes is {classes} and the dataset has {has}")
    return TrainPlan(
        dataset_digest=manifest.digest(),
        shard_rows=tuple(shard.rows for shard in shards),
        lanes=config.train.lanes,
        micro_batch=config.train.micro_batch,
        seed=config.train.seed,
    )


def _check_workers(config: Config) -> None:
    for workers in range(config.ray.min_workers, config.ray.max_workers + 1):
        lanes_of_worker(0, workers, config.train.lanes)


def _describe(config: Config, manifest: DatasetManifest, plan: TrainPlan) -> str:
    epoch = plan.epoch(0)
    return (
        f"would train {config.train.steps:,} steps of {config.train.global_batch} images ({config.train.lanes} lanes) "
        f"on {manifest.rows('train'):,} images: {epoch.batches} steps an epoch, {epoch.leftover_rows} images left out "
        "of each epoch, other ones every time"
    )


def _join(store: Store, asked: RunPlan, config: Config) -> None:
    """Claim the run's folder, or go on with the run that is there if it is the same one."""
    with suppress(AlreadyExists):
        store.create_once(RUN, document(asked))
    existing = parse(RunPlan, store.read(RUN), store.location(RUN))
    different = existing.differences(asked)
    if different:
        raise ConfigError(
            f"{store.uri} was started with other settings ({', '.join(different)}): use another --run, or the settings "
            f"in {store.location('config.yaml')}"
        )
    store.put("config.yaml", to_yaml(config).encode())


def _fit(config: Config, source: Store, store: Store, manifest: DatasetManifest, plan: TrainPlan) -> None:
    board = Board.options(num_cpus=0).remote()  # type: ignore[attr-defined]
    steps = config.train.steps
    lanes = {
        lane_name(lane): LaneDataset(store, source, manifest, plan, lane, steps) for lane in range(config.train.lanes)
    }
    workers = config.ray.max_workers
    trainer = ray.train.torch.TorchTrainer(
        lambda settings: train_worker(settings["job"]),
        train_loop_config={"job": TrainJob(config, store, manifest, manifest.digest(), board)},
        datasets=lanes,
        dataset_config=ray.train.DataConfig(
            datasets_to_split=[], execution_options=ExecutionOptions(preserve_order=True)
        ),
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers if config.ray.min_workers == workers else (config.ray.min_workers, workers),
            use_gpu=config.ray.use_gpu,
        ),
        run_config=ray.train.RunConfig(
            # Ray's own state is of one attempt only: what a run resumes from is its latest checkpoint.
            name=uuid.uuid4().hex,
            storage_path=store.path(RAY_FOLDER),
            storage_filesystem=store.pa_fs,
            failure_config=ray.train.FailureConfig(max_failures=config.ray.max_failures, max_preemption_failures=-1),
        ),
    )
    with _Watch(board, steps, latest_checkpoint(store)), _interrupts_as_usual():
        trainer.fit()
    for entry in list(store.list(f"{RAY_FOLDER}/")):
        store.delete(entry.key)


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


@ray.remote
class Board:
    """Where rank 0 writes how far it is, and the driver reads it."""

    def __init__(self) -> None:
        self.state: tuple[int, float] | None = None

    def show(self, step: int, loss: float) -> None:
        self.state = (step, loss)

    def read(self) -> tuple[int, float] | None:
        return self.state


class _Watch:
    """Shows the board's state on the driver until the block ends."""

    def __init__(self, board: Any, steps: int, start: CheckpointManifest | None) -> None:
        self._board = board
        self._progress = Progress("train", steps, "steps", 0 if start is None else start.step)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        while not self._ended.wait(POLL_SECONDS):
            self._show()

    def _show(self) -> None:
        try:
            state = ray.get(self._board.read.remote())
        except ray.exceptions.RayError:
            return  # a lost board costs the progress line, not the run
        if state is not None:
            self._progress.update(state[0], f"loss {state[1]:.4f}")

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._show()
        self._progress.close()


def _finished(store: Store, config: Config) -> CheckpointManifest:
    checkpoint = latest_checkpoint(store)
    if checkpoint is None or checkpoint.step < config.train.steps:
        raise NotFound(
            f"{store.uri} has no checkpoint at its last step {config.train.steps}: run the same command again"
        )
    return checkpoint


def _figures(store: Store, checkpoint: CheckpointManifest, start: int) -> dict[str, float]:
    """Of the steps that this invocation took; the first is left out of speeds, as it waits for everything to start."""
    rows = [row for row in read_metrics(store, checkpoint).to_pylist() if row["step"] > start]
    if not rows:  # the run was stopped between its last checkpoint and its record
        return {}
    tail = rows[-max(1, len(rows) // 10) :]
    seconds = sum(row["step_seconds"] for row in rows[1:])
    images = rows[-1]["images"] - rows[0]["images"]
    waited = sum(row["data_wait_seconds"] for row in rows[1:])
    return {
        "loss": round(sum(row["loss"] for row in tail) / len(tail), 5),
        "images_per_second": round(images / seconds, 1) if seconds else 0.0,
        "data_wait_share": round(waited / seconds, 4) if seconds else 0.0,
    }


def _result(store: Store, success: RunSuccess, state: str, figures: dict[str, Any]) -> dict[str, Any]:
    detail = ""
    if figures:
        detail = (
            f", loss {figures['loss']:.4f}, {figures['images_per_second']:,.1f} img/s, "
            f"{100 * figures['data_wait_share']:.1f} % of the time waiting for data"
        )
    return {
        "state": state,
        "uri": store.uri,
        "checkpoint": store.location(success.checkpoint),
        **success.model_dump(exclude={"kind", "checkpoint"}),
        **figures,
        "summary": f"{state}: {success.step:,} steps, {success.images:,} images{detail} -> {store.uri}",
    }
