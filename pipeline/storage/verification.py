"""Proof of an artefact from the store alone: every claim of its manifest is checked against what is there.

What the URI is (a dataset, a checkpoint, a run, a samples folder, a registry of models, the ledgers of nights) is seen
from its documents. One file is in memory at a time. Contradictions are listed; only when there is nothing to verify an
error is raised.
"""

from dataclasses import dataclass

from pipeline.config import StorageConfig
from pipeline.errors import DataError
from pipeline.storage.checkpoints import RUN, committed_steps
from pipeline.storage.findings import Decode, Findings
from pipeline.storage.merged import MERGED, verify_merged
from pipeline.storage.models import checkpoint_place
from pipeline.storage.samples import MANIFEST, PLAN
from pipeline.storage.store import resolve
from pipeline.storage.verify_dataset import verify_dataset
from pipeline.storage.verify_nights import nights_place, verify_nights
from pipeline.storage.verify_registry import is_registry, verify_registry
from pipeline.storage.verify_run import verify_checkpoint, verify_run
from pipeline.storage.verify_samples import verify_samples

__all__ = ["Report", "verify"]


@dataclass(frozen=True)
class Report:
    """kind: dataset, checkpoint, run, samples, merged, registry or nights; what was checked; the first
    findings and how many in all."""

    kind: str
    uri: str
    counts: dict[str, int]
    findings: tuple[str, ...]
    total_findings: int


def verify(uri: str, config: StorageConfig, decode: Decode) -> Report:
    """Raises DataError when there is nothing that could be verified, StorageError when the store does not answer."""
    store, found = resolve(uri, config), Findings()
    place = checkpoint_place(uri, config)
    if place is not None:
        kind = "checkpoint"
        verify_checkpoint(*place, found)
    elif (nights := nights_place(store)) is not None:
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
    return Report(kind, store.uri, dict(found.counts), tuple(found.kept), found.total)
