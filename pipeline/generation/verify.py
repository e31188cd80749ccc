"""`ddpm verify` for a samples folder. Checks, against plan, markers and manifest:

no gap, no duplicate    every shard of the plan once, with the planned ids in order
nothing altered         sha256 of every file and image; images decode to the planned size
one origin              markers hold the fingerprint of their plan; rows hold its seed, model and sampler
commit order            no success file without a manifest
extensions              each plan names all earlier plans; each manifest starts with the previous one
"""

import hashlib
from typing import Any

import pyarrow as pa

from pipeline.generation.commit import (
    MANIFEST,
    SUCCESS,
    committed_shards,
    newest_number,
    read_manifest,
    read_marker,
    read_plan,
)
from pipeline.generation.manifest import Marker, SampleManifest, SamplePlan
from pipeline.generation.request_table import load_requests
from pipeline.generation.sample_plan import PlannedSamples, SampleSpecs
from pipeline.schema import REQUESTED_SAMPLES, SAMPLES, STATUS_FAILED, STATUS_OK
from pipeline.storage.findings import Decode, Findings
from pipeline.storage.store import Store


def verify_samples(folder: Store, decode: Decode, found: Findings) -> None:
    """Add findings, and counts: samples, failed, shards, unnamed (data files without a marker)."""
    last = found.attempt(lambda: read_plan(folder))
    sealed, success = newest_number(folder, MANIFEST), folder.exists(SUCCESS)
    found.expect(sealed >= 0 or not success, f"{folder.location(SUCCESS)} exists without {MANIFEST}")
    if last is None:
        return
    if sealed < last.num_extensions:
        done, shards = sum(1 for _ in committed_shards(folder)), last.num_shards
        found.add(f"{folder.uri} is not sealed: {done} of {shards} shards have a marker (ddpm generate finishes it)")
    if sealed < 0:
        return
    found.expect(
        success, f"{folder.location(SUCCESS)} is missing: the seal was interrupted (ddpm generate finishes it)"
    )
    with found.record_errors():
        plan, manifest = read_plan(folder, sealed), read_manifest(folder, sealed)
        _check_chain(folder, plan, manifest, found)
        _check_manifest(folder, plan, manifest, found)
        _check_markers(folder, manifest, last.num_shards, found)
        planned = PlannedSamples(plan, load_requests(folder, plan))
        for marker in manifest.shards:
            _check_shard(folder, planned, marker, decode, found)
        named = {marker.key for marker in manifest.shards}
        found.counts["unnamed"] = sum(1 for entry in folder.list("data/") if entry.key not in named)


def _check_chain(folder: Store, plan: SamplePlan, manifest: SampleManifest, found: Findings) -> None:
    """Each earlier plan has the fingerprint that later plans name, and its shards are still in the manifest."""
    for number, part in enumerate(plan.earlier):
        with found.record_errors():
            before, sealed = read_plan(folder, number), read_manifest(folder, number)
            found.expect(
                before.fingerprint == sealed.plan == part.plan and before.num_samples == part.num_samples,
                f"plan or manifest {number} of {folder.uri} is not the one that was extended",
            )
            found.expect(
                manifest.shards[: len(sealed.shards)] == sealed.shards,
                f"{folder.uri} has other shards for its first {sealed.rows} samples than before its extension",
            )


def _check_manifest(folder: Store, plan: SamplePlan, manifest: SampleManifest, found: Findings) -> None:
    where, markers = folder.location(MANIFEST), manifest.shards
    found.expect(manifest.plan == plan.fingerprint, f"{where} is of plan {manifest.plan}, not {plan.fingerprint}")
    numbers, shards = [marker.shard for marker in markers], plan.num_shards
    if numbers != list(range(shards)):
        missing = sorted(set(range(shards)) - set(numbers))
        found.add(
            f"{where} must list shards 0..{shards - 1} once each, in order: lists {len(numbers)}, lacks {missing}"
        )
    found.expect(
        manifest.rows == sum(marker.rows for marker in markers) == plan.num_samples,
        f"{where} counts {manifest.rows} rows, its shards {sum(m.rows for m in markers)}, the plan {plan.num_samples}",
    )
    failed = sum(marker.failed for marker in markers)
    found.expect(manifest.failed == failed, f"{where} counts {manifest.failed} failed samples, its shards {failed}")


