"""The state of an unfinished ingest at rest: its plan, the markers of finished tasks, and how leftovers are deleted.

    plans/000001.json              created once: claims dataset version 1 for one source and one set of settings
    work/000001-<plan>/prepared/   a marker for each finished partition of the source: its sorted runs and rejects
                      /settled/    a marker for each deduplicated range of slots: how many images stay
                      /written/    a marker for each shard, naming its one file in data/
                      /data/       sorted runs and rejects, each under a name that no other attempt uses
                      /refused     too much was rejected: the next ingest may plan anew if the source changed

A task puts its data first and then creates its marker. Of two attempts at one task the first marker counts. The commit
(`pipeline.ingest.dataset.write_dataset`) comes last, and only after it anything is deleted.
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
from pipeline.ingest.sorted_runs import SortedRunFile
from pipeline.schema import SCHEMA_VERSION
from pipeline.storage.create_once import COMMIT_ATTEMPTS, create_or_read_document
from pipeline.storage.documents import find_document
from pipeline.storage.store import Store

M = TypeVar("M", bound=Section)
MarkerKind = Literal["prepared", "settled", "written"]

FREE_TO_CHANGE = ("partition_rows", "max_reject_share", "max_decode_seconds")
"""Settings that may differ when an ingest continues or a dataset grows: they do not change the stored image."""
WORKERS = 16


class IngestPlan(Section):
    """The inputs of one dataset version (number `generation`). `snapshot_parts` list its source partitions."""

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
    named_splits: bool = False  # the source names its splits; without names the content decides

    @property
    def slots(self) -> Slots:
        return Slots(self.train_slots, self.heldout_slots)


class PreparedPartition(Section):
    """Marker of a partition that was read to its end: rows = images in its sorted runs + rejects.

    first_reject: name and fault of the first one. unusable_profiles: number of images that count as sRGB because their
    profile cannot be used; unusable_profile: one.
    """

    partition: int
    rows: int
    image_bytes: int
    runs: tuple[SortedRunFile, ...]
    labels: tuple[str, ...]
    reject_counts: dict[str, int]
    rejects: FileEntry | None
    first_reject: str | None = None
    unusable_profiles: int = 0
    unusable_profile: str | None = None


class DeduplicatedSlots(Section):
    """Marker of the slots first..first+len(kept)-1: number of images kept in each, the channel sums of the kept images,
    number and file of the dropped ones."""

    first: int
    kept: tuple[int, ...]
    sums: tuple[int, ...]
    duplicates: int
    rejects: FileEntry | None


def _plan_key(version: int) -> str:
    return f"plans/{version:06d}.json"


def read_plan(store: Store, version: int) -> IngestPlan | None:
    """The plan that claims a dataset version, or None."""
    return find_document(store, _plan_key(version), IngestPlan)


def claim(store: Store, plan: IngestPlan) -> IngestPlan:
    """Claim the plan's dataset version, or return the existing plan of that version to continue with.

    Raises ConfigError naming the differences when the existing plan has another source or other settings. A source that
    changed since is no difference: its new files belong to the next version.
    """
    existing = create_or_read_document(store, _plan_key(plan.generation), plan, COMMIT_ATTEMPTS)
    names = different_settings(existing.settings, plan.settings)
    details = [
        f"{name} {existing.settings.get(name)!r} stored, {plan.settings.get(name)!r} requested" for name in names
    ]
    details += [
        f"{name} {ours!r} stored, {theirs!r} requested"
        for name, ours, theirs in (("source", existing.source, plan.source), ("parent", existing.parent, plan.parent))
        if ours != theirs
    ]
    if details:
        raise ConfigError(
            f"{store.uri} is claimed by an unfinished ingest ({', '.join(details)}): run that ingest again, choose "
            f"another --dataset, or delete {store.location(_plan_key(plan.generation))} to discard it"
        )
    return existing


def different_settings(there: dict[str, Any], asked: dict[str, Any]) -> list[str]:
    """Names of the settings that affect the stored images and differ."""
    defaults = IngestConfig().model_dump(mode="json")  # for settings that did not exist when `there` was written
    newer = ("colour", "label_source", "splits")  # may be chosen for a dataset made before they existed
    free = (*FREE_TO_CHANGE, *(name for name in newer if name not in there))
    return [
        name for name in asked if name not in free and repr(there.get(name, defaults.get(name))) != repr(asked[name])
    ]


@dataclass(frozen=True)
class WorkFolder:
    """The work folder of a plan, small enough to send to every task."""

    dataset: Store
    plan: IngestPlan

    @property
    def folder(self) -> str:
        newer = None if self.plan.named_splits else {"named_splits"}  # so that plans at rest keep their folder
        return f"work/{self.plan.generation:06d}-{digest_of(self.plan.model_dump(mode='json', exclude=newer))[:12]}"

    def marker(self, kind: MarkerKind, name: str) -> str:
        """Key of a marker in the dataset's store."""
        return f"{self.folder}/{kind}/{name}.json"

    def data(self, name: str) -> str:
        """Key of a file that only this ingest reads."""
        return f"{self.folder}/data/{name}"

    def done(self, kind: MarkerKind) -> set[str]:
        """Names of the existing markers."""
        prefix = f"{self.folder}/{kind}/"
        return {entry.key.removeprefix(prefix).removesuffix(".json") for entry in self.dataset.list(prefix)}

    def read(self, model: type[M], kind: MarkerKind, name: str) -> M | None:
        """A marker, or None."""
        return find_document(self.dataset, self.marker(kind, name), model)

    def mark(self, value: M, kind: MarkerKind, name: str) -> M:
        """Create a marker; returns the marker that counts, which may be another attempt's."""
        return create_or_read_document(self.dataset, self.marker(kind, name), value, COMMIT_ATTEMPTS)

    def mark_refused(self) -> None:
        """Record that the ingest failed because of the content of its source."""
        self.dataset.put(f"{self.folder}/refused", b"")

    @property
    def is_refused(self) -> bool:
        return self.dataset.exists(f"{self.folder}/refused")


def withdraw_plan(work: WorkFolder) -> None:
    """Delete a refused plan and its work folder, so that the source can be planned anew."""
    work.dataset.delete(_plan_key(work.plan.generation))
    _delete(work.dataset, (entry.key for entry in work.dataset.list(f"{work.folder}/")))


def delete_leftovers(store: Store, manifest: DatasetManifest) -> int:
    """Delete work folders and unnamed files of all versions up to this committed one. Returns the number of files."""
    named = {entry.key for entry in (*manifest.shards, *manifest.rejects, *manifest.snapshots)}
    return _delete(store, _leftovers(store, manifest.generation, named))


def _leftovers(store: Store, version: int, named: set[str]) -> Iterator[str]:
    """Keys carry the number of their version, so the files of an ingest of a later version under way are spared."""
    for prefix in ("work/", "data/", "rejects/", "snapshots/"):
        for entry in store.list(prefix):
            if entry.key in named:
                continue
            number = entry.key.removeprefix(prefix).removeprefix("train-").removeprefix("heldout-").split("-")[0]
            if number.isdigit() and int(number) <= version:
                yield entry.key


def _delete(store: Store, keys: Iterator[str]) -> int:
    with ThreadPoolExecutor(WORKERS) as pool:
        return sum(1 for _ in pool.map(store.delete, keys))
