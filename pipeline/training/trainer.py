"""Optimisation of the denoiser: one global batch a step, the same step for any number of workers."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipeline.config.root import Config, TrainConfig
from pipeline.diffusion.importance_sampling import ImportanceTimesteps, LossTally
from pipeline.diffusion.objective import Objective
from pipeline.diffusion.reverse_process import split
from pipeline.models.ema import Ema
from pipeline.models.unet import UNet, init_weights
from pipeline.training.inputs import Inputs, MicroBatch, training_inputs, training_labels
from pipeline.training.parallel import discard_gathered, gradient_sync, is_split, parallelise, take, whole
from pipeline.training.precision import Precision

__all__ = ["EMA", "StepResult", "Trainer", "learning_rate"]

EMA = "ema"
"""Name of the main average in checkpoints."""
SCALER = "scaler"
"""What fp16 knows about its gradients, in checkpoints."""
TIMESTEPS = "timesteps"
"""What importance sampling knows, in checkpoints."""
MOMENTS = ("exp_avg", "exp_avg_sq")
"""What Adam remembers of a parameter, besides its step count."""
TENTHS = 10
"""Parts of 0..T-1 by which a step's errors are told."""


@dataclass(frozen=True)
class StepResult:
    """What one worker saw of one step; tensors stay on the device.

    loss: 0-d; summed over the workers and divided by their number it is the mean over the global batch. grad_norm: of
    the whole gradient before clipping, 0-d, the same on every worker; not finite when fp16 skips the step.
    loss_by_t, count_by_t: float64 [10], sums over this worker's images by tenth of 0..T-1, and their number. What is
    summed is the unweighted MSE of the prediction; with objective "bound" the loss itself.
    own_seconds: host time before the last backward pass, which is where workers begin to wait for each other (fsdp
    waits earlier, too).
    """

    loss: Tensor
    grad_norm: Tensor
    lr: float
    loss_by_t: Tensor
    count_by_t: Tensor
    own_seconds: float


def learning_rate(config: TrainConfig, step: int) -> float:
    """Linear warm-up to `lr` over `warmup_steps`; `step` counts from 0."""
    return config.lr * min(1.0, (step + 1) / max(config.warmup_steps, 1))


