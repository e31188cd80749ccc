"""What all ranks decide together, about once a second: whether to go on."""

import time
from typing import Any

import ray
import ray.train
import torch
import torch.distributed as dist

from pipeline.training.distributed.coordinator import StepStatus, StopReason

__all__ = ["StopSignal"]

CHECK_SECONDS = 1.0


NUMBERED: tuple[StopReason | None, ...] = (None, *StopReason)
"""As ranks tell each other; None: go on."""


class StopSignal:
    """Steps at which the ranks look up from their work; one collective at each, none in between.

    Rank 0 knows what the driver wants and how fast steps are, so it says both what to do and when to ask again: all
    ranks stop after the same step, and no step waits for the host.
    """

    def __init__(self, coordinator: Any, rank: int, world_size: int, device: torch.device, step: int) -> None:
        self._board, self._rank, self._world_size, self._device = coordinator, rank, world_size, device
        self._next = step + 1
        self._since = (step, time.monotonic())
        self._reply: Any = None

    def due(self, step: int) -> bool:
        """Whether the ranks look up after this step."""
        return step >= self._next

    def decide(self, reading: StepStatus) -> StopReason | None:
        """Called by every rank at the same steps; only rank 0's reading counts. None: go on."""
        wish = NUMBERED.index(self._wish(reading) if self._rank == 0 else None)
        message = torch.tensor([wish, reading.step + self._steps_a_check(reading.step)], device=self._device)
        if self._world_size > 1:
            dist.broadcast(message, src=0)
        wish, self._next = message.tolist()
        reason = NUMBERED[int(wish)]
        if reason is not None:
            return reason
        # A broadcast from rank 0 through an actor, hence every rank asks.
        return None if ray.train.get_preemption_info() is None else StopReason.PREEMPTED

    def _wish(self, reading: StepStatus) -> StopReason | None:
        """The driver's answer to the reading before: nobody waits for it."""
        wish: StopReason | None = None
        if self._reply is not None and ray.wait([self._reply], timeout=0)[0]:
            wish = ray.get(self._reply)
            self._reply = None
        if self._reply is None:
            self._reply = self._board.show.remote(reading)
        return wish

    def _steps_a_check(self, step: int) -> int:
        before, then = self._since
        now = time.monotonic()
        self._since = (step, now)
        return max(1, round(CHECK_SECONDS * (step - before) / max(now - then, 1e-6)))
