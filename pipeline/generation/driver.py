"""`ddpm generate`: Ray Data actors make the shards without a marker, each exactly once.

    plan.json -> one row per missing shard -> actors: generate | encode and commit in parallel -> one small row -> seal

The driver holds no image. A lost worker costs only its uncommitted shards. After any failure, rerunning the same
command continues from the markers.
"""

import time
from typing import Any

from pipeline.cluster import cluster
from pipeline.config.base import digest_of
from pipeline.config.root import Config
from pipeline.errors import DataError
from pipeline.generation.commit import (
    CARD,
    PLAN,
    collect_garbage,
    committed_shards,
    create_plan,
    is_sealed,
    join_plan,
    read_manifest,
    read_plan,
    seal,
)
from pipeline.generation.dataset_card import sample_card
from pipeline.generation.distributed.dispatcher import ShardDispatcher
from pipeline.generation.make_plan import plan_folder
from pipeline.generation.manifest import SampleManifest, SamplePlan
from pipeline.generation.requests import Requests
from pipeline.generation.sample_plan import PlannedSamples, missing_shards
from pipeline.model_store.load_model import find_model
from pipeline.model_store.registry import is_registered
from pipeline.schema import STATUS_OK
from pipeline.storage.sample_shards import read_samples
from pipeline.storage.store import Store, resolve

MAX_LISTED = 20
MUCH_PADDING = 0.2


def generate(
    config: Config, model: str, out: str, dry_run: bool = False, requests: str | None = None
) -> dict[str, Any]:
    """Make the missing samples, then seal the folder. requests: URI of a request table, replaces generate.num_samples.

    Raises ConfigError when `out` holds other samples, DataError for a missing model, for invalid requests, and
    for failed samples (the folder is sealed before).
    """
    began = time.monotonic()
    folder = resolve(out, config.storage)
    settings = config.generate
    found = find_model(_pinned(model, folder), settings.weights, config.storage, settings.null_label)
    wanted = plan_folder(settings, folder, found, requests)
    if dry_run:
        return _described(folder, wanted.plan, wanted.requests)
    plan = create_plan(folder, wanted.plan, wanted.request_file)
    if is_sealed(folder, plan):
        return _finished(folder, plan, read_manifest(folder, plan.num_extensions), {"state": "already done"})
    with cluster(config.ray, config.ray.max_workers + 1):
        figures = ShardDispatcher(config, folder, plan, found.uri).finish()
    figures["seconds"] = round(time.monotonic() - began, 1)
    return _finished(folder, plan, seal(folder, plan), {"state": "generated", **figures})


def _pinned(model: str, folder: Store) -> str:
    """The URI to load: an existing plan keeps the version that a registry alias meant when it was planned."""
    if not (is_registered(model) and folder.exists(PLAN)):
        return model
    planned = read_plan(folder).model_uri
    registry = resolve(model.rpartition("@")[0], folder.config).uri
    return planned if planned.startswith(f"{registry}/v") else model


def _described(folder: Store, plan: SamplePlan, requests: Requests | None) -> dict[str, Any]:
    layout = PlannedSamples(plan, requests).layout
    if folder.exists(PLAN):
        plan = join_plan(folder, plan)
    shards = plan.num_shards
    missing = len(missing_shards(shards, committed_shards(folder)))
    how = f"{plan.sampler}, {plan.steps} steps" if plan.requests is None else f"{plan.requests.rows:,} requests"
    padding = 1.0 - plan.num_samples / (layout.batches(plan.batch_size) * plan.batch_size)
    result: dict[str, Any] = {
        "summary": f"would generate {plan.num_samples:,} samples in {shards:,} shards ({missing:,} missing) from "
        f"{plan.model_uri} with {how} -> {folder.uri}",
        "padding": round(padding, 4),
    }
    if padding > MUCH_PADDING:
        result["summary"] += (
            f"\nwarning: {padding:.0%} of the network's work is batch padding: lower generate.batch_size, or sort the "
            "requests by sampler, steps and guidance"
        )
    return result


def _finished(folder: Store, plan: SamplePlan, manifest: SampleManifest, figures: dict[str, Any]) -> dict[str, Any]:
    """The steps after the seal. Every invocation runs them, since an earlier one may have stopped before them."""
    # After an extension the card still describes the previous manifest.
    if not (folder.exists(CARD) and manifest.plan.encode() in folder.read(CARD)):
        folder.put(CARD, sample_card(plan, manifest).encode())
    collect_garbage(folder, manifest)
    if manifest.failed:
        raise DataError(_failures(folder, manifest))
    shards = len(manifest.shards)
    speed = f", {figures['images_per_second']:,.1f} img/s" if "images_per_second" in figures else ""
    return {
        **figures,
        "uri": folder.uri,
        "samples": manifest.rows,
        "failed": manifest.failed,
        "shards": shards,
        "plan": manifest.plan,
        "digest": digest_of([marker.sha256 for marker in manifest.shards]),
        "model_digest": plan.model_digest,
        "summary": f"{figures['state']}: {manifest.rows:,} samples in {shards:,} shards{speed} -> {folder.uri}",
    }


def _failures(folder: Store, manifest: SampleManifest) -> str:
    lines = [f"{manifest.failed} of {manifest.rows} samples of {folder.uri} failed; the others are sealed:"]
    for marker in (m for m in manifest.shards if m.failed):
        for row in read_samples(folder, marker, ["sample_id", "status", "error"]).to_pylist():
            if row["status"] != STATUS_OK:
                lines.append(f"sample {row['sample_id']}: {row['error']}")
            if len(lines) > MAX_LISTED:
                return "\n".join([*lines, "..."])
    return "\n".join(lines)
