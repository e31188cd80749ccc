"""The dataset manifest: the JSON document that commits a dataset version and names its shards.

A manifest holds no time, host or credential, so equal inputs give equal manifests and equal digests.
"""

from collections.abc import Sequence
from typing import Any, Literal

from pipeline.config.base import FileEntry, Section, digest_of
from pipeline.schema import SCHEMA_VERSION

Split = Literal["train", "heldout"]


class ShardEntry(FileEntry):
    """A Parquet shard of a dataset. Its rows have sample ids first_id..first_id+rows-1."""

    split: Split
    rows: int
    first_id: int
    keys: tuple[str, str] | None = None  # shuffle keys (16 hex digits) of the first and the last row


class DatasetManifest(Section):
    """One dataset version (the field `generation` is its number). source_rows = rows + rejects, always.

    Shards, rejects, snapshots and counts cover this version and all before it: a version only appends. channel_mean
    and channel_std describe all images in the model's range [-1, 1] and follow from the exact channel_sums.
    """

    kind: Literal["dataset"] = "dataset"
    schema_version: int = SCHEMA_VERSION
    source: str
    source_rows: int
    image_size: int
    channels: int
    classes: tuple[str, ...] | None
    shards: tuple[ShardEntry, ...]
    rejects: tuple[FileEntry, ...]
    reject_counts: dict[str, int]
    channel_mean: tuple[float, ...]
    channel_std: tuple[float, ...]
    ingest: dict[str, Any]
    generation: int = 1
    parent: str | None = None  # digest of the previous version
    snapshot: str | None = None  # sha256 (hex) of the source files that this version added: names, sizes, versions
    snapshots: tuple[FileEntry, ...] = ()  # lists of the source files that were read
    removed_files: int = 0  # read by earlier versions, missing or changed when this one was planned
    unusable_profiles: int = 0  # images whose pixels count as sRGB because their colour profile cannot be used
    label_source: str | None = None  # where the labels came from, such as "dataset.json"
    splits: tuple[tuple[str, str], ...] = ()  # named splits of the source, each with "train", "heldout" or "out"
    channel_sums: tuple[int, ...] = ()  # per channel: sum of levels, then of squared levels

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels of every image."""
        return self.image_size, self.image_size, self.channels

    def digest(self) -> str:
        """sha256 (hex) of the values. Newer fields at their default are left out, so older manifests keep their digest:
        a training run names its dataset version by digest.
        """
        values = self.model_dump(mode="json")
        newer = ("generation", "parent", "snapshot", "snapshots", "removed_files", "unusable_profiles", "channel_sums")
        for name in (*newer, "label_source", "splits"):
            if getattr(self, name) == type(self).model_fields[name].default:
                del values[name]
        for shard in values["shards"]:
            if shard["keys"] is None:
                del shard["keys"]
        return digest_of(values)

    def split(self, name: Split) -> tuple[ShardEntry, ...]:
        """Shards of one split, in order of sample id."""
        return tuple(shard for shard in self.shards if shard.split == name)

    def rows(self, name: Split) -> int:
        """Number of images of one split."""
        return sum(shard.rows for shard in self.split(name))


def channel_statistics(sums: Sequence[int], pixels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, in the range [-1, 1].

    sums: for each channel the sum of the levels 0..255, then for each channel the sum of the squared levels.
    """
    half = len(sums) // 2
    means = [value / pixels for value in sums[:half]]
    variances = [max(value / pixels - mean**2, 0.0) for value, mean in zip(sums[half:], means, strict=True)]
    return tuple(mean / 127.5 - 1.0 for mean in means), tuple(value**0.5 / 127.5 for value in variances)
