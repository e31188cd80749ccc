"""Exactly-once samples: plan, data, marker, manifest, in that order and each by one atomic put.

    PLAN  plan.json                    create-once; an equal plan is joined, a different one refused
          (before it requests/*.parquet, the checked copy of a request table that the plan names)
    DATA  data/shard-N-<attempt>.parquet   (or .tar) one put under a name that nobody else uses
    MARK  commits/shard-N.json         create-once; whoever creates it owns shard N for ever
    SEAL  manifest.json                create-once, all markers in it; then _SUCCESS for outside readers
    GC    data files that no marker names, after the seal

A shard goes ABSENT -> DATA only -> COMMITTED -> SEALED and never back. Readers take the manifest, never a listing.

A sealed job may be extended: plan-000001.json names the plan before it and a larger number of samples, whose new ids
begin a new shard, and manifest-000001.json seals old and new. Nothing that was there is written again, so a reader has
the old set until the new manifest is there. The newest plan or manifest is the one of the highest number.
"""

import hashlib
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa

from pipeline.errors import ConfigError, DataError, NotFound
from pipeline.generation.manifest import Marker, SampleManifest, SamplePlan
from pipeline.generation.sample_plan import Assignments
from pipeline.schema import STATUS_OK
from pipeline.storage.create_once import COMMIT_ATTEMPTS, create_or_read_document, try_create
from pipeline.storage.documents import find_document, read_document, to_json
from pipeline.storage.files import parquet_bytes, viewer_rows
from pipeline.storage.sample_shards import TAR, tar_bytes
from pipeline.storage.store import Store

__all__ = [
    "CARD",
    "PLAN",
    "collect_garbage",
    "commit_shard",
    "committed_shards",
    "create_plan",
    "is_sealed",
    "join_plan",
    "marker_key",
    "newest",
    "read_manifest",
    "read_marker",
    "read_plan",
    "read_sealed",
    "seal",
    "sealed_documents",
]

PLAN = "plan.json"
MANIFEST = "manifest.json"
SUCCESS = "_SUCCESS"
CARD = "README.md"
_MARKER = re.compile(r"^commits/shard-(\d{9,})\.json$")
_DATA = re.compile(r"^data/shard-(\d{9,})-")
MARKER_READERS = 16


def marker_key(shard: int) -> str:
    """Where shard N's marker is, relative to the job."""
    return f"commits/shard-{shard:09d}.json"


def _numbered(name: str, generation: int) -> str:
    """plan.json, plan-000001.json, ..."""
    stem, _, ending = name.partition(".")
    return f"{stem}-{generation:06d}.{ending}" if generation else name


def newest(job: Store, name: str) -> int:
    """The highest generation of a document that is there, -1 for none; they are made one after the other."""
    generation = -1
    while job.exists(_numbered(name, generation + 1)):
        generation += 1
    return generation


def sealed_documents(plan: SamplePlan) -> tuple[list[str], list[str]]:
    """Keys of the plans that a sealed job has, and of its manifests."""
    generations = range(plan.generation + 1)
    return [_numbered(PLAN, i) for i in generations], [_numbered(MANIFEST, i) for i in generations]


def create_plan(job: Store, plan: SamplePlan, requests: bytes = b"") -> SamplePlan:
    """Fix what the job makes, join the job that is there, or extend it; `plan` is that of a job without extensions.

    requests: the file that plan.requests names, to be kept beside the plan. Raises ConfigError when the job that is
    there makes something else, or can not be extended.
    """
    if plan.requests is not None and requests and not job.exists(PLAN):
        try_create(job, plan.requests.file.key, requests, COMMIT_ATTEMPTS)  # the key names the content
    wanted = plan
    while True:
        if try_create(job, _numbered(PLAN, wanted.generation), to_json(wanted), COMMIT_ATTEMPTS):
            return wanted
        wanted = join_plan(job, plan)
        if job.exists(_numbered(PLAN, wanted.generation)):
            return wanted


def join_plan(job: Store, plan: SamplePlan) -> SamplePlan:
    """The plan that is there and makes the same, or that of the extension which would.

    Raises ConfigError when the job makes something else, DataError when there is none.
    """
    plans = [read_plan(job, generation) for generation in range(max(1, newest(job, PLAN) + 1))]
    for there in plans:
        if there.alone().fingerprint == plan.fingerprint:
            return there
    last = plans[-1]
    ours, theirs = plan.model_dump(exclude={"earlier"}), last.model_dump(exclude={"earlier"})
    # By their text: True and 1.0 are equal in Python, and different plans.
    different = [name for name in ours if repr(ours[name]) != repr(theirs[name]) and name != "model_uri"]
    more = different == ["num_samples"] and plan.num_samples > last.num_samples
    if more and job.exists(_numbered(MANIFEST, last.generation)):
        return last.extended(plan.num_samples)
    details = ", ".join(f"{name} {_told(theirs[name])} there, {_told(ours[name])} asked" for name in different)
    if more:
        raise ConfigError(f"{job.uri} cannot be extended before it is sealed ({details}): finish it first")
    planned = f"; it was planned from --model {last.model_uri}" if "model_digest" in different else ""
    raise ConfigError(f"{job.uri} holds another job ({details}){planned}: choose another --out or ask for the same")


def _told(value: Any) -> str:
    """A plan's value for a message: of a request table the hash of its source."""
    return (
        f"sha256 {value['source_sha256'][:16]}" if isinstance(value, dict) and "source_sha256" in value else repr(value)
    )


