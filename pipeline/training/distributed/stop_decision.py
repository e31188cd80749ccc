"""The ranks' common decision, about once a second, to continue or to stop after the same step."""

import time
from typing import Any

import ray
import ray.train
import torch
import torch.distributed as dist

from pipeline.training.distributed.coordinator import StepStatus, StopReason

CHECK_SECONDS = 1.0

WIRE_REASONS: tuple[StopReason | None, ...] = (None, *StopReason)
"""Rank 0 broadcasts an index into this tuple; None: continue."""


class StopDecision:
    """One collective at the steps where ranks check for a stop, and none at the steps in between.

    Rank 0 has the driver's request and measures the step rate, so rank 0 broadcasts both the decision and the next step
    to check at. All ranks then stop after the same step, and no other step waits for the host.
    """

    def __init__(self, coordinator: Any, rank: int, world_size: int, device: torch.device, step: int) -> None:
        self._coordinator, self._rank, self._world_size, self._device = coordinator, rank, world_size, device
        self._next = step + 1
        self._since = (step, time.monotonic())
        self._reply: Any = None

    def due(self, step: int) -> bool:
        """Whether the ranks check after this step."""
        return step >= self._next

    def decide(self, status: StepStatus) -> StopReason | None:
        """Every rank calls this at the same steps; only rank 0's status counts. None: continue."""
        index = WIRE_REASONS.index(self._driver_request(status) if self._rank == 0 else None)
        message = torch.tensor([index, status.step + self._steps_a_check(status.step)], device=self._device)
        if self._world_size > 1:
            dist.broadcast(message, src=0)
        index, self._next = message.tolist()
        reason = WIRE_REASONS[int(index)]
        if reason is not None:
            return reason
        # Ray Train broadcasts this from rank 0 through an actor, so every rank must call.
        return None if ray.train.get_preemption_info() is None else StopReason.PREEMPTED

    def _driver_request(self, status: StepStatus) -> StopReason | None:
        """The driver's answer to the previous status, if the answer has arrived: no step waits for an answer."""
        request: StopReason | None = None
        if self._reply is not None and ray.wait([self._reply], timeout=0)[0]:
            request = ray.get(self._reply)
            self._reply = None
        if self._reply is None:
            self._reply = self._coordinator.report.remote(status)
        return request

    def _steps_a_check(self, step: int) -> int:
        before, then = self._since
        now = time.monotonic()
        self._since = (step, now)
        return max(1, round(CHECK_SECONDS * (step - before) / max(now - then, 1e-6)))
