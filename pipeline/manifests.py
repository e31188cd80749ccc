"""The JSON documents that say what is at rest: an artefact exists when its manifest does.

None holds a time, a host or a credential, so equal inputs give equal documents and equal digests.
"""

import re
from collections.abc import Sequence
from typing import Any, Literal, TypeVar

from pydantic import ValidationError

from pipeline.config import Config
from pipeline.errors import DataError
from pipeline.sample_manifests import Marker, PlanPart, RequestTable, SampleManifest, SamplePlan
from pipeline.schema import SCHEMA_VERSION
from pipeline.section import FileEntry, Section, digest_of

__all__ = [
    "CheckpointManifest",
    "DatasetManifest",
    "FileEntry",
    "Marker",
    "PlanPart",
    "RequestTable",
    "RunPlan",
    "RunSuccess",
    "SampleManifest",
    "SamplePlan",
    "ShardEntry",
    "Split",
    "channel_statistics",
    "parse",
    "without_credentials",
]

Split = Literal["train", "heldout"]
FREE_TO_CHANGE = {
    f"train.{name}"
    for name in (
        "steps",
        "checkpoint_every",
        "keep_checkpoints",
        "keep_every",
        "keep_best",
        "check_every",
        "trackers",
        "grid_every",
        "grid_size",
        "grid_sampling_steps",
    )
}
"""Settings of a run that may differ when it is resumed: they do not touch the path of the weights."""

T = TypeVar("T", bound=Section)

_USER = re.compile(r"(?<=//)[^/@\s]+@")
_SECRET = re.compile(
    r"(?<=[?&;])([\w.%-]*(?:signature|sig|token|secret|credential|password|accesskey)[\w.%-]*)=[^&;\s]*", re.I
)


def without_credentials(name: str) -> str:
    """A URI as it may be shown and stored: no user part, no signed query."""
    return _SECRET.sub(r"\1=***", _USER.sub("***@", name))


class ShardEntry(FileEntry):
    """A Parquet shard of a dataset; its rows have sample ids first_id..first_id+rows-1."""

    split: Split
    rows: int
    first_id: int
    keys: tuple[str, str] | None = None  # shuffle keys (16 hex digits) of the first and the last row


class DatasetManifest(Section):
    """`<dataset>/manifest.json`: the newest generation. source_rows = rows + rejects, always.

    Shards, rejects, snapshots and counts are those of all generations so far; a generation only appends. channel_mean
    and channel_std are of all images, in the model's range [-1, 1], from the exact channel_sums.
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
    parent: str | None = None  # digest of the generation before
    snapshot: str | None = None  # sha256 (hex) of the names and versions of the files that this generation added
    snapshots: tuple[FileEntry, ...] = ()  # lists of the files that were read
    removed_files: int = 0  # read by earlier generations, gone or changed when this one was planned
    channel_sums: tuple[int, ...] = ()  # per channel: sum of levels, then of squared levels

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels of every image."""
        return self.image_size, self.image_size, self.channels

    def digest(self) -> str:
        """sha256 (hex) of the values; of older manifests without what was added since, so that runs find them."""
        values = self.model_dump(mode="json")
        for name in ("generation", "parent", "snapshot", "snapshots", "removed_files", "channel_sums"):
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
        """Images of one split."""
        return sum(shard.rows for shard in self.split(name))


def channel_statistics(sums: Sequence[int], pixels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation by channel, in [-1, 1], from exact sums of levels, then of squared levels."""
    half = len(sums) // 2
    means = [value / pixels for value in sums[:half]]
    variances = [max(value / pixels - mean**2, 0.0) for value, mean in zip(sums[half:], means, strict=True)]
    return tuple(mean / 127.5 - 1.0 for mean in means), tuple(value**0.5 / 127.5 for value in variances)


class CheckpointManifest(Section):
    """`<run>/checkpoints/step-N/manifest.json`."""

    kind: Literal["checkpoint"] = "checkpoint"
    schema_version: int = SCHEMA_VERSION
    step: int
    images: int
    epoch: int
    batches: int  # global batches of `epoch` that are done
    world_size: int
    dataset_digest: str
    image_size: int
    channels: int
    classes: tuple[str, ...] | None
    config: dict[str, Any]
    config_digest: str
    lane_digests: tuple[str, ...]  # running sha256 of the sample ids that each lane delivered
    metric_parts: tuple[FileEntry, ...]  # relative to the run
    ema: tuple[str, ...]  # names of the averaged weights
    loss: float | None = None  # mean over the steps since the checkpoint before
    files: tuple[FileEntry, ...]

    @property
    def batch_digest(self) -> str:
        """sha256 (hex) of the ids of every global batch so far: equal for any number of workers."""
        return digest_of(list(self.lane_digests))


def _with_defaults(config: dict[str, Any]) -> dict[str, Any]:
    """A stored configuration with what was added since at its default, so that an older run can go on."""
    try:
        return Config.model_validate(config).model_dump(mode="json")
    except ValidationError:
        return config


class RunPlan(Section):
    """`<run>/run.json`, created once: what the run trains, on what."""

    kind: Literal["run"] = "run"
    schema_version: int = SCHEMA_VERSION
    dataset_uri: str
    dataset_digest: str
    config: dict[str, Any]
    init_digest: str | None = None  # of the weights that a warm start took, wherever they lay

    def differences(self, other: "RunPlan") -> list[str]:
        """Dotted names of the settings that decide the weights and are not equal in the two plans."""
        names = [name for name in ("dataset", "init") if self._digest(name) != other._digest(name)]
        for section in ("model", "diffusion", "train"):
            ours, theirs = (_with_defaults(plan.config)[section] for plan in (self, other))
            names += [
                f"{section}.{key}"
                for key in sorted(ours.keys() | theirs.keys())
                if f"{section}.{key}" not in FREE_TO_CHANGE and ours.get(key) != theirs.get(key)
            ]
        return names

    def _digest(self, name: Literal["dataset", "init"]) -> str | None:
        return self.dataset_digest if name == "dataset" else self.init_digest


class RunSuccess(Section):
    """`<run>/_SUCCESS.json`: the run took all its steps."""

    kind: Literal["success"] = "success"
    step: int
    images: int
    checkpoint: str  # relative to the run
    batch_digest: str
    config_digest: str


def parse(model: type[T], data: bytes, where: str) -> T:
    """Read a document. Raises DataError naming the first field that is not as it should be."""
    try:
        return model.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "the document"
        raise DataError(f"{where} is not a {model.__name__}: {field}: {first['msg']}") from error
