"""Finished jobs -> one folder that holds them all; no Ray: a few threads copy bytes and check them."""

from collections.abc import Sequence
from typing import Any

from pipeline.config.root import Config
from pipeline.errors import ConfigError
from pipeline.generation.commit import CARD, read_plan
from pipeline.generation.dataset_card import merged_card
from pipeline.generation.merged import copy_part, merge_plan, part_store, seal_merged
from pipeline.progress import Progress
from pipeline.storage.store import resolve

__all__ = ["merge"]


def merge(config: Config, out: str, jobs: Sequence[str], dry_run: bool = False) -> dict[str, Any]:
    """Copy sealed jobs into one folder and commit it; the same command finishes an interrupted one.

    Raises ConfigError for fewer than two jobs, ones that share samples or differ in their kind of images, and a folder
    that holds something else; DataError for a job that is not sealed; VerificationFailed for a damaged file.
    """
    if len(jobs) < 2:
        raise ConfigError("ddpm merge needs two jobs or more: ddpm merge --out URI JOB JOB ...")
    target, stores = resolve(out, config.storage), [resolve(job, config.storage) for job in jobs]
    merged = merge_plan(target, stores)
    if dry_run:
        return {"summary": f"would copy {merged.rows:,} samples of {len(stores)} jobs to {target.uri}"}
    progress, copied = Progress("merge", merged.rows, "images"), 0

    def tell(rows: int) -> None:
        nonlocal copied
        copied += rows
        progress.update(copied)

    for store, part in zip(stores, merged.parts, strict=True):
        copy_part(store, part_store(target, part), tell)
    progress.close()
    seal_merged(target, merged)
    ending = {"parquet": "parquet", "webdataset": "tar"}[read_plan(stores[0]).format]
    target.put(CARD, merged_card(merged, ending).encode())
    return {
        "state": "merged",
        "uri": target.uri,
        "samples": merged.rows,
        "failed": merged.failed,
        "parts": [part_store(target, part).uri for part in merged.parts],
        "digest": merged.digest_of_parts,
        "summary": f"merged: {merged.rows:,} samples of {len(stores)} jobs -> {target.uri}",
    }
