"""JSON documents of a training run: its plan, its checkpoints, its success.

None holds a time, a host or a credential, so equal inputs give equal documents and equal digests.
"""

from typing import Any, Literal

from pydantic import ValidationError

from pipeline.config.base import FileEntry, Section, digest_of
from pipeline.config.root import Config
from pipeline.schema import SCHEMA_VERSION

__all__ = ["CheckpointManifest", "RunPlan", "RunSuccess"]


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
