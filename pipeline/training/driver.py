"""Training: dataset -> run. Ray Data streams lanes to Ray Train workers; restarts resume from the newest checkpoint."""

import time
from contextlib import suppress
from typing import Any

from pipeline.cluster import cluster
from pipeline.config.layers import to_yaml
from pipeline.config.root import Config
from pipeline.errors import ConfigError, DataError, NotFound
from pipeline.ingest.dataset import read_dataset
from pipeline.ingest.manifest import DatasetManifest
from pipeline.model_store.checkpoint import RUN, SUCCESS, checkpoint_key, latest_checkpoint, read_success, rewind
from pipeline.model_store.load_model import find_model
from pipeline.model_store.manifest import CheckpointManifest, RunPlan, RunSuccess
from pipeline.storage.create_once import create_or_read_document
from pipeline.storage.documents import find_document, to_json
from pipeline.storage.lease import LEASE, Lease
from pipeline.storage.store import Store, resolve
from pipeline.training.data_plan import TrainPlan
from pipeline.training.distributed.data_loader import READ_CPUS
from pipeline.training.distributed.worker_group import TrainingContext, run_worker_groups
from pipeline.training.metrics_table import read_metrics
from pipeline.training.sanity_checks import check_images, check_prior
from pipeline.training.trackers.tracker import check_trackers


def train(
    config: Config, dataset: str, run: str, dry_run: bool = False, from_step: int | None = None
) -> dict[str, Any]:
    """Train to `train.steps`, from the newest checkpoint or from that of `from_step`, whose successors are deleted.

    Raises ConfigError when the run was started with other settings or the number of workers does not fit the lanes,
    DataError when the dataset is missing or too small or `from_step` has no checkpoint, Busy when another driver trains
    this run, Stopped after SIGTERM.
    """
    began = time.monotonic()
    source, store = resolve(dataset, config.storage), resolve(run, config.storage)
    started = _started_plan(store)
    manifest = _dataset(source, started)
    plan = _plan(config, manifest)
    _check_workers(config)
    check_prior(config.diffusion)
    check_images(manifest)
    check_trackers(config.train.trackers)
    requested = RunPlan(
        dataset_uri=source.uri,
        dataset_digest=manifest.digest(),
        config=config.model_dump(mode="json"),
        init_digest=_init_digest(config, manifest, started),
    )
    if dry_run:
        return {"summary": _describe(config, manifest, plan)}
    _join(store, requested, config)
    done = read_success(store)
    if done is not None and done.step >= config.train.steps and from_step is None:
        return _result(store, done, "already done", {})
    with Lease(store, LEASE, f"training of {store.uri}") as lease:
        if from_step is not None:
            rewind(store, from_step)
        store.delete(SUCCESS)  # an extended run is unfinished, and retention may delete its last checkpoint
        start = latest_checkpoint(store)
        with cluster(config.ray, config.ray.max_workers + 1 + round(config.train.lanes * READ_CPUS)):
            run_worker_groups(TrainingContext(config, source, store, manifest, plan, lease.token))
        success, checkpoint = _record(store, config)
    figures = _figures(store, checkpoint, 0 if start is None else start.step)
    return {**_result(store, success, "trained", figures), "seconds": round(time.monotonic() - began, 1)}


def _record(store: Store, config: Config) -> tuple[RunSuccess, CheckpointManifest]:
    checkpoint = _finished(store, config)
    success = RunSuccess(
        step=checkpoint.step,
        images=checkpoint.images,
        checkpoint=checkpoint_key(checkpoint.step),
        batch_digest=checkpoint.batch_digest,
        config_digest=checkpoint.config_digest,
    )
    store.put(SUCCESS, to_json(success))
    return success, checkpoint


def _started_plan(store: Store) -> RunPlan | None:
    """The plan that the run was started with; None for a new run."""
    return find_document(store, RUN, RunPlan)


def _dataset(source: Store, started: RunPlan | None) -> DatasetManifest:
    """The newest dataset version, or for a started run the version it was started on: a dataset may grow meanwhile."""
    if started is not None:
        with suppress(DataError):  # `_join` refuses another dataset and names the difference
            return read_dataset(source, started.dataset_digest)
    return read_dataset(source)


def _init_digest(config: Config, manifest: DatasetManifest, started: RunPlan | None) -> str | None:
    """sha256 of the weights of a warm start. A started run keeps its recorded hash, even if the weights have moved.

    Raises ConfigError when the weights belong to another network.
    """
    uri = config.train.init_from
    if uri is None:
        return None
    if started is not None:
        return started.init_digest
    try:
        found = find_model(uri, config.train.init_weights, config.storage)
    except ConfigError as error:
        raise ConfigError(str(error).replace("generate.weights", "train.init_weights")) from error
    theirs = {**found.model.model_dump(), "image_size": found.image_size, "channels": found.channels}
    ours = {**config.model.model_dump(), "image_size": manifest.image_size, "channels": manifest.channels}
    free = {"dropout", "gradient_checkpointing"}
    different = [name for name in ours if name not in free and ours[name] != theirs[name]]
    if found.diffusion.prediction != config.diffusion.prediction:
        different.append("prediction")
    if different:
        raise ConfigError(
            f"train.init_from {uri} is another network ({', '.join(different)}): use its settings or another model"
        )
    return found.sha256


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
    """A fixed number must divide the lanes: one that does not is no faster than the next smaller divisor."""
    least, most, lanes = config.ray.min_workers, config.ray.max_workers, config.train.lanes
    if most > lanes or (least == most and lanes % most):
        raise ConfigError(
            f"{most} workers do not divide train.lanes = {lanes}: use a number of workers that does (a range MIN..MAX "
            f"may have any up to {lanes})"
        )


def _describe(config: Config, manifest: DatasetManifest, plan: TrainPlan) -> str:
    epoch = plan.epoch(0)
    return (
        f"would train {config.train.steps:,} steps of {config.train.global_batch} images ({config.train.lanes} lanes) "
        f"on {manifest.rows('train'):,} images: {epoch.batches} steps an epoch, {epoch.leftover_rows} images left out "
        "of each epoch, different ones every epoch"
    )


def _join(store: Store, requested: RunPlan, config: Config) -> None:
    """Create the run, or check that the run in this folder was started with the same plan."""
    existing = create_or_read_document(store, RUN, requested)
    different = existing.differences(requested)
    if different:
        raise ConfigError(
            f"{store.uri} was started with other settings ({', '.join(different)}): use another --run, or the settings "
            f"in {store.location('config.yaml')}"
        )
    store.put("config.yaml", to_yaml(config).encode())


def _finished(store: Store, config: Config) -> CheckpointManifest:
    checkpoint = latest_checkpoint(store)
    if checkpoint is None or checkpoint.step < config.train.steps:
        raise NotFound(
            f"{store.uri} has no checkpoint at its last step {config.train.steps}: run the same command again"
        )
    return checkpoint


def _figures(store: Store, checkpoint: CheckpointManifest, start: int) -> dict[str, float]:
    """Loss and speed over the steps of this invocation. Speeds exclude the first step, which waits for the start-up."""
    rows = [row for row in read_metrics(store, checkpoint).to_pylist() if row["step"] > start]
    if not rows:  # the earlier driver ended after the last checkpoint and before `_SUCCESS.json`
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
