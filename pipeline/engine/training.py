"""Optimisation of the denoiser: one global batch a step, the same step for any number of workers.

Everything random about a training image (timestep, noise, flip, dropout) is a function of (seed, epoch, sample id),
so it does not matter which worker handles it, or how often the run was restarted.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from pipeline.config import Config, TrainConfig
from pipeline.diffusion.importance import ImportanceTimesteps, LossTally
from pipeline.diffusion.noise import integers, normal, stream_key, uniform
from pipeline.diffusion.objective import Objective
from pipeline.engine.labels import training_labels
from pipeline.models.dropout import DropoutKey
from pipeline.models.ema import Ema
from pipeline.models.unet import UNet, init_weights

__all__ = ["Inputs", "MicroBatch", "StepResult", "Trainer", "learning_rate", "training_inputs"]

EMA = "ema"
"""Name of the averaged weights in checkpoints."""
TIMESTEPS = "timesteps"
"""What importance sampling knows, in checkpoints."""
MOMENTS = ("exp_avg", "exp_avg_sq")
"""What Adam remembers of a parameter, besides its step count."""


@dataclass(frozen=True)
class MicroBatch:
    """x_0 float32 [B, C, H, W] in [-1, 1]; ids int64 [B]; labels int64 [B] or None; the epoch they are drawn in."""

    x_0: Tensor
    ids: Tensor
    labels: Tensor | None
    epoch: int


@dataclass(frozen=True)
class StepResult:
    """loss: this worker's mean over its micro-batches, a 0-d tensor; grad_norm: global, before clipping, 0-d."""

    loss: Tensor
    grad_norm: Tensor
    lr: float


def learning_rate(config: TrainConfig, step: int) -> float:
    """Linear warm-up to `lr` over `warmup_steps`; `step` counts from 0."""
    return config.lr * min(1.0, (step + 1) / max(config.warmup_steps, 1))


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
    """Functions of (seed, epoch, sample id), and of what importance sampling has learned so far if it is used."""
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


class Trainer:
    """The model, its average and its optimiser, advanced one global batch at a time.

    wrap: makes the module that gradients flow through, e.g. DistributedDataParallel; the identity when alone.
    all_reduce: sums a tensor over the workers, in place; nothing to do when alone.
    """

    def __init__(
        self,
        config: Config,
        image_size: int,
        channels: int,
        device: torch.device,
        wrap: Callable[[nn.Module], nn.Module] = lambda model: model,
        all_reduce: Callable[[Tensor], object] = lambda tensor: None,
    ) -> None:
        self.config = config
        self.importance: ImportanceTimesteps | None = None
        if config.diffusion.timestep_sampling == "importance":
            self.importance = ImportanceTimesteps.fresh(config.diffusion.num_timesteps).to(device)
        self._tallies: list[LossTally] = []
        self._all_reduce = all_reduce
        self.objective = Objective(config.diffusion, channels)
        model = UNet(config.model, channels, self.objective.out_channels, image_size)
        init_weights(model, config.train.seed)
        self.model = model.to(device)
        # Grids go on with the plain module: compiling a second time for them would cost more than it saves.
        compiled = torch.compile(self.model, dynamic=False) if config.train.compile else self.model
        self.network = wrap(cast(nn.Module, compiled))
        self.ema = Ema(self.model, config.train.ema.decay, config.train.ema.warmup)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=config.train.lr,
            betas=(config.train.adam_beta1, config.train.adam_beta2),
            weight_decay=config.train.weight_decay,
            fused=True,
        )
        self.steps_done = 0

    def step(self, batches: Sequence[MicroBatch]) -> StepResult:
        """One optimiser step on this worker's micro-batches of a global batch; no host synchronisation."""
        lr = learning_rate(self.config.train, self.steps_done)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)
        self.network.train()
        loss = torch.zeros((), device=next(self.model.parameters()).device)
        for number, batch in enumerate(batches, start=1):
            with nullcontext() if number == len(batches) else self._without_sync():
                part = self._loss(batch) / len(batches)
                part.backward()  # type: ignore[no-untyped-call]
            loss += part.detach()
        grad_norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.config.train.grad_clip)
        self.optimizer.step()
        self.steps_done += 1
        self.ema.update(self.steps_done)
        self._learn_importance()
        return StepResult(loss, grad_norm.detach(), lr)

    def _loss(self, batch: MicroBatch) -> Tensor:
        num_timesteps = self.config.diffusion.num_timesteps
        inputs = training_inputs(batch, self.config.train, num_timesteps, self.importance)
        labels = training_labels(batch.labels, batch.ids, batch.epoch, self.config)
        dropout_key = inputs.dropout if self.config.model.dropout > 0 else None

        def denoiser(x_t: Tensor, at: Tensor) -> Tensor:
            out: Tensor = self.network(x_t, at, labels, dropout_key)
            return out

        losses = self.objective(denoiser, inputs.x_0, inputs.t, inputs.eps)
        if inputs.weight is None:
            return losses.mean()
        self._tallies.append(LossTally.of(inputs.t, losses, num_timesteps))
        return (losses * inputs.weight).mean()

    def _learn_importance(self) -> None:
        """Every worker absorbs the losses of the whole global batch, so that all go on drawing alike."""
        if self.importance is not None:
            count = torch.stack([tally.count for tally in self._tallies]).sum(0)
            square_sum = torch.stack([tally.square_sum for tally in self._tallies]).sum(0)
            self._tallies.clear()
            for tensor in (count, square_sum):
                self._all_reduce(tensor)
            self.importance = self.importance.absorb(LossTally(count, square_sum))

    def _without_sync(self) -> AbstractContextManager[None]:
        no_sync = getattr(self.network, "no_sync", None)
        return nullcontext() if no_sync is None else no_sync()

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Everything that a checkpoint holds besides its manifest: file stem -> named tensors."""
        names = {id(p): name for name, p in self.model.named_parameters()}
        optimizer = {
            f"{names[id(p)]}.{key}": value for p, state in self.optimizer.state.items() for key, value in state.items()
        }
        groups = {"model": dict(self.model.state_dict()), EMA: dict(self.ema.shadow), "optimizer": optimizer}
        if self.importance is not None:
            groups[TIMESTEPS] = {"seen": self.importance.seen, "mean_square": self.importance.mean_square}
        return groups

    def load(self, tensors: dict[str, dict[str, Tensor]], steps_done: int) -> None:
        """Take the place that `tensors()` described, `steps_done` steps into the run."""
        self.model.load_state_dict(tensors["model"])
        self.ema.load(tensors[EMA])
        state = tensors["optimizer"]
        for name, parameter in self.model.named_parameters():
            moments = {key: torch.empty_like(parameter).copy_(state[f"{name}.{key}"]) for key in MOMENTS}
            self.optimizer.state[parameter] = {"step": state[f"{name}.step"].clone(), **moments}
        if self.importance is not None:
            device = self.importance.seen.device
            self.importance = ImportanceTimesteps(**tensors[TIMESTEPS]).to(device)
        self.steps_done = steps_done
