"""Network evaluations per sample, counted by running the sampler with a stub network."""

import torch
from torch import Tensor

from pipeline.config.model import DiffusionConfig
from pipeline.diffusion.objective import Objective
from pipeline.generation.generator import plan_denoiser, plan_sampler
from pipeline.generation.manifest import SamplePlan

__all__ = ["network_evaluations"]


class _ZeroNoise:
    """A NoiseSource of zeros: float32 [1, C, 1, 1]."""

    def __init__(self, channels: int) -> None:
        self._zeros = torch.zeros(1, channels, 1, 1)

    def initial(self) -> Tensor:
        return self._zeros

    def at(self, step: int) -> Tensor:
        return self._zeros


def network_evaluations(plan: SamplePlan) -> int:
    """Images that pass through the network to make one sample of the plan.

    Heun's two calls a step count twice, and so does a guided step. Raises ConfigError as `plan_sampler` does.
    """
    evaluations = 0
    out_channels = Objective(DiffusionConfig.model_validate(plan.diffusion), plan.channels).out_channels

    def network(x_t: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        nonlocal evaluations
        evaluations += len(x_t)
        return torch.zeros(len(x_t), out_channels, 1, 1)

    labels = None if plan.num_classes is None else torch.zeros(1, dtype=torch.int64)
    denoiser = plan_denoiser(network, plan, labels, plan.guidance)
    for _ in plan_sampler(plan).run(denoiser, _ZeroNoise(plan.channels)):
        pass
    return evaluations
