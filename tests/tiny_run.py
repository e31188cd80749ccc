"""What a run stores, without a run: a row of METRICS, a checkpoint's manifest."""

from typing import Any

from pipeline.config.root import Config
from pipeline.model_store.manifest import CheckpointManifest


def metric_row(step: int, **more: Any) -> dict[str, Any]:
    """One step of 8 images, as runs had it before columns were added."""
    return {
        "step": step,
        "images": step * 8,
        "epoch": 0,
        "loss": 1.0 / step,
        "lr": 1e-4,
        "grad_norm": 2.0,
        "step_seconds": 0.5,
        "data_wait_seconds": 0.125,
        "world_size": 2,
        **more,
    }


def checkpoint_manifest(step: int, config: Config | None = None, **fields: Any) -> CheckpointManifest:
    """Of 8x8x1 images in the first epoch of one worker, without files."""
    config = config or Config()
    defaults = {
        "images": step * 8,
        "epoch": 0,
        "batches": step,
        "world_size": 1,
        "dataset_digest": "d",
        "image_size": 8,
        "channels": 1,
        "classes": None,
        "config": config.model_dump(mode="json"),
        "config_digest": config.digest(),
        "lane_digests": ("a",),
        "metric_parts": (),
        "ema": ("ema",),
        "files": (),
    }
    return CheckpointManifest(step=step, **{**defaults, **fields})
