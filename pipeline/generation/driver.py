"""Model -> samples: Ray Data actors make the shards that have no marker yet, each exactly once.

    plan.json -> one row a missing shard -> actors: generate | encode and commit beside it -> a small row each -> seal

The driver holds no image. A worker that is lost costs the shards it had not committed; whatever else goes wrong, the
same command goes on from the markers.
"""

import time
from typing import Any

from pipeline.cluster import cluster
from pipeline.config.base import digest_of
from pipeline.config.root import Config
from pipeline.errors import DataError, NotFound
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
from pipeline.generation.make_plan import want_job
from pipeline.generation.manifest import SampleManifest, SamplePlan
from pipeline.generation.requests import Requests
from pipeline.generation.sample_plan import Assignments, missing_shards
from pipeline.model_store.load_model import find_model
from pipeline.model_store.registry import is_registered
from pipeline.schema import STATUS_OK
from pipeline.storage.sample_shards import read_samples
from pipeline.storage.store import Store, resolve

__all__ = ["generate"]

MAX_LISTED = 20
MUCH_PADDING = 0.2


def generate(
    config: Config, model: str, out: str, dry_run: bool = False, requests: str | None = None
) -> dict[str, Any]:
    """Make the samples that are missing, then seal the job. requests: URI of a request table, for generate.num_samples.

    Raises ConfigError when `out` holds another job, DataError when there is no model, for requests that cannot
    be met, or when some samples could not be made (the rest is sealed).
    """
    began = time.monotonic()
    job = resolve(out, config.storage)
    found = find_model(_pinned(model, job), config.generate.weights, config.storage)
    wanted = want_job(config.generate, job, found, requests)
    if dry_run:
        return _described(job, wanted.plan, wanted.requests)
    plan = create_plan(job, wanted.plan, wanted.request_file)
    if is_sealed(job, plan):
        return _finished(job, plan, read_manifest(job, plan.generation), {"state": "already done"})
    with cluster(config.ray, config.ray.max_workers + 1):
        figures = ShardDispatcher(config, job, plan, found.uri).finish()
    figures["seconds"] = round(time.monotonic() - began, 1)
    return _finished(job, plan, seal(job, plan), {"state": "generated", **figures})


def _pinned(model: str, job: Store) -> str:
    """An alias means what it meant when the job was planned, whoever is champion now."""
    if not (is_registered(model) and job.exists(PLAN)):
        return model
    planned = read_plan(job).model_uri
    registry = resolve(model.rpartition("@")[0], job.config).uri
    return planned if planned.startswith(f"{registry}/v") else model


def _described(job: Store, plan: SamplePlan, requests: Requests | None) -> dict[str, Any]:
    layout = Assignments(plan, requests).layout
    if job.exists(PLAN):
        plan = join_plan(job, plan)
    shards = plan.num_shards
    missing = len(missing_shards(shards, committed_shards(job)))
    how = f"{plan.sampler}, {plan.steps} steps" if plan.requests is None else f"{plan.requests.rows:,} requests"
    padding = 1.0 - plan.num_samples / (layout.batches(plan.batch_size) * plan.batch_size)
    result: dict[str, Any] = {
        "summary": f"would generate {plan.num_samples:,} samples in {shards:,} shards ({missing:,} missing) from "
        f"{plan.model_uri} with {how} -> {job.uri}",
        "padding": round(padding, 4),
    }
    if padding > MUCH_PADDING:
        result["summary"] += (
            f"\nwarning: {padding:.0%} of the network's work is padding of batches: lower generate.batch_size, or sort "
            "the requests by sampler, steps and guidance"
        )
    return result


def _finished(job: Store, plan: SamplePlan, manifest: SampleManifest, figures: dict[str, Any]) -> dict[str, Any]:
    """What is left after the seal, at every invocation: an earlier one may have been stopped right before it."""
    if not _has_card(job, manifest):
        job.put(CARD, sample_card(plan, manifest).encode())
    collect_garbage(job, manifest)
    if manifest.failed:
        raise DataError(_failures(job, manifest))
    shards = len(manifest.shards)
    speed = f", {figures['images_per_second']:,.1f} img/s" if "images_per_second" in figures else ""
    return {
        **figures,
        "uri": job.uri,
        "samples": manifest.rows,
        "failed": manifest.failed,
        "shards": shards,
        "plan": manifest.plan,
        "digest": digest_of([marker.sha256 for marker in manifest.shards]),
        "model_digest": plan.model_digest,
        "summary": f"{figures['state']}: {manifest.rows:,} samples in {shards:,} shards{speed} -> {job.uri}",
    }


def _has_card(job: Store, manifest: SampleManifest) -> bool:
    """Whether the README is there and speaks of this set of samples: that of an extended job speaks of the old one."""
    try:
        return manifest.plan.encode() in job.read(CARD)
    except NotFound:
        return False


def _failures(job: Store, manifest: SampleManifest) -> str:
    lines = [f"{manifest.failed} of {manifest.rows} samples of {job.uri} could not be made; the others are sealed:"]
    for marker in (m for m in manifest.shards if m.failed):
        for row in read_samples(job, marker, ["sample_id", "status", "error"]).to_pylist():
            if row["status"] != STATUS_OK:
                lines.append(f"sample {row['sample_id']}: {row['error']}")
            if len(lines) > MAX_LISTED:
                return "\n".join([*lines, "..."])
    return "\n".join(lines)
