"""The JSON documents of a samples folder: the plan, one marker per shard, and the manifest that seals them.

No document holds a time, a host or a credential, so equal inputs give equal documents and equal digests.
"""

from typing import Any, Literal

from pipeline.config.base import FileEntry, Section, digest_of
from pipeline.config.generation import LabelMix
from pipeline.schema import SCHEMA_VERSION


class EarlierPlan(Section):
    """An earlier plan of an extended folder: its fingerprint and its number of samples."""

    plan: str
    num_samples: int


class RequestTable(Section):
    """A request table: hash of the user's file, and the checked copy stored in the samples folder."""

    source_sha256: str  # of the user's file
    rows: int
    shards: int
    file: FileEntry  # relative to the samples folder, schema.REQUESTS


class SamplePlan(Section):
    """`<samples>/plan.json`: all that decides the bytes of the samples. An extension adds `plan-000001.json`."""

    kind: Literal["samples"] = "samples"
    schema_version: int = SCHEMA_VERSION
    num_samples: int
    shard_size: int
    batch_size: int
    seed: int
    model_uri: str
    model_digest: str
    weights: str
    sampler: str
    steps: int
    eta: float
    variance: str
    clip: bool | float
    compile: bool = False  # part of the plan: compiled kernels round differently
    image_size: int
    channels: int
    num_classes: int | None
    null_label: int | None = None  # row of a diffusers folder's class embedding, if the user named one
    diffusion: dict[str, Any]
    guidance: float | None = None
    guidance_interval: tuple[int, int] | None = None  # timestep indices, both included
    labels: LabelMix | None = None  # None: every class in turn
    requests: RequestTable | None = None
    format: Literal["parquet", "webdataset"] = "parquet"
    earlier: tuple[EarlierPlan, ...] = ()  # the plan before each extension

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels of every image."""
        return self.image_size, self.image_size, self.channels

    @property
    def num_extensions(self) -> int:
        """How often the folder was extended."""
        return len(self.earlier)

    @property
    def ends(self) -> tuple[int, ...]:
        """End id of each part. A part begins at the end of the previous one, with a new shard."""
        return *(part.num_samples for part in self.earlier), self.num_samples

    @property
    def num_shards(self) -> int:
        return self._shards(self.num_extensions + 1) if self.requests is None else self.requests.shards

    @property
    def first_new_shard(self) -> int:
        """The first shard that is in no earlier plan."""
        return self._shards(self.num_extensions)

    def _shards(self, parts: int) -> int:
        starts = (0, *self.ends)
        return sum(-(-(end - start) // self.shard_size) for start, end in zip(starts, self.ends[:parts], strict=False))

    def plan_of_shard(self, shard: int) -> str:
        """Fingerprint of the plan that added the shard; stored in the shard's marker."""
        for number, part in enumerate(self.earlier, start=1):
            if shard < self._shards(number):
                return part.plan
        return self.fingerprint

    def extended(self, num_samples: int) -> "SamplePlan":
        """The plan of an extension to `num_samples` samples."""
        here = EarlierPlan(plan=self.fingerprint, num_samples=self.num_samples)
        return self.model_copy(update={"num_samples": num_samples, "earlier": (*self.earlier, here)})

    @property
    def fingerprint(self) -> str:
        """sha256 (hex) of what decides the samples, without the model's URI and the stored copy of the request table.

        Fields in _ADDED_FIELDS count only when they differ from their default, so older plans keep their fingerprint.
        """
        values = self.model_dump(mode="json", exclude={"model_uri": True, "requests": {"file"}})
        return digest_of({k: v for k, v in values.items() if k not in _ADDED_FIELDS or v != _ADDED_FIELDS[k]})


_ADDED_FIELDS: dict[str, Any] = {
    **dict.fromkeys(("guidance", "guidance_interval", "labels", "null_label", "requests")),
    "format": "parquet",
    "earlier": [],
}
"""SamplePlan fields that older plans lack, with the default that means the same."""


class Marker(FileEntry):
    """`<samples>/commits/shard-N.json`, created once: names the only valid data file of shard N."""

    shard: int
    rows: int
    first_id: int
    last_id: int
    failed: int
    plan: str  # the plan's fingerprint
    attempt: str


class SampleManifest(Section):
    """`<samples>/manifest.json`, created once all shards have markers. An extension adds `manifest-000001.json`."""

    kind: Literal["samples"] = "samples"
    schema_version: int = SCHEMA_VERSION
    plan: str
    rows: int
    failed: int
    shards: tuple[Marker, ...]


class MergedPart(Section):
    """One samples folder inside a merged folder."""

    source: str  # URI of the original
    plan: str
    generation: int
    manifest_sha256: str  # of its newest manifest
    rows: int
    failed: int


class MergedManifest(Section):
    """`<merged>/merged.json`, created once when every part is complete."""

    kind: Literal["merged"] = "merged"
    schema_version: int = SCHEMA_VERSION
    parts: tuple[MergedPart, ...]
    rows: int
    failed: int

    @property
    def digest_of_parts(self) -> str:
        """sha256 (hex) of the parts in order, without their source URIs."""
        return digest_of([part.model_dump(mode="json", exclude={"source"}) for part in self.parts])
