"""Exactly-once samples: plan, data, marker, manifest, in that order and each by one atomic put.

    PLAN  plan.json                    create-once; an equal plan is joined, a different one refused
          (before it requests/*.parquet, the checked copy of a request table that the plan names)
    DATA  data/shard-N-<attempt>.parquet   one put under a name that nobody else uses
    MARK  commits/shard-N.json         create-once; whoever creates it owns shard N for ever
    SEAL  manifest.json                create-once, all markers in it; then _SUCCESS for outside readers
    GC    data files that no marker names, after the seal

A shard goes ABSENT -> DATA only -> COMMITTED -> SEALED and never back. Readers take the manifest, never a listing.
"""

import hashlib
import re
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.assignment import Assignments
from pipeline.errors import AlreadyExists, ConfigError, DataError, NotFound, StorageError, Transient
from pipeline.manifests import Marker, SampleManifest, SamplePlan, parse
from pipeline.schema import STATUS_OK
from pipeline.storage.shards import document, parquet_bytes
from pipeline.storage.store import Store

__all__ = [
    "CARD",
    "PLAN",
    "SHARD_LOG",
    "ShardLog",
    "collect_garbage",
    "commit_shard",
    "committed_shards",
    "create_plan",
    "is_sealed",
    "join_plan",
    "marker_key",
    "read_manifest",
    "read_marker",
    "read_plan",
    "seal",
]

PLAN = "plan.json"
MANIFEST = "manifest.json"
SUCCESS = "_SUCCESS"
CARD = "README.md"
SHARD_LOG_KEY = "metrics/shards.parquet"
SHARD_LOG = pa.schema(
    [
        pa.field("shard", pa.int64(), nullable=False),
        pa.field("rows", pa.int64(), nullable=False),
        pa.field("failed", pa.int64(), nullable=False),
        pa.field("started", pa.float64(), nullable=False),  # Unix seconds
        pa.field("seconds", pa.float64(), nullable=False),  # in the network and the sampler
        pa.field("img_s", pa.float64(), nullable=False),  # of the one actor that made the shard
        pa.field("node", pa.string(), nullable=False),  # host name
    ]
)
LOG_SECONDS = 60.0
ROW_GROUP_ROWS = 1000
_MARKER = re.compile(r"^commits/shard-(\d{9})\.json$")
_DATA = re.compile(r"^data/shard-(\d{9})-")
CREATE_ATTEMPTS = 6
FIRST_PAUSE_SECONDS = 0.1
MARKER_READERS = 16


def marker_key(shard: int) -> str:
    """Where shard N's marker is, relative to the job."""
    return f"commits/shard-{shard:09d}.json"


def create_plan(job: Store, plan: SamplePlan, requests: bytes = b"") -> SamplePlan:
    """Fix what the job makes, or join the job that is there. Raises ConfigError when that one makes something else.

    requests: the file that plan.requests names, to be kept beside the plan.
    """
    if plan.requests is not None and requests:
        with suppress(AlreadyExists):  # its key names its content
            _create(job, plan.requests.file.key, requests)
    try:
        _create(job, PLAN, document(plan))
        return plan
    except AlreadyExists:
        return join_plan(job, plan)


def join_plan(job: Store, plan: SamplePlan) -> SamplePlan:
    """The plan that is there. Raises ConfigError when it makes something else, DataError when there is none."""
    existing = read_plan(job)
    if existing.fingerprint != plan.fingerprint:
        ours, theirs = plan.model_dump(), existing.model_dump()
        # By their text: True and 1.0 are equal in Python, and different plans.
        different = [name for name in ours if repr(ours[name]) != repr(theirs[name]) and name != "model_uri"]
        details = ", ".join(f"{name} {_told(theirs[name])} there, {_told(ours[name])} asked" for name in different)
        planned = f"; it was planned from --model {existing.model_uri}" if "model_digest" in different else ""
        raise ConfigError(f"{job.uri} holds another job ({details}){planned}: choose another --out or ask for the same")
    return existing


def _told(value: Any) -> str:
    """A plan's value for a message: of a request table the hash of its source."""
    return (
        f"sha256 {value['source_sha256'][:16]}" if isinstance(value, dict) and "source_sha256" in value else repr(value)
    )


