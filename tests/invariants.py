"""What must hold of a samples folder at every moment, found from the store alone.

I1 a marker never changes or goes             I4 readers take the manifest, which names what the markers name
I2 a marker names a complete file of its hash I5 the ids of a shard are its range; of a sealed job 0..N-1, each once
I3 at most one marker a shard                 I6 every marker carries the plan's fingerprint
"""

import hashlib
import re

from pipeline.planning import sample_shards, shard_range
from pipeline.storage.samples import PLAN, read_manifest, read_marker, read_plan
from pipeline.storage.shards import read_parquet
from pipeline.storage.store import Store

__all__ = ["check_invariants", "marker_bytes"]

_MARKER = re.compile(r"^commits/shard-(\d{9})\.json$")


def marker_bytes(job: Store) -> dict[str, bytes]:
    """Every object under commits/ as it is now: what `check_invariants` is told as `earlier` some time later."""
    return {entry.key: job.read(entry.key) for entry in job.list("commits/")}


def check_invariants(job: Store, earlier: dict[str, bytes] | None = None) -> dict[int, str]:
    """{sample id: sha256 of its image} of what is committed; AssertionError names the invariant that does not hold.

    A sealed job is read through its manifest, as any reader does. `earlier`: markers of a moment before this one.
    """
    markers = marker_bytes(job)
    assert (earlier or {}).items() <= markers.items(), "I1: a marker changed or is gone"
    if not job.exists(PLAN):
        assert not markers, "I6: markers without a plan"
        assert not job.exists("manifest.json"), "I6: a manifest without a plan"
        return {}
    plan = read_plan(job)
    shards = sample_shards(plan.num_samples, plan.shard_size)
    committed = {}
    for key in markers:
        match = _MARKER.match(key)
        assert match, f"I3: {key} is no marker"
        marker = committed[int(match[1])] = read_marker(job, int(match[1]))
        assert marker.shard == int(match[1]) < shards, f"I3: {key} is the marker of shard {marker.shard}"
        assert marker.plan == plan.fingerprint, f"I6: {key} belongs to another plan"
    if job.exists("manifest.json"):
        manifest = read_manifest(job)
        assert list(manifest.shards) == [committed[shard] for shard in sorted(committed)], "I4: not what markers name"
        assert sorted(committed) == list(range(shards)), "I5: sealed with gaps"
        assert manifest.rows == plan.num_samples, "I5: another number of rows than planned"
        assert manifest.plan == plan.fingerprint, "I6: the manifest belongs to another plan"
        named = manifest.shards
    else:
        assert not job.exists("_SUCCESS"), "I4: a success file without a manifest"
        named = tuple(committed.values())
    hashes: dict[int, str] = {}
    for marker in named:
        hashes |= _rows(job, marker, shard_range(marker.shard, plan.num_samples, plan.shard_size))
    return hashes


def _rows(job: Store, marker, ids: range) -> dict[int, str]:
    """The rows of one shard, whose file and images are what marker and rows say. Raises VerificationFailed (I2)."""
    table = read_parquet(job, marker, ["sample_id", "image", "sha256", "status"])
    rows = table.to_pylist()
    assert [row["sample_id"] for row in rows] == list(ids), f"I5: shard {marker.shard} holds other ids"
    for row in rows:
        if row["status"] == "ok":
            assert hashlib.sha256(row["image"]["bytes"]).hexdigest() == row["sha256"], f"I2: image {row['sample_id']}"
    return {row["sample_id"]: row["sha256"] for row in rows}
