"""What happened on one rank since the last checkpoint, and what all ranks make of it together."""

import time
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.config.root import TrainConfig
from pipeline.errors import PipelineError
from pipeline.training.distributed.coordinator import StepStatus
from pipeline.training.trainer import StepResult

__all__ = ["MetricsRecorder", "StepInfo"]

Row = dict[str, Any]
SHOWN_IDS = 8
LOSS, WAIT, OWN = range(3)
"""Columns of the table that ranks exchange; ten sums of losses and ten counts by timestep follow."""
TENTHS = 10


@dataclass(frozen=True)
class StepInfo:
    """Where a step stood, and the ids (int64 [B]) of the images that this rank gave it."""

    step: int
    epoch: int
    batch: int
    ids: Tensor
    waited: float  # seconds, for data
    seconds: float  # all of the step


@dataclass
class _Since:
    """Sums since the reading before."""

    began: float = field(default_factory=time.monotonic)
    steps: int = 0
    waited: float = 0.0


class MetricsRecorder:
    """Keeps tensors on the device until somebody asks: a step waits for no number."""

    def __init__(self, settings: TrainConfig, rank: int, world_size: int, device: torch.device) -> None:
        self._settings, self._rank, self._world_size, self._device = settings, rank, world_size, device
        self._moments: list[StepInfo] = []
        self._results: list[StepResult] = []
        self._checked = 0
        self._since = _Since()

    def __len__(self) -> int:
        return len(self._moments)

    def add(self, moment: StepInfo, result: StepResult) -> None:
        """One step."""
        self._moments.append(moment)
        self._results.append(result)
        self._since.steps += 1
        self._since.waited += moment.waited

    def reading(self) -> StepStatus:
        """Of the steps since the reading before; the loss is this rank's share of the last step."""
        last, since = self._moments[-1], self._since
        seconds = max(time.monotonic() - since.began, 1e-9)
        self._since = _Since()
        return StepStatus(
            step=last.step,
            epoch=last.epoch,
            loss=float(self._results[-1].loss),
            images_per_second=since.steps * self._settings.global_batch / seconds,
            data_wait_share=since.waited / seconds,
            world_size=self._world_size,
        )

    def check_finite(self) -> None:
        """Raises PipelineError naming the first step that was not finite since the last check: none may be stored."""
        unchecked = self._results[self._checked :]
        if not unchecked:
            return
        losses = torch.stack([result.loss for result in unchecked])
        norms = torch.stack([result.grad_norm for result in unchecked])
        if self._settings.precision == "fp16":  # its scaler looks for gradients that overflow, and skips them
            norms = torch.zeros_like(norms)
        bad = torch.stack([losses, norms]).isfinite().logical_not().any(0).nonzero()
        if len(bad):
            first = int(bad[0])
            raise self._not_finite(self._moments[self._checked + first], float(losses[first]), float(norms[first]))
        self._checked = len(self._results)

    def _not_finite(self, moment: StepInfo, loss: float, norm: float) -> PipelineError:
        ids = moment.ids.tolist()
        more = f" and {len(ids) - SHOWN_IDS} more" if len(ids) > SHOWN_IDS else ""
        return PipelineError(
            f"step {moment.step} (epoch {moment.epoch}, batch {moment.batch}) has loss {loss}, gradient norm {norm} on "
            f"rank {self._rank}, whose images are sample ids {', '.join(map(str, ids[:SHOWN_IDS]))}{more}: lower "
            "train.lr or train.grad_clip, or look at these images; the last checkpoint is good"
        )

    def rows(self) -> list[Row]:
        """METRICS of every step since the last call, the same on every rank; every rank calls it together."""
        self.check_finite()
        ranks = self._exchange()
        losses = (ranks[:, :, LOSS].sum(0) / self._world_size).tolist()
        norms = torch.stack([result.grad_norm for result in self._results]).tolist()
        waits = ranks[:, :, WAIT].amax(0).tolist()
        own = ranks[:, :, OWN]
        skews, slowest = (own.amax(0) - own.amin(0)).tolist(), own.argmax(0).tolist()
        by_tenth = ranks[:, :, OWN + 1 :].sum(0)
        sums, counts = by_tenth[:, :TENTHS], by_tenth[:, TENTHS:]
        by_t = [
            [None if n == 0 else total / n for total, n in zip(*pair, strict=True)]
            for pair in zip(sums.tolist(), counts.tolist(), strict=True)
        ]
        rows = [
            {
                "step": moment.step,
                "images": moment.step * self._settings.global_batch,
                "epoch": moment.epoch,
                "loss": losses[i],
                "lr": result.lr,
                "grad_norm": norms[i],
                "step_seconds": moment.seconds,
                "data_wait_seconds": min(waits[i], moment.seconds),
                "world_size": self._world_size,
                "skew_seconds": skews[i],
                "slowest_rank": slowest[i],
                "loss_by_t": by_t[i],
            }
            for i, (moment, result) in enumerate(zip(self._moments, self._results, strict=True))
        ]
        self._moments, self._results, self._checked = [], [], 0
        return rows

    def _exchange(self) -> Tensor:
        """float64 [W, steps, 3 + 20] on the CPU: what every rank saw of every step."""
        times = torch.tensor(
            [[m.waited, r.own_seconds] for m, r in zip(self._moments, self._results, strict=True)],
            dtype=torch.float64,
            device=self._device,
        )
        losses = torch.stack([result.loss for result in self._results]).double()[:, None]
        by_t = [torch.stack([getattr(r, name) for r in self._results]).double() for name in ("loss_by_t", "count_by_t")]
        mine = torch.cat([losses, times, *by_t], dim=1)
        ranks = [torch.empty_like(mine) for _ in range(self._world_size)]
        if self._world_size > 1:
            dist.all_gather(ranks, mine)
        else:
            ranks = [mine]
        return torch.stack(ranks).cpu()