class Trainer:
    """The model, its averages and its optimiser, advanced one global batch at a time.

    world_size: workers of the default process group that train together, each with its lanes of every global batch.
    all_reduce: sums a tensor over them, in place; nothing to do when alone.
    """

    def __init__(
        self,
        config: Config,
        image_size: int,
        channels: int,
        device: torch.device,
        world_size: int = 1,
        all_reduce: Callable[[Tensor], object] = lambda tensor: None,
    ) -> None:
        self.config, self.world_size, self._all_reduce = config, world_size, all_reduce
        settings = config.train
        self.importance: ImportanceTimesteps | None = None
        if config.diffusion.timestep_sampling == "importance":
            self.importance = ImportanceTimesteps.fresh(config.diffusion.num_timesteps).to(device)
        self._tallies: list[LossTally] = []
        self.objective = Objective(config.diffusion, channels)
        model = UNet(config.model, channels, self.objective.out_channels, image_size)
        init_weights(model, settings.seed, settings.init)
        self.model = model.to(device)
        self.precision = Precision(settings.precision, device, self.model)
        self.network = parallelise(self.model, settings, world_size, device)
        self.averages = {
            name: Ema(self.model, kind, settings.global_batch)
            for name, kind in {EMA: settings.ema, **settings.more_ema}.items()
        }
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=settings.lr,
            betas=(settings.adam_beta1, settings.adam_beta2),
            weight_decay=settings.weight_decay,
            fused=True,
        )
        self.device = device
        self.steps_done = 0

    @property
    def ema(self) -> Ema:
        """The main average."""
        return self.averages[EMA]

    @property
    def ema_names(self) -> tuple[str, ...]:
        """Of all averages, the main one first: groups of `tensors()`."""
        return tuple(self.averages)

    # --- a step ------------------------------------------------------------------------------------------------------

    def step(self, batches: Sequence[MicroBatch], total: int | None = None) -> StepResult:
        """One optimiser step on this worker's micro-batches, at least one, of a global batch; the host never waits.

        All micro-batches have equal size. total: how many the workers have together; the default is train.lanes, or
        when alone as many as are given. Workers may have unequal numbers: the gradient is that of the mean over all.
        """
        began = time.perf_counter()
        if total is None:
            total = len(batches) if self.world_size == 1 else self.config.train.lanes
        lr = learning_rate(self.config.train, self.steps_done)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)
        self.network.train()
        loss = torch.zeros((), device=self.device)
        by_t = torch.zeros(2, TENTHS, dtype=torch.float64, device=self.device)
        # Workers of split weights run the network together: one with fewer micro-batches repeats its last for nothing.
        rounds = math.ceil(total / self.world_size) if is_split(self.model) else len(batches)
        for number in range(rounds):
            with gradient_sync(self.model, self.network, last=number == rounds - 1):
                counts = number < len(batches)
                # Workers' gradients are averaged, so a micro-batch has the weight W / lanes here and 1 / lanes there.
                part = self._loss(batches[min(number, len(batches) - 1)], by_t if counts else None)
                part = part / (total / self.world_size) if counts else 0.0 * part
                own_seconds = time.perf_counter() - began
                self.precision.backward(part)
            loss += part.detach()
        self.precision.unscale(self.optimizer)
        grad_norm = whole(nn.utils.clip_grad_norm_(self.model.parameters(), self.config.train.grad_clip).detach())
        self.precision.step(self.optimizer)
        self.steps_done += 1
        for average in self.averages.values():
            average.update(self.steps_done)
        self._learn_importance()
        return StepResult(loss, grad_norm, lr, by_t[0], by_t[1], own_seconds)

    def _loss(self, batch: MicroBatch, by_t: Tensor | None) -> Tensor:
        """Mean over one micro-batch; its errors by timestep are added to `by_t`, float64 [2, 10]: sums and counts.

        Without `by_t` nobody remembers that it was here.
        """
        num_timesteps = self.config.diffusion.num_timesteps
        inputs = training_inputs(batch, self.config.train, num_timesteps, self.importance)
        labels = training_labels(batch.labels, batch.ids, batch.epoch, self.config)
        dropout_key = inputs.dropout if self.config.model.dropout > 0 else None
        seen: list[Tensor] = []

        def denoiser(x_t: Tensor, at: Tensor) -> Tensor:
            with self.precision.forward():
                out: Tensor = self.network(x_t, at, labels, dropout_key)
            seen[:] = x_t, out.detach().float()
            return out.float()

        losses = self.objective(denoiser, inputs.x_0, inputs.t, inputs.eps)
        if by_t is not None:
            errors = self._errors(losses.detach(), inputs, *seen)
            tenth = inputs.t * TENTHS // num_timesteps
            by_t.index_add_(1, tenth, torch.stack([errors, torch.ones_like(errors)]).double())
            if self.importance is not None:
                self._tallies.append(LossTally.of(inputs.t, losses, num_timesteps))
        return (losses if inputs.weight is None else losses * inputs.weight).mean()

    def _errors(self, losses: Tensor, inputs: Inputs, x_t: Tensor, out: Tensor) -> Tensor:
        """What `loss_by_t` sums, [B]: the loss without the weights and terms that an objective may add to the MSE."""
        diffusion, objective = self.config.diffusion, self.objective
        if diffusion.objective == "bound" or (diffusion.objective == "simple" and diffusion.min_snr_gamma is None):
            return losses
        target = objective.process.target(diffusion.prediction, inputs.x_0, x_t, inputs.t, inputs.eps)
        return (split(out, objective.num_channels)[0] - target).square().flatten(1).mean(1)

    def _learn_importance(self) -> None:
        """Every worker absorbs the losses of the whole global batch, so that all go on drawing alike."""
        if self.importance is not None:
            count = torch.stack([tally.count for tally in self._tallies]).sum(0)
            square_sum = torch.stack([tally.square_sum for tally in self._tallies]).sum(0)
            self._tallies.clear()
            for tensor in (count, square_sum):
                self._all_reduce(tensor)
            self.importance = self.importance.absorb(LossTally(count, square_sum))

    # --- sampling while training -------------------------------------------------------------------------------------

    @contextmanager
    def averaged(self, name: str = EMA) -> Iterator[nn.Module]:
        """The network with the weights of an average, in evaluation mode; afterwards it has its own again.

        With fsdp every worker enters together and calls it equally often; otherwise one may do so alone.
        """
        self.model.eval()
        try:
            with self.averages[name].applied():
                discard_gathered(self.model)
                yield self.model
        finally:
            discard_gathered(self.model)

    # --- at rest -----------------------------------------------------------------------------------------------------

    def replica(self) -> dict[str, Tensor]:
        """Weights that must be equal on every worker, bit for bit; none when they are split."""
        return {} if is_split(self.model) else {name: p.detach() for name, p in self.model.named_parameters()}

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Everything that a checkpoint holds besides its manifest, whole: file stem -> named tensors.

        They are the trainer's own, which the next step changes. With fsdp every worker calls it together, and what it
        gets is in the host's memory.
        """
        names = {id(p): name for name, p in self.model.named_parameters()}
        optimizer = {
            f"{names[id(p)]}.{key}": value for p, state in self.optimizer.state.items() for key, value in state.items()
        }
        averages = {name: average.shadow for name, average in self.averages.items()}
        groups = {"model": self.model.state_dict(), **averages, "optimizer": optimizer}
        if is_split(self.model):
            groups = {group: {name: whole(t).cpu() for name, t in part.items()} for group, part in groups.items()}
        if self.importance is not None:
            groups[TIMESTEPS] = {"seen": self.importance.seen, "mean_square": self.importance.mean_square}
        scaler = self.precision.tensors()
        return {**groups, SCALER: scaler} if scaler else groups

    def load(self, tensors: dict[str, dict[str, Tensor]], steps_done: int) -> None:
        """Take the place that `tensors()` described, `steps_done` steps into the run, on any number of workers."""
        self._load_weights(tensors["model"])
        for name, average in self.averages.items():
            average.load(self._taken(tensors[name]))
        state = tensors["optimizer"]
        for name, parameter in self.model.named_parameters():
            moments = {
                key: torch.empty_like(parameter).copy_(take(parameter, state[f"{name}.{key}"])) for key in MOMENTS
            }
            self.optimizer.state[parameter] = {"step": state[f"{name}.step"].to(self.device, copy=True), **moments}
        if self.importance is not None:
            self.importance = ImportanceTimesteps(**tensors[TIMESTEPS]).to(self.device)
        self.precision.load(tensors.get(SCALER, {}))
        self.steps_done = steps_done

    def start_from(self, weights: Mapping[str, Tensor]) -> None:
        """Warm start: the model and every average begin at `weights`, named as the model's; nothing else changes."""
        self._load_weights(weights)
        for average in self.averages.values():
            average.restart()

    def _load_weights(self, weights: Mapping[str, Tensor]) -> None:
        self.model.load_state_dict(self._taken(weights))

    def _taken(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """This worker's part of tensors named as the model's parameters."""
        mine = dict(self.model.named_parameters())
        return {name: take(mine[name], value) if name in mine else value for name, value in values.items()}
