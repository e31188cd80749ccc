"""Dataset -> run: Ray Data feeds lanes to Ray Train workers; every restart goes on from our own latest checkpoint."""

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

__all__ = ["train"]


def train(
    config: Config, dataset: str, run: str, dry_run: bool = False, from_step: int | None = None
) -> dict[str, Any]:
    """Train to `train.steps`, from wherever the run stands, or from the checkpoint of `from_step`: later ones go.

    Raises ConfigError when the run was started with other settings or the workers do not divide the lanes, DataError
    when the dataset is missing or too small or there is no such step, Busy when another driver trains this run,
    Stopped after SIGTERM.
    """
    began = time.monotonic()
    source, store = resolve(dataset, config.storage), resolve(run, config.storage)
    begun = _begun(store)
    manifest = _dataset(source, begun)
    plan = _plan(config, manifest)
    _check_workers(config)
    check_prior(config.diffusion)
    check_images(manifest)
    check_trackers(config.train.trackers)
    asked = RunPlan(
        dataset_uri=source.uri,
        dataset_digest=manifest.digest(),
        config=config.model_dump(mode="json"),
        init_digest=_init_digest(config, manifest, begun),
    )
    if dry_run:
        return {"summary": _describe(config, manifest, plan)}
    _join(store, asked, config)
    done = read_success(store)
    if done is not None and done.step >= config.train.steps and from_step is None:
        return _result(store, done, "already done", {})
    with Lease(store, LEASE, f"training of {store.uri}") as lease:
        if from_step is not None:
            rewind(store, from_step)
        store.delete(SUCCESS)  # a run that is being extended is not finished, and its last checkpoint may be retired
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


def _begun(store: Store) -> RunPlan | None:
    """What the run was started with, if it was."""
    return find_document(store, RUN, RunPlan)


def _dataset(source: Store, begun: RunPlan | None) -> DatasetManifest:
    """The newest generation, or the one that the run was started on: a data set may grow under it."""
    if begun is not None:
        with suppress(DataError):  # another data set is refused by name, later
            return read_dataset(source, begun.dataset_digest)
    return read_dataset(source)


def _init_digest(config: Config, manifest: DatasetManifest, begun: RunPlan | None) -> str | None:
    """sha256 of the weights that a warm start takes; those of a run that has begun are pinned, wherever they are now.

    Raises ConfigError when they are another network's.
    """
    uri = config.train.init_from
    if uri is None:
        return None
    if begun is not None:
        return begun.init_digest
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
    """A fixed number that does not divide the lanes is as slow as a smaller one that does; MIN..MAX takes any."""
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
        "of each epoch, other ones every time"
    )


def _join(store: Store, asked: RunPlan, config: Config) -> None:
    """Claim the run's folder, or go on with the run that is there if it is the same one."""
    existing = create_or_read_document(store, RUN, asked)
    different = existing.differences(asked)
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
