"""What must hold of a samples folder at every moment, found from the store alone.

I1 a marker never changes or goes             I4 readers take the manifest, which names what the markers name
I2 a marker names a complete file of its hash I5 the ids of a shard are its range; of a sealed job 0..N-1, each once
I3 at most one marker a shard                 I6 every marker carries the fingerprint of the plan that its shard is of

A job that was extended has several plans, and a manifest for each that was finished: all of this holds of each.
"""

import hashlib
import re

from pipeline.generation.commit import newest_number, read_manifest, read_marker, read_plan
from pipeline.generation.manifest import SampleManifest, SamplePlan
from pipeline.generation.request_table import load_requests
from pipeline.generation.sample_plan import PlannedSamples
from pipeline.storage.sample_shards import read_samples
from pipeline.storage.store import Store

_MARKER = re.compile(r"^commits/shard-(\d{9})\.json$")


def created_once(job: Store) -> dict[str, bytes]:
    """Every marker, plan and manifest as it is now: what `check_invariants` is told as `earlier` some time later."""
    return {e.key: job.read(e.key) for start in ("commits/", "plan", "manifest") for e in job.list(start)}


def check_invariants(job: Store, earlier: dict[str, bytes] | None = None) -> dict[int, str]:
    """{sample id: sha256 of its image} of what is committed; AssertionError names the invariant that does not hold.

    `earlier`: `created_once` of a moment before this one.
    """
    documents = created_once(job)
    assert (earlier or {}).items() <= documents.items(), "I1: something final changed or is gone"
    plans = [read_plan(job, generation) for generation in range(newest_number(job, "plan.json") + 1)]
    manifests = [read_manifest(job, generation) for generation in range(newest_number(job, "manifest.json") + 1)]
    assert len(manifests) in (len(plans), len(plans) - 1) or not plans, "I4: a manifest without a plan, or a gap"
    planner = {shard: plan for plan in plans for shard in range(plan.first_new_shard, plan.num_shards)}
    committed = {}
    for key in documents:
        if not key.startswith("commits/"):
            continue
        match = _MARKER.match(key)
        assert match, f"I3: {key} is no marker"
        shard = int(match[1])
        assert shard in planner, f"I3: {key} is a marker of no plan"
        marker = committed[shard] = read_marker(job, shard)
        assert marker.shard == shard, f"I3: {key} is the marker of shard {marker.shard}"
        assert marker.plan == planner[shard].fingerprint, f"I6: {key} belongs to another plan"
    for plan, manifest in zip(plans, manifests, strict=False):
        _check_sealed(plan, manifest, committed)
    assert manifests or not job.exists("_SUCCESS"), "I4: a success file without a manifest"
    hashes: dict[int, str] = {}
    for shard in sorted(committed):
        hashes |= _rows(job, committed[shard], planner[shard])
    return hashes


def _check_sealed(plan: SamplePlan, manifest: SampleManifest, committed: dict) -> None:
    shards = range(plan.num_shards)
    assert list(manifest.shards) == [committed.get(shard) for shard in shards], "I4: not what the markers name"
    assert manifest.rows == plan.num_samples, "I5: another number of rows than planned"
    assert manifest.plan == plan.fingerprint, "I6: the manifest belongs to another plan"


def _rows(job: Store, marker, plan: SamplePlan) -> dict[int, str]:
    """The rows of one shard, whose file and images are what marker and rows say. Raises VerificationFailed (I2)."""
    ids = PlannedSamples(plan, load_requests(job, plan)).layout.ids(marker.shard)
    rows = read_samples(job, marker, ["sample_id", "image", "sha256", "status"]).to_pylist()
    assert [row["sample_id"] for row in rows] == list(ids), f"I5: shard {marker.shard} holds other ids"
    for row in rows:
        if row["status"] == "ok":
            assert hashlib.sha256(row["image"]["bytes"]).hexdigest() == row["sha256"], f"I2: image {row['sample_id']}"
    return {row["sample_id"]: row["sha256"] for row in rows}
