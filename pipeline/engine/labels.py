"""Labels that a conditional network is trained with: some are withheld, so that it also learns to do without."""

import torch
from torch import Tensor

from pipeline.config import Config
from pipeline.diffusion.noise import stream_key, uniform

__all__ = ["training_labels"]


def training_labels(labels: Tensor | None, ids: Tensor, epoch: int, config: Config) -> Tensor | None:
    """int64 [B] in 0..num_classes, of which num_classes is "no label"; None for a network without classes.

    labels, ids: int64 [B]; a negative label is that of an image without one. Which labels are dropped
    (train.label_dropout, Ho & Salimans 2022, Algorithm 1) is a function of (seed, epoch, sample id).
    """
    null_label, share = config.model.num_classes, config.train.label_dropout
    if null_label is None or labels is None:
        return None
    dropped = labels < 0
    if share > 0:
        dropped |= uniform(stream_key(config.train.seed, "label"), ids, epoch, 1)[:, 0] < share
    return torch.where(dropped, null_label, labels)
