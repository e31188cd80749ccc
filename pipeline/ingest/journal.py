"""One ingest at work: what it claimed, which parts of it are done, and what is left lying afterwards.

    plans/000001.json              created once: claims generation 1 for one source and one set of settings
    work/000001-<plan>/prepared/   a marker a partition of the source, created once; names its runs and rejects
                      /settled/    a marker a range of slots: which of equal images stay
                      /written/    a marker a shard, naming its one file in data/
                      /data/       runs and rejects, each under a name that no other attempt uses
                      /refused     too much was rejected: the next ingest may plan anew if the source changed

A part is data first, then its marker; of two attempts the first marker counts. The commit (`shards.write_dataset`)
comes last, and only then is anything deleted.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from pipeline.config.base import FileEntry, Section, digest_of
from pipeline.config.ingest import IngestConfig
from pipeline.errors import ConfigError
from pipeline.ingest.manifest import DatasetManifest
from pipeline.ingest.partitioning import Slots
from pipeline.ingest.sorted_runs import RunFile
from pipeline.schema import SCHEMA_VERSION
from pipeline.storage.create_once import COMMIT_ATTEMPTS, create_or_read_document
from pipeline.storage.documents import find_document
from pipeline.storage.store import Store

__all__ = ["IngestPlan", "Prepared", "Settled", "Work", "claim", "different_settings", "read_plan", "sweep", "withdraw"]

M = TypeVar("M", bound=Section)
Kind = Literal["prepared", "settled", "written"]

FREE_TO_CHANGE = ("partition_rows", "max_reject_share", "max_decode_seconds")
"""Settings that may differ when an ingest goes on or a dataset grows: they do not touch what an image becomes."""
WORKERS = 16


class IngestPlan(Section):
    """What one generation will be made of. `snapshot_parts` list its partitions."""

    kind: Literal["ingest"] = "ingest"
    schema_version: int = SCHEMA_VERSION
    generation: int
    parent: str | None
    source: str
    settings: dict[str, Any]
    snapshot: str
    snapshot_parts: tuple[FileEntry, ...]
    partitions: int
    removed_files: int
    train_slots: int
    heldout_slots: int

    @property
    def slots(self) -> Slots:
        return Slots(self.train_slots, self.heldout_slots)


class Prepared(Section):
    """A partition of the source, read to its end: rows = images in its runs + rejects."""

    partition: int
    rows: int
    image_bytes: int
    runs: tuple[RunFile, ...]
    labels: tuple[str, ...]
    reject_counts: dict[str, int]
    rejects: FileEntry | None


class Settled(Section):
    """Slots first..first+len(kept)-1: how many images stay in each, their channel sums, the duplicates that do not."""

    first: int
    kept: tuple[int, ...]
    sums: tuple[int, ...]
    duplicates: int
    rejects: FileEntry | None


def _plan_key(generation: int) -> str:
    return f"plans/{generation:06d}.json"


def read_plan(store: Store, generation: int) -> IngestPlan | None:
    """The plan that claims a generation, or None."""
    return find_document(store, _plan_key(generation), IngestPlan)


def claim(store: Store, plan: IngestPlan) -> IngestPlan:
    """Make this plan the one of its generation, or join the one that is there.

    Raises ConfigError naming the differences when that one is of another source or other settings. Another state of
    the source is none: what the plan lists is ingested, and what came since belongs to the next generation.
    """
    existing = create_or_read_document(store, _plan_key(plan.generation), plan, COMMIT_ATTEMPTS)
    names = different_settings(existing.settings, plan.settings)
    details = [f"{name} {existing.settings.get(name)!r} there, {plan.settings.get(name)!r} asked" for name in names]
    details += [
        f"{name} {ours!r} there, {theirs!r} asked"
        for name, ours, theirs in (("source", existing.source, plan.source), ("parent", existing.parent, plan.parent))
        if ours != theirs
    ]
    if details:
        raise ConfigError(
            f"{store.uri} is claimed by an unfinished ingest ({', '.join(details)}): run that one again, choose "
            f"another --dataset, or delete {store.location(_plan_key(plan.generation))} to drop it"
        )
    return existing


def different_settings(there: dict[str, Any], asked: dict[str, Any]) -> list[str]:
    """Names of the ingest settings that decide what an image becomes and are not equal."""
    defaults = IngestConfig().model_dump(mode="json")  # of settings that are younger than what is stored
    return [
        name
        for name in asked
        if name not in FREE_TO_CHANGE and repr(there.get(name, defaults.get(name))) != repr(asked[name])
    ]


@dataclass(frozen=True)
class Work:
    """The work folder of a plan. A small value, for any process."""

    dataset: Store
    plan: IngestPlan

    @property
    def folder(self) -> str:
        return f"work/{self.plan.generation:06d}-{digest_of(self.plan.model_dump(mode='json'))[:12]}"

    def marker(self, kind: Kind, name: str) -> str:
        """Key of a marker in the dataset's store."""
        return f"{self.folder}/{kind}/{name}.json"

    def data(self, name: str) -> str:
        """Key of a file that only this ingest reads."""
        return f"{self.folder}/data/{name}"

    def done(self, kind: Kind) -> set[str]:
        """Names of the markers that are there."""
        prefix = f"{self.folder}/{kind}/"
        return {entry.key.removeprefix(prefix).removesuffix(".json") for entry in self.dataset.list(prefix)}

    def read(self, model: type[M], kind: Kind, name: str) -> M | None:
        """A marker, or None."""
        return find_document(self.dataset, self.marker(kind, name), model)

    def mark(self, value: M, kind: Kind, name: str) -> M:
        """Create a marker; returns the one that counts."""
        return create_or_read_document(self.dataset, self.marker(kind, name), value, COMMIT_ATTEMPTS)

    def refuse(self) -> None:
        """Note that the ingest ended because of what its source holds."""
        self.dataset.put(f"{self.folder}/refused", b"")

    @property
    def is_refused(self) -> bool:
        return self.dataset.exists(f"{self.folder}/refused")


def withdraw(work: Work) -> None:
    """Give up a refused plan, so that the source may be planned anew."""
    work.dataset.delete(_plan_key(work.plan.generation))
    _delete(work.dataset, (entry.key for entry in work.dataset.list(f"{work.folder}/")))


def sweep(store: Store, manifest: DatasetManifest) -> int:
    """Delete what no committed generation needs: work folders and unnamed files of generations up to this one's."""
    named = {entry.key for entry in (*manifest.shards, *manifest.rejects, *manifest.snapshots)}
    return _delete(store, _unneeded(store, manifest.generation, named))


def _unneeded(store: Store, generation: int, named: set[str]) -> Iterator[str]:
    """A later generation may be at work at the same time: its files have its number."""
    for prefix in ("work/", "data/", "rejects/", "snapshots/"):
        for entry in store.list(prefix):
            if entry.key in named:
                continue
            number = entry.key.removeprefix(prefix).removeprefix("train-").removeprefix("heldout-").split("-")[0]
            if number.isdigit() and int(number) <= generation:
                yield entry.key


def _delete(store: Store, keys: Iterator[str]) -> int:
    with ThreadPoolExecutor(WORKERS) as pool:
        return sum(1 for _ in pool.map(store.delete, keys))