def read_plan(job: Store, generation: int | None = None) -> SamplePlan:
    """The newest plan, or that of a generation. Raises DataError when there is no job."""
    key = _numbered(PLAN, max(0, newest(job, PLAN)) if generation is None else generation)
    try:
        return read_document(job, key, SamplePlan)
    except NotFound as error:
        raise DataError(f"no samples at {job.uri}: {PLAN} is missing (ddpm generate makes them)") from error


def read_marker(job: Store, shard: int) -> Marker | None:
    """The marker of a committed shard, or None."""
    return find_document(job, marker_key(shard), Marker)


def committed_shards(job: Store) -> Iterator[int]:
    """Shards that have a marker, ascending."""
    for entry in job.list("commits/"):
        if match := _MARKER.match(entry.key):
            yield int(match.group(1))


def commit_shard(
    job: Store, plan: SamplePlan, shard: int, table: pa.Table, attempt: str, expected: range | None = None
) -> Marker:
    """DATA then MARK; returns the marker that owns the shard: ours, or that of a faster attempt.

    expected: the shard's ids, which only a job with a request table must be told. Raises Transient when the store does
    not say whether the marker was made; our data file then stays for the garbage collection, since a delayed request
    may still name it.
    """
    ids = table.column("sample_id").to_pylist()
    expected = expected or Assignments(plan).layout.ids(shard)
    if ids != list(expected):
        raise DataError(f"shard {shard} must hold samples {expected.start}..{expected.stop - 1} in order, once each")
    tar = plan.format == "webdataset"
    data = tar_bytes(table) if tar else parquet_bytes(table, viewer_rows(table))
    marker = Marker(
        key=f"data/shard-{shard:09d}-{attempt}{TAR if tar else '.parquet'}",
        bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        shard=shard,
        rows=len(ids),
        first_id=expected.start,
        last_id=expected.stop - 1,
        failed=sum(status != STATUS_OK for status in table.column("status").to_pylist()),
        plan=plan.fingerprint,
        attempt=attempt,
    )
    job.put(marker.key, data)
    owner = create_or_read_document(job, marker_key(shard), marker, COMMIT_ATTEMPTS)
    if owner.attempt != attempt:
        job.delete(marker.key)
    return owner


def seal(job: Store, plan: SamplePlan) -> SampleManifest:
    """Make the job's samples one finished set. Raises DataError while a shard is missing or belongs to another plan."""
    earlier = read_manifest(job, plan.generation - 1).shards if plan.generation else ()
    markers = list(earlier)
    shards = range(plan.first_new_shard, plan.num_shards)
    for shard, marker in zip(shards, _read_markers(job, shards), strict=True):
        if marker is None:
            raise DataError(f"{job.uri} cannot be sealed: shard {shard} has no marker; run the same command again")
        if marker.plan != plan.fingerprint:
            raise DataError(f"{job.location(marker_key(shard))} belongs to another plan: {marker.plan}")
        markers.append(marker)
    manifest = SampleManifest(
        plan=plan.fingerprint,
        rows=sum(m.rows for m in markers),
        failed=sum(m.failed for m in markers),
        shards=tuple(markers),
    )
    key = _numbered(MANIFEST, plan.generation)
    if create_or_read_document(job, key, manifest, COMMIT_ATTEMPTS) != manifest:
        raise DataError(f"{job.location(key)} is sealed with other shards than its markers name")
    job.put(SUCCESS, b"")
    return manifest


def _read_markers(job: Store, shards: range) -> Iterator[Marker | None]:
    """Many at a time: on an object store one alone takes milliseconds."""
    with ThreadPoolExecutor(MARKER_READERS) as pool:
        yield from pool.map(lambda shard: read_marker(job, shard), shards)


def read_manifest(job: Store, generation: int | None = None) -> SampleManifest:
    """The newest manifest, or that of a generation. Raises DataError before the seal."""
    key = _numbered(MANIFEST, max(0, newest(job, MANIFEST)) if generation is None else generation)
    try:
        return read_document(job, key, SampleManifest)
    except NotFound as error:
        raise DataError(f"{job.uri} is not sealed: {MANIFEST} is missing (run the same ddpm generate again)") from error


def read_sealed(job: Store) -> tuple[SamplePlan, SampleManifest]:
    """The newest finished set of samples and its plan. Raises DataError before the seal, or when they do not fit."""
    generation = max(0, newest(job, MANIFEST))
    plan, manifest = read_plan(job, generation), read_manifest(job, generation)
    if manifest.plan != plan.fingerprint:
        raise DataError(f"{job.uri} is sealed under another plan than it has: generate it again")
    return plan, manifest


def is_sealed(job: Store, plan: SamplePlan | None = None) -> bool:
    """True when the seal of the plan (the newest one by default) is complete: manifest and success file."""
    generation = max(0, newest(job, PLAN)) if plan is None else plan.generation
    return job.exists(SUCCESS) and job.exists(_numbered(MANIFEST, generation))


def collect_garbage(job: Store, manifest: SampleManifest) -> int:
    """Delete data files of sealed shards that no marker names; returns how many."""
    named = {marker.shard: marker.key for marker in manifest.shards}
    removed = 0
    for entry in job.list("data/"):
        match = _DATA.match(entry.key)
        if match and named.get(int(match.group(1)), entry.key) != entry.key:
            job.delete(entry.key)
            removed += 1
    return removed
