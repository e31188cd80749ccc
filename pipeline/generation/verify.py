"""A samples folder: one plan, a marker a shard, a manifest of exactly those markers, and the rows that they promise.

no gap, no duplicate    every shard of the plan once, its ids the plan's range in order
nothing altered         sha256 of every file and of every image, which decodes to the plan's size
one origin              markers carry the fingerprint of their shard's plan, rows its seed, model and sampler
order                   the success file only beside a manifest
extensions              each plan names those before it, each manifest begins with the one before it
"""

import hashlib
from typing import Any

import pyarrow as pa

from pipeline.generation.commit import (
    MANIFEST,
    SUCCESS,
    committed_shards,
    newest,
    read_manifest,
    read_marker,
    read_plan,
)
from pipeline.generation.manifest import Marker, SampleManifest, SamplePlan
from pipeline.generation.request_table import load_requests
from pipeline.generation.sample_plan import Assignment, Assignments
from pipeline.schema import REQUESTED_SAMPLES, SAMPLES, STATUS_FAILED, STATUS_OK
from pipeline.storage.findings import Decode, Findings
from pipeline.storage.store import Store

__all__ = ["verify_samples"]


def verify_samples(job: Store, decode: Decode, found: Findings) -> None:
    """Counts samples, failed, shards and unnamed (data files of no marker, which readers never see)."""
    last = found.attempt(lambda: read_plan(job))
    sealed, success = newest(job, MANIFEST), job.exists(SUCCESS)
    found.expect(sealed >= 0 or not success, f"{job.location(SUCCESS)} is there without {MANIFEST}")
    if last is None:
        return
    if sealed < last.generation:
        done, shards = sum(1 for _ in committed_shards(job)), last.num_shards
        found.add(f"{job.uri} is not sealed: {done} of {shards} shards have a marker (ddpm generate finishes it)")
    if sealed < 0:
        return
    found.expect(success, f"{job.location(SUCCESS)} is missing: the seal was interrupted (ddpm generate finishes it)")
    with found.record_errors():
        plan, manifest = read_plan(job, sealed), read_manifest(job, sealed)
        _check_chain(job, plan, manifest, found)
        _check_manifest(job, plan, manifest, found)
        _check_markers(job, manifest, last.num_shards, found)
        assignments = Assignments(plan, load_requests(job, plan))
        for marker in manifest.shards:
            _check_shard(job, assignments, marker, decode, found)
        named = {marker.key for marker in manifest.shards}
        found.counts["unnamed"] = sum(1 for entry in job.list("data/") if entry.key not in named)


def _check_chain(job: Store, plan: SamplePlan, manifest: SampleManifest, found: Findings) -> None:
    """Every earlier plan is the one that the later ones name, and what it sealed is sealed still."""
    for generation, part in enumerate(plan.earlier):
        with found.record_errors():
            before, sealed = read_plan(job, generation), read_manifest(job, generation)
            found.expect(
                before.fingerprint == sealed.plan == part.plan and before.num_samples == part.num_samples,
                f"plan or manifest {generation} of {job.uri} is not the one that was extended",
            )
            found.expect(
                manifest.shards[: len(sealed.shards)] == sealed.shards,
                f"{job.uri} names other shards for its first {sealed.rows} samples than before it was extended",
            )


def _check_manifest(job: Store, plan: SamplePlan, manifest: SampleManifest, found: Findings) -> None:
    where, markers = job.location(MANIFEST), manifest.shards
    found.expect(manifest.plan == plan.fingerprint, f"{where} is of plan {manifest.plan}, not {plan.fingerprint}")
    numbers, shards = [marker.shard for marker in markers], plan.num_shards
    if numbers != list(range(shards)):
        missing = sorted(set(range(shards)) - set(numbers))
        found.add(f"{where} must name shards 0..{shards - 1} once each, in order: {len(numbers)} named, gaps {missing}")
    found.expect(
        manifest.rows == sum(marker.rows for marker in markers) == plan.num_samples,
        f"{where} counts {manifest.rows} rows, its shards {sum(m.rows for m in markers)}, the plan {plan.num_samples}",
    )
    failed = sum(marker.failed for marker in markers)
    found.expect(manifest.failed == failed, f"{where} counts {manifest.failed} failed samples, its shards {failed}")


