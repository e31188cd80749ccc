"""The documents of a generation job: its plan, a marker a shard, and the manifest that seals them.

None holds a time, a host or a credential, so equal inputs give equal documents and equal digests.
"""

from typing import Any, Literal

from pipeline.config.base import FileEntry, Section, digest_of
from pipeline.config.generation import LabelMix
from pipeline.schema import SCHEMA_VERSION

__all__ = ["Marker", "MergedManifest", "MergedPart", "PlanPart", "RequestTable", "SampleManifest", "SamplePlan"]


class PlanPart(Section):
    """An earlier plan of a job that was extended: its fingerprint, and how many samples the job had by then."""

    plan: str
    num_samples: int


class RequestTable(Section):
    """The request table of a job: what was given, and the checked copy of it that the job keeps."""

    source_sha256: str  # of the file as it was given
    rows: int
    shards: int
    file: FileEntry  # relative to the job, rows of schema.REQUESTS


class SamplePlan(Section):
    """`<job>/plan.json`: all that decides the bytes of a job's samples. Of an extension: `plan-000001.json`."""

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
    compile: bool = False  # compiled kernels round differently, so it is part of what decides the bytes
    image_size: int
    channels: int
    num_classes: int | None
    diffusion: dict[str, Any]
    guidance: float | None = None
    guidance_interval: tuple[int, int] | None = None  # timestep indices, both included
    labels: LabelMix | None = None  # None: every class in turn
    requests: RequestTable | None = None
    format: Literal["parquet", "webdataset"] = "parquet"
    earlier: tuple[PlanPart, ...] = ()  # what the job was before each extension

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels of every image."""
        return self.image_size, self.image_size, self.channels

    @property
    def generation(self) -> int:
        """How often the job was extended."""
        return len(self.earlier)

    @property
    def ends(self) -> tuple[int, ...]:
        """Where the samples of each part end; a part begins where the one before ends, and with a new shard."""
        return *(part.num_samples for part in self.earlier), self.num_samples

    @property
    def num_shards(self) -> int:
        return self._shards(self.generation + 1) if self.requests is None else self.requests.shards

    @property
    def first_new_shard(self) -> int:
        """The first shard that no earlier plan had."""
        return self._shards(self.generation)

    def _shards(self, parts: int) -> int:
        starts = (0, *self.ends)
        return sum(-(-(end - start) // self.shard_size) for start, end in zip(starts, self.ends[:parts], strict=False))

    def planner(self, shard: int) -> str:
        """Fingerprint of the plan that a shard is of, which its marker carries."""
        for number, part in enumerate(self.earlier, start=1):
            if shard < self._shards(number):
                return part.plan
        return self.fingerprint

    def extended(self, num_samples: int) -> "SamplePlan":
        """The plan of the same job with more samples."""
        here = PlanPart(plan=self.fingerprint, num_samples=self.num_samples)
        return self.model_copy(update={"num_samples": num_samples, "earlier": (*self.earlier, here)})

    def alone(self) -> "SamplePlan":
        """The plan of a job that was made with this many samples from the start: what a command line asks for."""
        return self.model_copy(update={"earlier": ()})

    @property
    def fingerprint(self) -> str:
        """sha256 (hex) of what decides the samples: not where the model lay, nor how the request table was copied.

        What older plans had no field for is not in theirs.
        """
        values = self.model_dump(mode="json", exclude={"model_uri": True, "requests": {"file"}})
        return digest_of({name: v for name, v in values.items() if name not in _LATER or v != _LATER[name]})


_LATER: dict[str, Any] = {
    **dict.fromkeys(("guidance", "guidance_interval", "labels", "requests")),
    "format": "parquet",
    "earlier": [],
}
"""Fields of a SamplePlan that older plans have not, with the value that says the same."""


class Marker(FileEntry):
    """`<job>/commits/shard-N.json`, created once: names the one data file of shard N."""

    shard: int
    rows: int
    first_id: int
    last_id: int
    failed: int
    plan: str  # the plan's fingerprint
    attempt: str


class SampleManifest(Section):
    """`<job>/manifest.json`, created once when every shard has its marker. Of an extension: `manifest-000001.json`."""

    kind: Literal["samples"] = "samples"
    schema_version: int = SCHEMA_VERSION
    plan: str
    rows: int
    failed: int
    shards: tuple[Marker, ...]


class MergedPart(Section):
    """One job inside a merged folder."""

    source: str  # where it was copied from
    plan: str
    generation: int
    manifest_sha256: str  # of its newest manifest
    rows: int
    failed: int


class MergedManifest(Section):
    """`<merged>/merged.json`, created once when every part is there."""

    kind: Literal["merged"] = "merged"
    schema_version: int = SCHEMA_VERSION
    parts: tuple[MergedPart, ...]
    rows: int
    failed: int

    @property
    def digest_of_parts(self) -> str:
        """sha256 (hex) of what is merged, in order, wherever it was."""
        return digest_of([part.model_dump(mode="json", exclude={"source"}) for part in self.parts])
