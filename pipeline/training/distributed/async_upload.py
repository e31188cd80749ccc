"""Writes beside the work: a checkpoint goes to the store while training goes on."""

import threading
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

__all__ = ["Uploads", "snapshot"]


def snapshot(tensors: Mapping[str, Mapping[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
    """Contiguous copies on the CPU, without gradient, that share no memory with the live tensors or each other."""
    return {
        group: {
            name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
            for name, tensor in members.items()
        }
        for group, members in tensors.items()
    }


class Uploads:
    """At most one job at a time on a thread of its own, in the order of `submit`.

    Memory is bounded by one job's data: call `wait` before the next `snapshot` is taken, and there is one copy. A
    job's error is raised once, in the next `submit`, `wait` or `poll`. Leaving the block waits for the last job and
    raises its error; when the block itself failed, it waits for `grace_seconds` at most and raises nothing.
    """

    def __init__(self, grace_seconds: float = 10.0) -> None:
        self._grace_seconds = grace_seconds
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def submit(self, job: Callable[[], None]) -> None:
        """Begin `job` when the one before is done. Raises that one's error, and then begins nothing."""
        self.wait()
        # A daemon, so that a process whose work failed does not stay for a store that is away.
        self._thread = threading.Thread(target=self._run, args=(job,), name="ddpm-upload", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Until no job is under way. Raises the last one's error."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def poll(self) -> bool:
        """True when no job is under way; never waits. Raises the error of one that ended."""
        if self._thread is not None and self._thread.is_alive():
            return False
        self.wait()
        return True

    def _run(self, job: Callable[[], None]) -> None:
        try:
            job()
        except BaseException as error:
            self._error = error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        if kind is None:
            self.wait()
        elif self._thread is not None:
            self._thread.join(self._grace_seconds)