def _check_markers(job: Store, manifest: SampleManifest, planned: int, found: Findings) -> None:
    """The manifest names what the markers name; others are of shards that an extension has planned."""
    named = {marker.shard: marker for marker in manifest.shards}
    for shard in committed_shards(job):
        with found.record_errors():
            where, marker = f"the marker of shard {shard}", read_marker(job, shard)
            if len(manifest.shards) <= shard < planned:
                continue
            if shard not in named:
                found.add(f"{where} is in no manifest")
            elif marker != named.pop(shard):
                found.add(f"{where} differs from the manifest")
    for shard in named:
        found.add(f"the marker of shard {shard} is missing")


def _check_shard(job: Store, assignments: Assignments, marker: Marker, decode: Decode, found: Findings) -> None:
    where, plan = job.location(marker.key), assignments.plan
    found.counts["shards"] += 1
    found.expect(marker.plan == plan.planner(marker.shard), f"shard {marker.shard} is of plan {marker.plan}")
    if not 0 <= marker.shard < plan.num_shards:
        return
    ids = assignments.layout.ids(marker.shard)
    found.expect(
        (marker.rows, marker.first_id, marker.last_id) == (len(ids), ids.start, ids.stop - 1),
        f"shard {marker.shard} claims samples {marker.first_id}..{marker.last_id}, {marker.rows} in all; "
        f"by the plan it has {ids.start}..{ids.stop - 1}",
    )
    table = found.table(job, marker, SAMPLES if plan.requests is None else REQUESTED_SAMPLES)
    if table is None:
        return
    found.expect(
        table["sample_id"].to_pylist() == list(ids),
        f"{where} does not hold samples {ids.start}..{ids.stop - 1} in order, once each",
    )
    if table.num_rows == len(ids):
        _check_origin(where, plan, assignments.of(ids), table, found)
    failed = 0
    for row in table.select(["sample_id", "image", "sha256", "status", "error"]).to_pylist():
        failed += row["status"] != STATUS_OK
        _check_row(f"sample {row['sample_id']} in {where}", plan, row, decode, found)
    found.expect(failed == marker.failed, f"{where} has {failed} failed samples, its marker says {marker.failed}")
    found.counts["samples"] += table.num_rows
    found.counts["failed"] += failed


def _check_origin(where: str, plan: SamplePlan, work: Assignment, table: pa.Table, found: Findings) -> None:
    """Every row says what the plan says of its sample."""
    count = len(work.ids)
    planned: dict[str, list[Any]] = {
        "label": [None] * count if work.labels is None else work.labels.tolist(),
        "seed": work.seeds.tolist(),
        "model_digest": [plan.model_digest] * count,
        "ema": [plan.weights] * count,
        "sampler": [work.sampler] * count,
        "steps": [work.steps] * count,
        "eta": [plan.eta if work.sampler == "ddim" else 0.0] * count,
        "guidance": [work.guidance] * count,
        "width": [plan.image_size] * count,
        "height": [plan.image_size] * count,
    }
    if work.request_ids is not None:
        planned |= {"request_id": list(work.request_ids), "extra": list(work.extras or ())}
    for name, values in planned.items():
        if table[name].to_pylist() != values:
            stored = table[name].unique().to_pylist()[:3]
            said = (
                f"holds {stored}, the plan says {values[0]}" if len(set(values)) == 1 else "is not what the plan says"
            )
            found.add(f"{where}: column {name} {said}")


def _check_row(where: str, plan: SamplePlan, row: dict[str, Any], decode: Decode, found: Findings) -> None:
    data = None if row["image"] is None else row["image"]["bytes"]
    if row["status"] == STATUS_FAILED:
        found.expect(data is None and bool(row["error"]), f"{where} failed, but has an image or no error")
    elif row["status"] != STATUS_OK or data is None:
        found.add(f"{where} has status {row['status']!r} and {'no image' if data is None else 'an image'}")
    elif hashlib.sha256(data).hexdigest() != row["sha256"]:
        found.add(f"{where} has an image with another sha256 than its row names")
    else:
        found.pixels(where, data, plan.shape, decode)
