"""Commit protocol of a samples folder: every sample exactly once. Each step is one atomic write, in this order:

    PLAN  plan.json                    create-once; the same plan continues the folder, a different plan is rejected
          (requests/*.parquet, the checked copy of the request table, is written before the plan that names it)
    DATA  data/shard-N-<attempt>.parquet   (or .tar) one put under a name unique to the attempt
    MARK  commits/shard-N.json         create-once; the attempt that creates the marker owns shard N permanently
    SEAL  manifest.json                create-once, lists all markers; then _SUCCESS for external readers
    GC    after the seal, delete data files that no marker names

A shard goes ABSENT -> DATA only -> COMMITTED -> SEALED and never back. Readers use the manifest, never a listing.

A sealed folder can be extended: plan-000001.json names the previous plan and a larger number of samples. The new ids
begin a new shard, and manifest-000001.json seals old and new shards. No existing object is rewritten, so readers see
the old samples until the new manifest exists. The newest plan or manifest has the highest number.
"""

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa

from pipeline.errors import ConfigError, DataError, NotFound
from pipeline.generation.manifest import Marker, SampleManifest, SamplePlan
from pipeline.generation.sample_plan import PlannedSamples
from pipeline.schema import STATUS_OK
from pipeline.storage.create_once import COMMIT_ATTEMPTS, create_or_read_document, try_create
from pipeline.storage.documents import find_document, read_document, to_json
from pipeline.storage.files import file_entry, parquet_bytes, viewer_rows
from pipeline.storage.sample_shards import TAR, tar_bytes
from pipeline.storage.store import Store

PLAN = "plan.json"
MANIFEST = "manifest.json"
SUCCESS = "_SUCCESS"
CARD = "README.md"
_MARKER = re.compile(r"^commits/shard-(\d{9,})\.json$")
_DATA = re.compile(r"^data/shard-(\d{9,})-")
MARKER_READERS = 16


def marker_key(shard: int) -> str:
    """Key of shard N's marker, relative to the samples folder."""
    return f"commits/shard-{shard:09d}.json"


def _numbered(name: str, extension: int) -> str:
    """plan.json, plan-000001.json, ..."""
    stem, _, ending = name.partition(".")
    return f"{stem}-{extension:06d}.{ending}" if extension else name


def newest_number(folder: Store, name: str) -> int:
    """The highest number of an existing plan or manifest, -1 for none. Numbers have no gaps."""
    extension = -1
    while folder.exists(_numbered(name, extension + 1)):
        extension += 1
    return extension


def sealed_documents(plan: SamplePlan) -> tuple[list[str], list[str]]:
    """Keys of all plans of a sealed folder, and of all its manifests."""
    extensions = range(plan.num_extensions + 1)
    return [_numbered(PLAN, i) for i in extensions], [_numbered(MANIFEST, i) for i in extensions]


def create_plan(folder: Store, plan: SamplePlan, requests: bytes = b"") -> SamplePlan:
    """Create the plan, continue the existing one, or extend it. `plan`: as for a folder without extensions.

    requests: content of the file that plan.requests names; stored beside the plan. Raises ConfigError when the folder
    holds samples of a different plan, or cannot be extended.
    """
    if plan.requests is not None and requests and not folder.exists(PLAN):
        try_create(folder, plan.requests.file.key, requests, COMMIT_ATTEMPTS)  # the key names the content
    wanted = plan
    while True:
        if try_create(folder, _numbered(PLAN, wanted.num_extensions), to_json(wanted), COMMIT_ATTEMPTS):
            return wanted
        wanted = join_plan(folder, plan)
        if folder.exists(_numbered(PLAN, wanted.num_extensions)):
            return wanted


def join_plan(folder: Store, plan: SamplePlan) -> SamplePlan:
    """The existing plan of the same samples, or the plan of the extension that adds the missing ones.

    Raises ConfigError when the folder holds samples of a different plan, DataError when there is no plan.
    """
    plans = [read_plan(folder, extension) for extension in range(max(1, newest_number(folder, PLAN) + 1))]
    for there in plans:
        if there.model_copy(update={"earlier": ()}).fingerprint == plan.fingerprint:
            return there
    last = plans[-1]
    ours, theirs = plan.model_dump(exclude={"earlier"}), last.model_dump(exclude={"earlier"})
    # Compare the text: True == 1.0 in Python, but they are different plans.
    different = [name for name in ours if repr(ours[name]) != repr(theirs[name]) and name != "model_uri"]
    more = different == ["num_samples"] and plan.num_samples > last.num_samples
    if more and folder.exists(_numbered(MANIFEST, last.num_extensions)):
        return last.extended(plan.num_samples)
    details = ", ".join(f"{name} {_text(theirs[name])} stored, {_text(ours[name])} requested" for name in different)
    if more:
        raise ConfigError(f"{folder.uri} cannot be extended before it is sealed ({details}): finish it first")
    hint = f"; it was planned from --model {last.model_uri}" if "model_digest" in different else ""
    raise ConfigError(f"{folder.uri} holds other samples ({details}){hint}: choose another --out or the same settings")


def _text(value: Any) -> str:
    """A plan's value in an error message; a request table is shown as the hash of its source."""
    is_table = isinstance(value, dict) and "source_sha256" in value
    return f"sha256 {value['source_sha256'][:16]}" if is_table else repr(value)


