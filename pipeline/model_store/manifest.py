"""JSON documents of a training run: run.json (the plan), a manifest per checkpoint, _SUCCESS.json."""

from typing import Any, Literal

from pydantic import ValidationError

from pipeline.config.base import FileEntry, Section, digest_of
from pipeline.config.root import Config
from pipeline.schema import SCHEMA_VERSION

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
"""Settings of a run that may change on resume, since they do not influence the weights at any step."""


class CheckpointManifest(Section):
    """`<run>/checkpoints/step-N/manifest.json`."""

    kind: Literal["checkpoint"] = "checkpoint"
    schema_version: int = SCHEMA_VERSION
    step: int
    images: int
    epoch: int
    batches: int  # global batches of `epoch` done
    world_size: int
    dataset_digest: str
    image_size: int
    channels: int
    classes: tuple[str, ...] | None
    config: dict[str, Any]
    config_digest: str
    lane_digests: tuple[str, ...]  # running sha256 of the sample ids delivered by each lane
    metric_parts: tuple[FileEntry, ...]  # relative to the run
    ema: tuple[str, ...]  # names of the averaged weights
    loss: float | None = None  # mean over the steps since the previous checkpoint
    files: tuple[FileEntry, ...]

    @property
    def batch_digest(self) -> str:
        """sha256 (hex) of the ids of all global batches so far; the same for any number of workers."""
        return digest_of(list(self.lane_digests))


def _with_defaults(config: dict[str, Any]) -> dict[str, Any]:
    """A stored configuration with defaults for settings added since, so that an older run can resume."""
    try:
        return Config.model_validate(config).model_dump(mode="json")
    except ValidationError:
        return config


class RunPlan(Section):
    """`<run>/run.json`, created once: dataset and configuration of the run."""

    kind: Literal["run"] = "run"
    schema_version: int = SCHEMA_VERSION
    dataset_uri: str
    dataset_digest: str
    config: dict[str, Any]
    init_digest: str | None = None  # digest of the weights of a warm start (train.init_from)

    def differences(self, other: "RunPlan") -> list[str]:
        """Dotted names of the settings that decide the weights and differ between the two plans."""
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
    """`<run>/_SUCCESS.json`: the run completed all its steps."""

    kind: Literal["success"] = "success"
    step: int
    images: int
    checkpoint: str  # relative to the run
    batch_digest: str
    config_digest: str
