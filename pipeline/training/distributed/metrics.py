"""Step metrics of one rank since the last checkpoint, and their aggregation over all ranks."""

import time
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.config.training import TrainConfig
from pipeline.errors import PipelineError
from pipeline.training.distributed.coordinator import StepStatus
from pipeline.training.trainer import StepResult

Row = dict[str, Any]
SHOWN_IDS = 8
LOSS, WAIT, OWN = range(3)
"""Columns of the tensor that ranks exchange; ten loss sums and ten counts by timestep follow."""
TENTHS = 10


@dataclass(frozen=True)
class StepInfo:
    """Position of a step, its times on this rank, and the sample ids (int64 [B]) of this rank's images."""

    step: int
    epoch: int
    batch: int
    ids: Tensor
    waited: float  # seconds of waiting for data
    seconds: float  # of the whole step


@dataclass
class _Window:
    """Sums since the last status report."""

    began: float = field(default_factory=time.monotonic)
    steps: int = 0
    waited: float = 0.0


class MetricsRecorder:
    """Collects results of steps as tensors on the device, so that no step waits for the host."""

    def __init__(self, settings: TrainConfig, rank: int, world_size: int, device: torch.device) -> None:
        self._settings, self._rank, self._world_size, self._device = settings, rank, world_size, device
        self._infos: list[StepInfo] = []
        self._results: list[StepResult] = []
        self._checked = 0
        self._since = _Window()

    def __len__(self) -> int:
        return len(self._infos)

    def add(self, info: StepInfo, result: StepResult) -> None:
        """Add one step."""
        self._infos.append(info)
        self._results.append(result)
        self._since.steps += 1
        self._since.waited += info.waited

    def status(self) -> StepStatus:
        """Rates over the steps since the last call; the loss is this rank's share of the last step."""
        last, since = self._infos[-1], self._since
        seconds = max(time.monotonic() - since.began, 1e-9)
        self._since = _Window()
        return StepStatus(
            step=last.step,
            epoch=last.epoch,
            loss=float(self._results[-1].loss),
            images_per_second=since.steps * self._settings.global_batch / seconds,
            data_wait_share=since.waited / seconds,
            world_size=self._world_size,
        )

    def check_finite(self) -> None:
        """Raises PipelineError naming the first step since the last check whose loss or gradient norm is not finite."""
        unchecked = self._results[self._checked :]
        if not unchecked:
            return
        losses = torch.stack([result.loss for result in unchecked])
        norms = torch.stack([result.grad_norm for result in unchecked])
        if self._settings.precision == "fp16":  # the gradient scaler already detects and skips overflow
            norms = torch.zeros_like(norms)
        bad = torch.stack([losses, norms]).isfinite().logical_not().any(0).nonzero()
        if len(bad):
            first = int(bad[0])
            raise self._not_finite(self._infos[self._checked + first], float(losses[first]), float(norms[first]))
        self._checked = len(self._results)

    def _not_finite(self, info: StepInfo, loss: float, norm: float) -> PipelineError:
        ids = info.ids.tolist()
        more = f" and {len(ids) - SHOWN_IDS} more" if len(ids) > SHOWN_IDS else ""
        return PipelineError(
            f"step {info.step} (epoch {info.epoch}, batch {info.batch}) has loss {loss}, gradient norm {norm} on "
            f"rank {self._rank}, whose images are sample ids {', '.join(map(str, ids[:SHOWN_IDS]))}{more}: lower "
            "train.lr or train.grad_clip, or look at these images; the last checkpoint is good"
        )

    def rows(self) -> list[Row]:
        """Rows of METRICS for the steps since the last call, equal on all ranks. A collective: every rank must call."""
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
                "step": info.step,
                "images": info.step * self._settings.global_batch,
                "epoch": info.epoch,
                "loss": losses[i],
                "lr": result.lr,
                "grad_norm": norms[i],
                "step_seconds": info.seconds,
                "data_wait_seconds": min(waits[i], info.seconds),
                "world_size": self._world_size,
                "skew_seconds": skews[i],
                "slowest_rank": slowest[i],
                "loss_by_t": by_t[i],
            }
            for i, (info, result) in enumerate(zip(self._infos, self._results, strict=True))
        ]
        self._infos, self._results, self._checked = [], [], 0
        return rows

    def _exchange(self) -> Tensor:
        """float64 [W, steps, 3 + 20] on the CPU: the measurements of every rank for every step."""
        times = torch.tensor(
            [[m.waited, r.own_seconds] for m, r in zip(self._infos, self._results, strict=True)],
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
