"""Inputs of a training step: images and their random draws.

Timestep, noise, flip and dropout of an image are functions of (seed, epoch, sample id), so workers and restarts do not
change them.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.config.root import Config
from pipeline.config.training import TrainConfig
from pipeline.diffusion.importance_sampling import ImportanceTimesteps
from pipeline.diffusion.noise import integers, normal, stream_key, uniform
from pipeline.models.dropout import DropoutKey


@dataclass(frozen=True)
class MicroBatch:
    """x_0 float32 [B, C, H, W] in [-1, 1]; sample ids int64 [B]; labels int64 [B] or None; the epoch."""

    x_0: Tensor
    ids: Tensor
    labels: Tensor | None
    epoch: int


@dataclass(frozen=True)
class Inputs:
    """x_0, possibly flipped; t int64 [B] and the weight [B] of its loss (None: all 1); eps like x_0; dropout key."""

    x_0: Tensor
    t: Tensor
    weight: Tensor | None
    eps: Tensor
    dropout: DropoutKey


def training_inputs(
    batch: MicroBatch, config: TrainConfig, num_timesteps: int, importance: ImportanceTimesteps | None = None
) -> Inputs:
    """Draw the inputs of a step. With importance sampling, timesteps also depend on the losses of earlier steps."""
    x_0, ids, epoch = batch.x_0, batch.ids, batch.epoch
    if config.flip:
        flipped = uniform(stream_key(config.seed, "flip"), ids, epoch, 1)[:, 0] < 0.5
        x_0 = torch.where(flipped[:, None, None, None], x_0.flip(-1), x_0)
    key, weight = stream_key(config.seed, "t"), None
    if importance is None:
        t = integers(key, ids, epoch, num_timesteps)
    else:
        t, weight = importance.draw(uniform(key, ids, epoch, 1)[:, 0])
    eps = normal(stream_key(config.seed, "eps"), ids, epoch, tuple(x_0.shape[1:]))
    return Inputs(x_0, t, weight, eps, DropoutKey(ids, stream_key(config.seed, "dropout"), epoch))


def training_labels(labels: Tensor | None, ids: Tensor, epoch: int, config: Config) -> Tensor | None:
    """int64 [B] in 0..num_classes, where num_classes means "no label"; None for a network without classes.

    labels, ids: int64 [B]; a negative label means that the image has none. Which labels are dropped
    (train.label_dropout, Ho & Salimans 2022, Algorithm 1) is a function of (seed, epoch, sample id).
    """
    null_label, share = config.model.num_classes, config.train.label_dropout
    if null_label is None or labels is None:
        return None
    dropped = labels < 0
    if share > 0:
        dropped |= uniform(stream_key(config.train.seed, "label"), ids, epoch, 1)[:, 0] < share
    return torch.where(dropped, null_label, labels)
