"""Driver of `ddpm verify`: checks an artefact's manifest against the objects in the store.

The kind of artefact (dataset, checkpoint, run, samples, registry, nights) is found from its documents. One file is in
memory at a time. Contradictions are collected, not raised.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.config.root import Config
from pipeline.config.storage import StorageConfig
from pipeline.errors import DataError, VerificationFailed
from pipeline.generation.commit import MANIFEST, PLAN
from pipeline.generation.merge import MERGED, verify_merged
from pipeline.generation.verify import verify_samples
from pipeline.images.png import decode_pixels
from pipeline.ingest.verify import verify_dataset
from pipeline.model_store.checkpoint import RUN, committed_steps
from pipeline.model_store.load_model import parse_checkpoint_uri
from pipeline.model_store.verify_registry import is_registry, verify_registry
from pipeline.model_store.verify_run import verify_checkpoint, verify_run
from pipeline.nightly.verify import find_nights, verify_nights
from pipeline.storage.findings import Decode, Findings
from pipeline.storage.store import resolve


@dataclass(frozen=True)
class Report:
    """kind: dataset, checkpoint, run, samples, merged, registry or nights. counts: objects checked by name.

    findings: the first contradictions; total_findings: of all.
    """

    kind: str
    uri: str
    counts: dict[str, int]
    findings: tuple[str, ...]
    total_findings: int


def check_artefact(uri: str, config: StorageConfig, decode: Decode) -> Report:
    """Verify the artefact at `uri`. Raises DataError for an unknown kind, StorageError without a store."""
    store, found = resolve(uri, config), Findings()
    place = parse_checkpoint_uri(uri, config)
    if place is not None:
        kind = "checkpoint"
        verify_checkpoint(*place, found)
    elif (nights := find_nights(store)) is not None:
        kind = "nights"
        verify_nights(nights, found)
    elif is_registry(store):
        kind = "registry"
        verify_registry(store, found)
    elif store.exists(MERGED):
        kind = "merged"
        verify_merged(store, decode, found)
    elif store.exists(PLAN) or any(True for _ in store.list("commits/")):
        kind = "samples"
        verify_samples(store, decode, found)
    elif store.exists(RUN) or committed_steps(store):
        kind = "run"
        verify_run(store, found)
    elif store.exists(MANIFEST):
        kind = "dataset"
        verify_dataset(store, decode, found)
    else:
        raise DataError(f"nothing to verify at {store.uri}: no dataset, checkpoint, run, samples, registry or nights")
    return Report(kind, store.uri, dict(found.counts), tuple(found.messages), found.total)


MAX_LISTED = 20


def verify(config: Config, uri: str) -> dict[str, Any]:
    """Raises VerificationFailed listing the findings, DataError when `uri` is no artefact."""

    def decode(data: bytes) -> NDArray[np.uint8]:
        return decode_pixels(data, config.ingest.max_image_pixels)

    report = check_artefact(uri, config.storage, decode)
    counts = ", ".join(f"{count:,} {name}" for name, count in sorted(report.counts.items()))
    if report.total_findings:
        more = report.total_findings - MAX_LISTED
        head = f"{report.kind} {report.uri}: {report.total_findings:,} contradictions ({counts})"
        rest = [f"... and {more:,} more"] if more > 0 else []
        lines = [f"verification failed: {head}", *report.findings[:MAX_LISTED], *rest]
        raise VerificationFailed("\n".join(lines))
    return {
        "state": "verified",
        "kind": report.kind,
        "uri": report.uri,
        "counts": report.counts,
        "summary": f"verified: {report.kind} {report.uri}: {counts}, nothing contradicts its manifest",
    }
