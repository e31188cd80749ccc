"""Optimisation of the denoiser, one global batch a step; the number of workers does not change the step."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipeline.config.root import Config
from pipeline.config.training import TrainConfig
from pipeline.diffusion.importance_sampling import ImportanceTimesteps, LossTally
from pipeline.diffusion.objective import Objective
from pipeline.diffusion.reverse_process import split
from pipeline.models.ema import Ema
from pipeline.models.unet import UNet, init_weights
from pipeline.training.inputs import Inputs, MicroBatch, training_inputs, training_labels
from pipeline.training.parallel import (
    discard_gathered,
    full_tensor,
    gradient_sync,
    is_sharded,
    local_shard,
    parallelise,
)
from pipeline.training.precision import Precision

EMA = "ema"
"""Name of the main average in checkpoints."""
SCALER = "scaler"
"""Name of the loss scaler's state (fp16) in checkpoints."""
TIMESTEPS = "timesteps"
"""Name of the state of importance sampling in checkpoints."""
MOMENTS = ("exp_avg", "exp_avg_sq")
"""Adam's state of a parameter, besides the step count."""
TENTHS = 10
"""Bins of 0..T-1 in which losses are reported."""


@dataclass(frozen=True)
class StepResult:
    """One worker's results of one step; tensors stay on the device.

    loss: 0-d; its mean over the workers is the mean over the global batch. grad_norm: of the full gradient before
    clipping, 0-d, equal on all workers; not finite when fp16 skips the step.
    loss_by_t, count_by_t: float64 [10], loss sums and numbers of this worker's images by tenth of 0..T-1. The loss
    here is the unweighted MSE of the prediction; with objective "bound" it is the objective itself.
    own_seconds: host time before the last backward pass, in which workers begin to wait for each other (with fsdp they
    also wait earlier).
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
    """Model, weight averages and optimiser, advanced one global batch at a time.

    world_size: workers in the default process group, each with its lanes of every global batch.
    all_reduce: sums a tensor over the workers, in place; the default suits a single worker.
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
        """Names of all averages, the main one first; also groups of `tensors()`."""
        return tuple(self.averages)

    # --- a step ------------------------------------------------------------------------------------------------------

    def step(self, batches: Sequence[MicroBatch], total: int | None = None) -> StepResult:
        """One optimiser step on this worker's micro-batches (at least one) of a global batch, without a host sync.

        All micro-batches have equal size. total: micro-batches of all workers together; by default train.lanes, or
        with one worker `len(batches)`. Workers may have unequal numbers: the gradient is of the mean over all images.
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
        # With fsdp all workers run the network together: one with fewer micro-batches repeats its last with weight 0.
        rounds = math.ceil(total / self.world_size) if is_sharded(self.model) else len(batches)
        for number in range(rounds):
            with gradient_sync(self.model, self.network, last=number == rounds - 1):
                counts = number < len(batches)
                # DDP averages over the W workers, so weight W / total here gives 1 / total in the global mean.
                part = self._loss(batches[min(number, len(batches) - 1)], by_t if counts else None)
                part = part / (total / self.world_size) if counts else 0.0 * part
                own_seconds = time.perf_counter() - began
                self.precision.backward(part)
            loss += part.detach()
        self.precision.unscale(self.optimizer)
        grad_norm = full_tensor(nn.utils.clip_grad_norm_(self.model.parameters(), self.config.train.grad_clip).detach())
        self.precision.step(self.optimizer)
        self.steps_done += 1
        for average in self.averages.values():
            average.update(self.steps_done)
        self._learn_importance()
        return StepResult(loss, grad_norm, lr, by_t[0], by_t[1], own_seconds)

    def _loss(self, batch: MicroBatch, by_t: Tensor | None) -> Tensor:
        """Mean loss of one micro-batch. Adds losses by timestep to `by_t`, float64 [2, 10]: sums and counts.

        Without `by_t` neither the loss statistics nor importance sampling see this micro-batch.
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
        """Losses for `loss_by_t`, [B]: without the weights and terms that an objective may add to the MSE."""
        diffusion, objective = self.config.diffusion, self.objective
        if diffusion.objective == "bound" or (diffusion.objective == "simple" and diffusion.min_snr_gamma is None):
            return losses
        target = objective.process.target(diffusion.prediction, inputs.x_0, x_t, inputs.t, inputs.eps)
        return (split(out, objective.num_channels)[0] - target).square().flatten(1).mean(1)

    def _learn_importance(self) -> None:
        """Update importance sampling from the losses of all workers, so that its state stays equal on all workers."""
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
        """The network with the weights of an average, in evaluation mode; restores its own weights afterwards.

        With fsdp a collective: all workers enter together and call the network equally often.
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
        """Weights that must be bit-identical on all workers; empty with fsdp."""
        return {} if is_sharded(self.model) else {name: p.detach() for name, p in self.model.named_parameters()}

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Full tensors of a checkpoint: file stem -> named tensors.

        These are the trainer's own tensors, which the next step changes. With fsdp a collective: every worker must
        call, and the tensors are copies in host memory.
        """
        names = {id(p): name for name, p in self.model.named_parameters()}
        optimizer = {
            f"{names[id(p)]}.{key}": value for p, state in self.optimizer.state.items() for key, value in state.items()
        }
        averages = {name: average.shadow for name, average in self.averages.items()}
        groups = {"model": self.model.state_dict(), **averages, "optimizer": optimizer}
        if is_sharded(self.model):
            groups = {group: {name: full_tensor(t).cpu() for name, t in part.items()} for group, part in groups.items()}
        if self.importance is not None:
            groups[TIMESTEPS] = {"seen": self.importance.seen, "mean_square": self.importance.mean_square}
        scaler = self.precision.tensors()
        return {**groups, SCALER: scaler} if scaler else groups

    def load(self, tensors: dict[str, dict[str, Tensor]], steps_done: int) -> None:
        """Restore the state that `tensors()` returned after `steps_done` steps, on any number of workers."""
        self._load_weights(tensors["model"])
        for name, average in self.averages.items():
            average.load(self._local_shards(tensors[name]))
        state = tensors["optimizer"]
        for name, parameter in self.model.named_parameters():
            moments = {
                key: torch.empty_like(parameter).copy_(local_shard(parameter, state[f"{name}.{key}"]))
                for key in MOMENTS
            }
            self.optimizer.state[parameter] = {"step": state[f"{name}.step"].to(self.device, copy=True), **moments}
        if self.importance is not None:
            self.importance = ImportanceTimesteps(**tensors[TIMESTEPS]).to(self.device)
        self.precision.load(tensors.get(SCALER, {}))
        self.steps_done = steps_done

    def start_from(self, weights: Mapping[str, Tensor]) -> None:
        """Warm start: set the model and every average to `weights`, named like the model's parameters."""
        self._load_weights(weights)
        for average in self.averages.values():
            average.restart()

    def _load_weights(self, weights: Mapping[str, Tensor]) -> None:
        self.model.load_state_dict(self._local_shards(weights))

    def _local_shards(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """This worker's shards of full tensors that are named like the model's parameters."""
        mine = dict(self.model.named_parameters())
        return {name: local_shard(mine[name], value) if name in mine else value for name, value in values.items()}