def read_plan(job: Store) -> SamplePlan:
    """Raises DataError when there is no job."""
    try:
        return parse(SamplePlan, job.read(PLAN), job.location(PLAN))
    except NotFound as error:
        raise DataError(f"no samples at {job.uri}: {PLAN} is missing (ddpm generate makes them)") from error


def read_marker(job: Store, shard: int) -> Marker | None:
    """The marker of a committed shard, or None."""
    try:
        return parse(Marker, job.read(marker_key(shard)), job.location(marker_key(shard)))
    except NotFound:
        return None


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
    data = parquet_bytes(table, ROW_GROUP_ROWS)
    marker = Marker(
        key=f"data/shard-{shard:09d}-{attempt}.parquet",
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
    owner = _mark(job, marker)
    if owner.attempt != attempt:
        job.delete(marker.key)
    return owner


def _mark(job: Store, marker: Marker) -> Marker:
    """Create the marker, or read whose it is: a lost reply may hide that it was ours. Same bytes at each attempt."""
    try:
        _create(job, marker_key(marker.shard), document(marker))
        return marker
    except AlreadyExists:
        owner = read_marker(job, marker.shard)
    if owner is None:
        raise Transient(f"{job.location(marker_key(marker.shard))} exists and cannot be read: try again")
    return owner


def _create(job: Store, key: str, data: bytes) -> None:
    """Create-once, asked again with the same bytes while the store does not say whether it did.

    Raises AlreadyExists, also when an attempt of ours whose reply was lost made the object: the caller reads it.
    """
    for attempt in range(CREATE_ATTEMPTS - 1):
        try:
            return job.create_once(key, data)
        except Transient:
            time.sleep(FIRST_PAUSE_SECONDS * 2**attempt)
    return job.create_once(key, data)


def seal(job: Store, plan: SamplePlan) -> SampleManifest:
    """Make the job's samples one finished set. Raises DataError while a shard is missing or belongs to another plan."""
    markers = []
    shards = range(plan.num_shards)
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
    try:
        _create(job, MANIFEST, document(manifest))
    except AlreadyExists:
        sealed = read_manifest(job)
        if sealed != manifest:
            raise DataError(f"{job.location(MANIFEST)} is sealed with other shards than its markers name") from None
    job.put(SUCCESS, b"")
    return manifest


def _read_markers(job: Store, shards: range) -> Iterator[Marker | None]:
    """Many at a time: on an object store one alone takes milliseconds."""
    with ThreadPoolExecutor(MARKER_READERS) as pool:
        yield from pool.map(lambda shard: read_marker(job, shard), shards)


def read_manifest(job: Store) -> SampleManifest:
    """Raises DataError before the seal."""
    try:
        return parse(SampleManifest, job.read(MANIFEST), job.location(MANIFEST))
    except NotFound as error:
        raise DataError(f"{job.uri} is not sealed: {MANIFEST} is missing (run the same ddpm generate again)") from error


def is_sealed(job: Store) -> bool:
    """True when the seal is complete: manifest and success file."""
    return job.exists(SUCCESS) and job.exists(MANIFEST)


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


class ShardLog:
    """`metrics/shards.parquet`: what each shard cost, over all invocations. A courtesy: a killed driver loses a minute.

    Rows of at most a minute are Python objects, the others are Arrow's.
    """

    def __init__(self, job: Store) -> None:
        self._job = job
        self._rows: list[dict[str, Any]] = []
        try:
            self._table = pq.read_table(pa.BufferReader(job.read(SHARD_LOG_KEY)), schema=SHARD_LOG)
        except (StorageError, pa.ArrowException, OSError):
            self._table = SHARD_LOG.empty_table()
        self._written = time.monotonic()

    def add(self, row: Mapping[str, Any]) -> None:
        """Note one committed shard (columns of SHARD_LOG; others are ignored); writes once a minute."""
        self._rows.append({name: row[name] for name in SHARD_LOG.names})
        if time.monotonic() - self._written >= LOG_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what is new; a store that does not take it now is asked again next time."""
        self._written = time.monotonic()
        if not self._rows:
            return
        new = pa.Table.from_pylist(self._rows, schema=SHARD_LOG)
        table = pa.concat_tables([self._table, new]).sort_by("shard")
        with suppress(StorageError):
            self._job.put(SHARD_LOG_KEY, parquet_bytes(table, ROW_GROUP_ROWS))
            self._table, self._rows = table, []
