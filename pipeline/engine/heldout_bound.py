"""Held-out images and a network to bits per dimension: the variational bound, an image a value."""

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.config import DiffusionConfig
from pipeline.diffusion.likelihood import bits_per_dim
from pipeline.diffusion.noise import SampleNoise
from pipeline.diffusion.objective import Objective
from pipeline.engine.generation import plan_denoiser
from pipeline.engine.images import to_model
from pipeline.engine.png import Pixels
from pipeline.manifests import SamplePlan
from pipeline.models.unet import UNet

__all__ = ["heldout_bound"]


def heldout_bound(
    unet: UNet, plan: SamplePlan, images: Pixels, ids: NDArray[np.int64], labels: NDArray[np.int64] | None, seed: int
) -> NDArray[np.float64]:
    """Upper bounds on -log2 p(x_0) a dimension, float64 [B], of images uint8 [B, H, W, C]: T network calls.

    The noise of a row depends on (seed, id) alone. A class-conditional model is told the `labels` int64 [B]; without
    any it is asked for the unlabelled score. Guidance is no part of the model's likelihood.
    """
    x_0 = to_model(images)
    noise = SampleNoise(seed, torch.from_numpy(ids), tuple(x_0.shape[1:]))
    told = None
    if plan.num_classes is not None:
        null = np.full(len(ids), plan.num_classes, np.int64)
        told = torch.from_numpy(null if labels is None else labels.astype(np.int64))
    objective = Objective(DiffusionConfig.model_validate(plan.diffusion), plan.channels)
    return np.asarray(bits_per_dim(objective, plan_denoiser(unet, plan, told, None), x_0, noise).total.numpy())