def _check_markers(folder: Store, manifest: SampleManifest, planned: int, found: Findings) -> None:
    """Markers equal their manifest entries. Markers of shards that an extension planned may exist before its seal."""
    named = {marker.shard: marker for marker in manifest.shards}
    for shard in committed_shards(folder):
        with found.record_errors():
            where, marker = f"the marker of shard {shard}", read_marker(folder, shard)
            if len(manifest.shards) <= shard < planned:
                continue
            if shard not in named:
                found.add(f"{where} is in no manifest")
            elif marker != named.pop(shard):
                found.add(f"{where} differs from the manifest")
    for shard in named:
        found.add(f"the marker of shard {shard} is missing")


def _check_shard(folder: Store, planned: PlannedSamples, marker: Marker, decode: Decode, found: Findings) -> None:
    where, plan = folder.location(marker.key), planned.plan
    found.counts["shards"] += 1
    found.expect(marker.plan == plan.plan_of_shard(marker.shard), f"shard {marker.shard} is of plan {marker.plan}")
    if not 0 <= marker.shard < plan.num_shards:
        return
    ids = planned.layout.ids(marker.shard)
    found.expect(
        (marker.rows, marker.first_id, marker.last_id) == (len(ids), ids.start, ids.stop - 1),
        f"shard {marker.shard} claims samples {marker.first_id}..{marker.last_id}, {marker.rows} in all; "
        f"by the plan it has {ids.start}..{ids.stop - 1}",
    )
    table = found.table(folder, marker, SAMPLES if plan.requests is None else REQUESTED_SAMPLES)
    if table is None:
        return
    found.expect(
        table["sample_id"].to_pylist() == list(ids),
        f"{where} does not hold samples {ids.start}..{ids.stop - 1} in order, once each",
    )
    if table.num_rows == len(ids):
        _check_origin(where, plan, planned.specs(ids), table, found)
    failed = 0
    for row in table.select(["sample_id", "image", "sha256", "status", "error"]).to_pylist():
        failed += row["status"] != STATUS_OK
        _check_row(f"sample {row['sample_id']} in {where}", plan, row, decode, found)
    found.expect(failed == marker.failed, f"{where} has {failed} failed samples, its marker says {marker.failed}")
    found.counts["samples"] += table.num_rows
    found.counts["failed"] += failed


def _check_origin(where: str, plan: SamplePlan, work: SampleSpecs, table: pa.Table, found: Findings) -> None:
    """Every row holds the settings that the plan gives its sample."""
    for name, values in work.columns(plan).items():
        if table[name].to_pylist() != values:
            stored = table[name].unique().to_pylist()[:3]
            said = f"holds {stored}, the plan says {values[0]}" if len(set(values)) == 1 else "differs from the plan"
            found.add(f"{where}: column {name} {said}")


def _check_row(where: str, plan: SamplePlan, row: dict[str, Any], decode: Decode, found: Findings) -> None:
    data = None if row["image"] is None else row["image"]["bytes"]
    if row["status"] == STATUS_FAILED:
        found.expect(data is None and bool(row["error"]), f"{where} failed, but has an image or no error")
    elif row["status"] != STATUS_OK or data is None:
        found.add(f"{where} has status {row['status']!r} and {'no image' if data is None else 'an image'}")
    elif hashlib.sha256(data).hexdigest() != row["sha256"]:
        found.add(f"{where} has an image whose sha256 differs from its row")
    else:
        found.pixels(where, data, plan.shape, decode)
