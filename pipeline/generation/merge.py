"""`ddpm merge`: copy several sealed samples folders, byte for byte, into one folder with one manifest. Needs no Ray.

    parts/<plan>/   a complete samples folder: plans, requests, data, markers, manifests, _SUCCESS
    merged.json     create-once, written last: the parts and their number of samples

Sample ids do not change, because noise and batch place depend on them: (part, sample_id) is unique. Each part can be
verified, evaluated and reproduced like any samples folder.
"""

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations
from typing import Any

from pipeline.config.root import Config
from pipeline.errors import ConfigError, DataError, NotFound
from pipeline.generation.commit import CARD, SUCCESS, marker_key, read_plan, read_sealed, sealed_documents
from pipeline.generation.dataset_card import merged_card
from pipeline.generation.manifest import Marker, MergedManifest, MergedPart, SampleManifest, SamplePlan
from pipeline.generation.verify import verify_samples
from pipeline.progress import Progress
from pipeline.storage.create_once import create_or_read, try_create
from pipeline.storage.documents import find_document, read_document, to_json
from pipeline.storage.files import read_verified
from pipeline.storage.findings import Decode, Findings
from pipeline.storage.store import Store, resolve

MERGED = "merged.json"
PARTS = "parts"
COPIERS = 8


def merge(config: Config, out: str, sources: Sequence[str], dry_run: bool = False) -> dict[str, Any]:
    """Copy sealed samples folders into one folder and commit it. Rerunning the command finishes an interrupted merge.

    Raises ConfigError for fewer than two sources, sources that share samples or differ in image shape or format, and a
    target that holds something else; DataError for an unsealed source; VerificationFailed for a damaged file.
    """
    if len(sources) < 2:
        raise ConfigError("ddpm merge needs at least two samples folders: ddpm merge --out URI SAMPLES SAMPLES ...")
    target, stores = resolve(out, config.storage), [resolve(folder, config.storage) for folder in sources]
    merged = plan_merge(target, stores)
    if dry_run:
        return {"summary": f"would copy {merged.rows:,} samples of {len(stores)} folders to {target.uri}"}
    progress = Progress("merge", merged.rows, "images")
    for store, part in zip(stores, merged.parts, strict=True):
        copy_part(store, part_store(target, part), lambda rows: progress.update(progress.done + rows))
    progress.close()
    if not try_create(target, MERGED, to_json(merged)):
        _check_folder(target, merged)
    ending = {"parquet": "parquet", "webdataset": "tar"}[read_plan(stores[0]).format]
    target.put(CARD, merged_card(merged, ending).encode())
    return {
        "state": "merged",
        "uri": target.uri,
        "samples": merged.rows,
        "failed": merged.failed,
        "parts": [part_store(target, part).uri for part in merged.parts],
        "digest": merged.digest_of_parts,
        "summary": f"merged: {merged.rows:,} samples of {len(stores)} folders -> {target.uri}",
    }


def part_store(out: Store, part: MergedPart) -> Store:
    """The samples folder of one part."""
    return out.child(PARTS, part.plan[:16])


def plan_merge(out: Store, folders: Sequence[Store]) -> MergedManifest:
    """The manifest of the merge, parts in the given order.

    Raises DataError for an unsealed folder, ConfigError when two folders share samples or differ in image shape or
    format, or when `out` holds something else.
    """
    sealed = [read_sealed(folder) for folder in folders]
    kinds = [f"{p.image_size}x{p.image_size}x{p.channels} images as {p.format}" for p, _ in sealed]
    for folder, kind in zip(folders, kinds, strict=True):
        if kind != kinds[0]:
            raise ConfigError(f"{folder.uri} has {kind}, {folders[0].uri} {kinds[0]}: these cannot be merged")
    plans = [{marker.plan for marker in manifest.shards} for _, manifest in sealed]
    for i, j in combinations(range(len(folders)), 2):
        if plans[i] & plans[j]:
            raise ConfigError(f"{folders[i].uri} and {folders[j].uri} share samples: a merge has each sample once")
    parts = tuple(_part(folder, *documents) for folder, documents in zip(folders, sealed, strict=True))
    merged = MergedManifest(parts=parts, rows=sum(p.rows for p in parts), failed=sum(p.failed for p in parts))
    _check_folder(out, merged)
    return merged


def _part(folder: Store, plan: SamplePlan, manifest: SampleManifest) -> MergedPart:
    return MergedPart(
        source=folder.uri,
        plan=plan.fingerprint,
        generation=plan.num_extensions,
        manifest_sha256=hashlib.sha256(to_json(manifest)).hexdigest(),
        rows=manifest.rows,
        failed=manifest.failed,
    )


def _check_folder(out: Store, merged: MergedManifest) -> None:
    there = find_document(out, MERGED, MergedManifest)
    if there is not None and there.digest_of_parts != merged.digest_of_parts:
        raise ConfigError(f"{out.uri} is a merge of other samples: choose another --out")
    ours = {MERGED, CARD, *(f"{PARTS}/{part.plan[:16]}" for part in merged.parts)}
    for entry in out.list():
        folder = "/".join(entry.key.split("/")[:2])
        if folder not in ours:
            raise ConfigError(f"{out.uri} holds {folder}, which is not part of this merge: choose another --out")


def copy_part(source: Store, target: Store, on_copied: Callable[[int], None]) -> None:
    """Copy a sealed samples folder; existing objects stay. Calls on_copied with the number of samples of each shard.

    Follows the order of the commit protocol, so readers see an interrupted copy as an unfinished samples folder.
    """
    plan, manifest = read_sealed(source)
    first, last = sealed_documents(plan)
    for key in (*first, *([plan.requests.file.key] if plan.requests is not None else [])):
        _copy_once(source, target, key)
    with ThreadPoolExecutor(COPIERS) as pool:

        def copy(marker: Marker) -> int:
            if not target.exists(marker_key(marker.shard)):
                target.put(marker.key, read_verified(source, marker))
                _copy_once(source, target, marker_key(marker.shard))
            return marker.rows

        for rows in pool.map(copy, manifest.shards):
            on_copied(rows)
    for key in last:
        _copy_once(source, target, key)
    target.put(SUCCESS, b"")


def _copy_once(source: Store, target: Store, key: str) -> None:
    data = source.read(key)
    if create_or_read(target, key, data) != data:
        raise DataError(f"{target.location(key)} differs from the one of {source.uri}: choose another --out")


def read_merged(out: Store) -> MergedManifest:
    """The manifest of a merged folder. Raises DataError when there is none."""
    try:
        return read_document(out, MERGED, MergedManifest)
    except NotFound as error:
        raise DataError(f"no merged samples at {out.uri}: {MERGED} is missing (ddpm merge makes them)") from error


def verify_merged(out: Store, decode: Decode, found: Findings) -> None:
    """Check every part as a samples folder, and against its entry in merged.json."""
    with found.record_errors():
        merged = read_merged(out)
        for part in merged.parts:
            store = part_store(out, part)
            verify_samples(store, decode, found)
            with found.record_errors():
                there = _part(store, *read_sealed(store)).model_copy(update={"source": part.source})
                found.expect(there == part, f"{store.uri} is not the samples folder that was merged")
        found.expect(
            (merged.rows, merged.failed) == (sum(p.rows for p in merged.parts), sum(p.failed for p in merged.parts)),
            f"{out.location(MERGED)} counts {merged.rows} samples, which is not the sum of its parts",
        )
        found.counts["parts"] = len(merged.parts)