def read_plan(folder: Store, extension: int | None = None) -> SamplePlan:
    """The newest plan, or plan number `extension`. Raises DataError when there is none."""
    key = _numbered(PLAN, max(0, newest_number(folder, PLAN)) if extension is None else extension)
    try:
        return read_document(folder, key, SamplePlan)
    except NotFound as error:
        raise DataError(f"no samples at {folder.uri}: {PLAN} is missing (ddpm generate makes them)") from error


def read_marker(folder: Store, shard: int) -> Marker | None:
    """The marker of a committed shard, or None."""
    return find_document(folder, marker_key(shard), Marker)


def committed_shards(folder: Store) -> Iterator[int]:
    """Shards that have a marker, ascending."""
    for entry in folder.list("commits/"):
        if match := _MARKER.match(entry.key):
            yield int(match.group(1))


def commit_shard(
    folder: Store, plan: SamplePlan, shard: int, table: pa.Table, attempt: str, expected: range | None = None
) -> Marker:
    """Write DATA, then MARK. Returns the marker that owns the shard: this attempt's, or a faster attempt's.

    expected: the shard's ids; needed only with a request table. Raises Transient when the store does not report whether
    the marker was created. The data file then stays for garbage collection, because a delayed request may still create
    the marker that names it.
    """
    ids = table.column("sample_id").to_pylist()
    expected = expected or PlannedSamples(plan).layout.ids(shard)
    if ids != list(expected):
        raise DataError(f"shard {shard} must hold samples {expected.start}..{expected.stop - 1} in order, once each")
    tar = plan.format == "webdataset"
    data = tar_bytes(table) if tar else parquet_bytes(table, viewer_rows(table))
    marker = Marker(
        **file_entry(f"data/shard-{shard:09d}-{attempt}{TAR if tar else '.parquet'}", data).model_dump(),
        shard=shard,
        rows=len(ids),
        first_id=expected.start,
        last_id=expected.stop - 1,
        failed=sum(status != STATUS_OK for status in table.column("status").to_pylist()),
        plan=plan.fingerprint,
        attempt=attempt,
    )
    folder.put(marker.key, data)
    owner = create_or_read_document(folder, marker_key(shard), marker, COMMIT_ATTEMPTS)
    if owner.attempt != attempt:
        folder.delete(marker.key)
    return owner


def seal(folder: Store, plan: SamplePlan) -> SampleManifest:
    """Write the manifest. Raises DataError while a shard has no marker, or a marker of another plan."""
    markers = list(read_manifest(folder, plan.num_extensions - 1).shards) if plan.num_extensions else []
    shards = range(plan.first_new_shard, plan.num_shards)
    with ThreadPoolExecutor(MARKER_READERS) as pool:  # one read takes milliseconds on an object store
        found = list(pool.map(lambda shard: read_marker(folder, shard), shards))
    for shard, marker in zip(shards, found, strict=True):
        if marker is None:
            raise DataError(f"{folder.uri} cannot be sealed: shard {shard} has no marker; rerun the same command")
        if marker.plan != plan.fingerprint:
            raise DataError(f"{folder.location(marker_key(shard))} belongs to another plan: {marker.plan}")
        markers.append(marker)
    manifest = SampleManifest(
        plan=plan.fingerprint,
        rows=sum(m.rows for m in markers),
        failed=sum(m.failed for m in markers),
        shards=tuple(markers),
    )
    key = _numbered(MANIFEST, plan.num_extensions)
    if create_or_read_document(folder, key, manifest, COMMIT_ATTEMPTS) != manifest:
        raise DataError(f"{folder.location(key)} is sealed with other shards than its markers name")
    folder.put(SUCCESS, b"")
    return manifest


def read_manifest(folder: Store, extension: int | None = None) -> SampleManifest:
    """The newest manifest, or manifest number `extension`. Raises DataError before the seal."""
    key = _numbered(MANIFEST, max(0, newest_number(folder, MANIFEST)) if extension is None else extension)
    try:
        return read_document(folder, key, SampleManifest)
    except NotFound as error:
        raise DataError(
            f"{folder.uri} is not sealed: {MANIFEST} is missing (run the same ddpm generate again)"
        ) from error


def read_sealed(folder: Store) -> tuple[SamplePlan, SampleManifest]:
    """The newest manifest and its plan. Raises DataError before the seal, or when the two do not match."""
    extension = max(0, newest_number(folder, MANIFEST))
    plan, manifest = read_plan(folder, extension), read_manifest(folder, extension)
    if manifest.plan != plan.fingerprint:
        raise DataError(f"{folder.uri} is sealed under a plan other than its own: generate it again")
    return plan, manifest


def is_sealed(folder: Store, plan: SamplePlan | None = None) -> bool:
    """Whether the manifest of the plan (default: the newest) and the success file exist."""
    extension = max(0, newest_number(folder, PLAN)) if plan is None else plan.num_extensions
    return folder.exists(SUCCESS) and folder.exists(_numbered(MANIFEST, extension))


def collect_garbage(folder: Store, manifest: SampleManifest) -> int:
    """Delete the data files of sealed shards that no marker names. Returns the number deleted."""
    named = {marker.shard: marker.key for marker in manifest.shards}
    removed = 0
    for entry in folder.list("data/"):
        match = _DATA.match(entry.key)
        if match and named.get(int(match.group(1)), entry.key) != entry.key:
            folder.delete(entry.key)
            removed += 1
    return removed
