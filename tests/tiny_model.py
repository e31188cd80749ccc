"""A checkpoint with weights that were never trained but are not zero, for tests of what comes after training."""

import torch
from tiny_run import checkpoint_manifest

from pipeline.config.root import Config
from pipeline.model_store.checkpoint import checkpoint_key, write_checkpoint, write_tensors
from pipeline.model_store.manifest import RunPlan
from pipeline.storage.documents import to_json
from pipeline.storage.store import resolve
from pipeline.training.trainer import Trainer

SIZE, CHANNELS = 8, 1
SPREAD = 0.05


def write_model(uri: str, config: Config, step: int = 1, size: int = SIZE, channels: int = CHANNELS) -> str:
    """A run with one checkpoint; returns the checkpoint's URI."""
    run = resolve(uri, config.storage)
    trainer = Trainer(config, size, channels, torch.device("cpu"))
    generator = torch.Generator().manual_seed(step)
    for weights in (trainer.ema.shadow, dict(trainer.model.named_parameters())):
        for weight in weights.values():
            weight.data += SPREAD * torch.randn(weight.shape, generator=generator)
    run.create_once(
        "run.json",
        to_json(RunPlan(dataset_uri="d", dataset_digest="digest", config=config.model_dump(mode="json"))),
    )
    manifest = checkpoint_manifest(
        step,
        config,
        images=32 * step,
        dataset_digest="digest",
        image_size=size,
        channels=channels,
        lane_digests=(),
        files=write_tensors(run, step, trainer.tensors()),
    )
    write_checkpoint(run, manifest)
    return run.location(checkpoint_key(step))
