"""Asynchronous uploads: a checkpoint is written to the store while training continues."""

import threading
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Self

import torch
from torch import Tensor


def snapshot(tensors: Mapping[str, Mapping[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
    """Contiguous copies on the CPU, without gradient, that share no memory with the originals or each other."""
    return {
        group: {
            name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
            for name, tensor in members.items()
        }
        for group, members in tensors.items()
    }


class Uploads:
    """Runs upload tasks on a background thread, one at a time, in the order of `submit`.

    Call `wait` before `snapshot`, so that at most one copy of the data is in memory. The error of a task is raised
    once, by the next `submit`, `wait` or `poll`. The end of the `with` block waits for the last task and raises its
    error; after an exception in the block, the wait lasts at most `grace_seconds` and raises nothing.
    """

    def __init__(self, grace_seconds: float = 10.0) -> None:
        self._grace_seconds = grace_seconds
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def submit(self, task: Callable[[], None]) -> None:
        """Start `task` after the previous one. Raises the previous task's error instead of starting."""
        self.wait()
        # A daemon thread: a process whose training failed must not wait for an unreachable store.
        self._thread = threading.Thread(target=self._run, args=(task,), name="ddpm-upload", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Wait until no task runs. Raises the last task's error."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def poll(self) -> bool:
        """True when no task runs; never waits. Raises the error of a task that ended."""
        if self._thread is not None and self._thread.is_alive():
            return False
        self.wait()
        return True

    def _run(self, task: Callable[[], None]) -> None:
        try:
            task()
        except BaseException as error:
            self._error = error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        if kind is None:
            self.wait()
        elif self._thread is not None:
            self._thread.join(self._grace_seconds)
