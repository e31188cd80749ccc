"""Trains a small model of 8x8 handwritten digits with the pipeline's trainer and writes a diffusers folder."""

import sys
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipeline.config.root import Config
from pipeline.images.convert import to_model
from pipeline.models.diffusers_format import model_files
from pipeline.training.data_plan import keyed_permutation
from pipeline.training.inputs import MicroBatch
from pipeline.training.trainer import Trainer

BATCH, STEPS = 64, 2000


def digits_config(*channels: int, conditional: bool) -> Config:
    """A U-Net with these channels a level and one layer a block, attention at half resolution."""
    model = {"block_out_channels": channels, "layers_per_block": 1, "attention_levels": [1], "norm_num_groups": 8}
    train = {"lanes": 1, "micro_batch": BATCH, "lr": 0.002, "warmup_steps": 100, "ema": {"decay": 0.998}}
    if conditional:
        model["num_classes"], train["label_dropout"] = 10, 0.1
    return Config.model_validate({"model": model, "train": train})


def train_digits(config: Config, folder: Path, steps: int = STEPS) -> str:
    """Path of a diffusers folder with the averaged weights; an existing folder is reused. One thread, a minute."""
    if (folder / "model_index.json").exists():
        return str(folder)
    data = load_digits()
    x_0 = to_model(np.rint(data.images * (255.0 / 16.0)).astype(np.uint8)[..., None])
    labels = torch.from_numpy(data.target).long()
    trainer, per_epoch = Trainer(config, 8, 1, torch.device("cpu")), len(x_0) // BATCH
    for step in range(steps):
        epoch, number = divmod(step, per_epoch)
        rows = torch.from_numpy(keyed_permutation(len(x_0), "rows", epoch)[number * BATCH : (number + 1) * BATCH])
        trainer.step([MicroBatch(x_0[rows], rows, labels[rows], epoch)])
    trainer.ema.copy_to(trainer.model)
    files = model_files(trainer.model, config.diffusion, label_dropout=config.train.label_dropout)
    for name in sorted(files, key=lambda name: name == "model_index.json"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(files[name])
    return str(folder)
