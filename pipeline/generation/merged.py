"""Several finished jobs in one folder: each copied whole, byte by byte, and named by one manifest.

    parts/<plan>/   one job as it was: plans, requests, data, markers, manifests, _SUCCESS
    merged.json     create-once, last: which parts, how many samples

Sample ids stay those of their job, because a sample's noise and place are functions of them: (part, sample_id) is what
is unique. Every part is a samples folder of its own, to verify, evaluate or reproduce from.
"""

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby

from pipeline.errors import ConfigError, DataError, NotFound
from pipeline.generation.commit import CARD, SUCCESS, marker_key, read_sealed, sealed_documents
from pipeline.generation.manifest import MergedManifest, MergedPart, SampleManifest, SamplePlan
from pipeline.generation.verify import verify_samples
from pipeline.storage.create_once import create_or_read, try_create
from pipeline.storage.documents import read_document, to_json
from pipeline.storage.files import read_verified
from pipeline.storage.findings import Decode, Findings
from pipeline.storage.store import Store

__all__ = ["MERGED", "copy_part", "merge_plan", "part_store", "read_merged", "seal_merged", "verify_merged"]

MERGED = "merged.json"
PARTS = "parts"
COPIERS = 8


def part_store(out: Store, part: MergedPart) -> Store:
    """The folder of one part, a samples folder."""
    return out.child(PARTS, part.plan[:16])


def merge_plan(out: Store, jobs: Sequence[Store]) -> MergedManifest:
    """What the merged folder will hold, in the order given.

    Raises DataError for a job that is not sealed, ConfigError when two share samples, differ in their kind of images
    or format, or when the folder holds something else.
    """
    sealed = [read_sealed(job) for job in jobs]
    kinds = [(plan.image_size, plan.channels, plan.format) for plan, _ in sealed]
    for job, kind in zip(jobs, kinds, strict=True):
        if kind != kinds[0]:
            raise ConfigError(f"{job.uri} has {_kind(kind)}, {jobs[0].uri} {_kind(kinds[0])}: these cannot be merged")
    origins = [{marker.plan for marker in manifest.shards} for _, manifest in sealed]
    for i, first in enumerate(origins):
        for j in range(i + 1, len(origins)):
            if first & origins[j]:
                raise ConfigError(f"{jobs[i].uri} and {jobs[j].uri} share samples: a merge has each sample once")
    parts = tuple(_part(job, plan, manifest) for job, (plan, manifest) in zip(jobs, sealed, strict=True))
    merged = MergedManifest(parts=parts, rows=sum(p.rows for p in parts), failed=sum(p.failed for p in parts))
    _check_folder(out, merged)
    return merged


def _kind(kind: tuple[int, int, str]) -> str:
    return f"{kind[0]}x{kind[0]}x{kind[1]} images as {kind[2]}"


def _part(job: Store, plan: SamplePlan, manifest: SampleManifest) -> MergedPart:
    return MergedPart(
        source=job.uri,
        plan=plan.fingerprint,
        generation=plan.generation,
        manifest_sha256=hashlib.sha256(to_json(manifest)).hexdigest(),
        rows=manifest.rows,
        failed=manifest.failed,
    )


def _check_folder(out: Store, merged: MergedManifest) -> None:
    there = read_merged(out) if out.exists(MERGED) else None
    if there is not None and there.digest_of_parts != merged.digest_of_parts:
        raise ConfigError(f"{out.uri} is a merge of other samples: choose another --out")
    ours = {f"{PARTS}/{part.plan[:16]}" for part in merged.parts}
    for folder, _ in groupby(out.list(), key=lambda entry: "/".join(entry.key.split("/")[:2])):
        if folder not in ours | {MERGED, CARD}:
            raise ConfigError(f"{out.uri} holds {folder}, which is no part of this merge: choose another --out")


def copy_part(source: Store, target: Store, tell: Callable[[int], None]) -> None:
    """Copy a sealed job; what is there already stays. `tell` hears of each shard how many samples it has.

    In the order of the commit protocol, so a copy that was interrupted is an unfinished job to every reader.
    """
    plan, manifest = read_sealed(source)
    first, last = sealed_documents(plan)
    for key in (*first, *([plan.requests.file.key] if plan.requests is not None else [])):
        _copy_once(source, target, key)
    with ThreadPoolExecutor(COPIERS) as pool:

        def copy(index: int) -> int:
            marker = manifest.shards[index]
            if not target.exists(marker_key(marker.shard)):
                target.put(marker.key, read_verified(source, marker))
                _copy_once(source, target, marker_key(marker.shard))
            return marker.rows

        for rows in pool.map(copy, range(len(manifest.shards))):
            tell(rows)
    for key in last:
        _copy_once(source, target, key)
    target.put(SUCCESS, b"")


def _copy_once(source: Store, target: Store, key: str) -> None:
    data = source.read(key)
    if create_or_read(target, key, data) != data:
        raise DataError(f"{target.location(key)} is not that of {source.uri}: choose another --out")


def seal_merged(out: Store, merged: MergedManifest) -> None:
    """Commit the merge, once."""
    if not try_create(out, MERGED, to_json(merged)):
        _check_folder(out, merged)


def read_merged(out: Store) -> MergedManifest:
    """Raises DataError when there is no merge."""
    try:
        return read_document(out, MERGED, MergedManifest)
    except NotFound as error:
        raise DataError(f"no merged samples at {out.uri}: {MERGED} is missing (ddpm merge makes them)") from error


def verify_merged(out: Store, decode: Decode, found: Findings) -> None:
    """Each part as a samples folder, and that it is the part that was merged."""
    with found.record_errors():
        merged = read_merged(out)
        for part in merged.parts:
            _verify_part(part_store(out, part), part, decode, found)
        found.expect(
            (merged.rows, merged.failed) == (sum(p.rows for p in merged.parts), sum(p.failed for p in merged.parts)),
            f"{out.location(MERGED)} counts {merged.rows} samples, its parts others",
        )
        found.counts["parts"] = len(merged.parts)


def _verify_part(store: Store, part: MergedPart, decode: Decode, found: Findings) -> None:
    verify_samples(store, decode, found)
    with found.record_errors():
        plan, manifest = read_sealed(store)
        there = _part(store, plan, manifest)
        found.expect(
            there.model_copy(update={"source": part.source}) == part, f"{store.uri} is not the job that was merged"
        )
