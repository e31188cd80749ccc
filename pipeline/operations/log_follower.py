"""Following a job's log: each piece once, through lost connections, until the job has ended."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from typing import Protocol

import aiohttp

from pipeline.errors import PipelineError
from pipeline.operations.jobs_client import State

__all__ = ["Followed", "Follower"]

logger = logging.getLogger("ddpm.operations")

QUIET_SECONDS = 30.0
RETRY_SECONDS = 2.0
MAX_FAILURES = 30  # in a row: a minute and more


class Followed(Protocol):
    """What a follower needs of `job_client.Jobs`."""

    address: str

    def state(self, job_id: str) -> State: ...
    def tail(self, job_id: str) -> AsyncIterator[str]: ...


class Follower:
    """write: takes the job's own output.

    A follower that was interrupted goes on where it was when `run` is called again.
    """

    def __init__(
        self,
        jobs: Followed,
        job_id: str,
        write: Callable[[str], None],
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._jobs, self._id, self._write, self._sleep = jobs, job_id, write, sleep
        self._written = 0  # characters
        self._told = ""

    def run(self) -> State:
        """Returns when the job has ended. Raises PipelineError when the dashboard stays away."""
        failures = 0
        while True:
            before = self._written
            try:
                asyncio.run(self._follow())
                state = self._jobs.state(self._id)
            except BrokenPipeError:  # nobody reads what is written here
                raise
            except (RuntimeError, OSError, aiohttp.ClientError, PipelineError) as error:
                failures = 1 if self._written > before else failures + 1
                if failures >= MAX_FAILURES:
                    raise PipelineError(
                        f"lost the dashboard at {self._jobs.address}, the job goes on; the same command attaches again"
                    ) from error
            else:
                if state.ended:
                    return state
            self._sleep(RETRY_SECONDS)

    async def _follow(self) -> None:
        skip = self._written
        pieces = aiter(self._jobs.tail(self._id))
        waiting: asyncio.Task[str | None] | None = None
        try:
            while True:
                waiting = waiting or asyncio.create_task(_next(pieces))
                if not (await asyncio.wait({waiting}, timeout=QUIET_SECONDS))[0]:
                    if await self._over():
                        return
                    continue
                text, waiting = waiting.result(), None
                if text is None:
                    return
                fresh, skip = text[skip:], max(0, skip - len(text))
                self._written += len(fresh)
                if fresh:
                    self._write(fresh)
        finally:
            if waiting is not None:
                waiting.cancel()

    async def _over(self) -> bool:
        """Asked when the log is quiet: a connection may be dead, a job may wait for room."""
        state = await asyncio.to_thread(self._jobs.state, self._id)
        if state.status == "PENDING" and state.message and state.message != self._told:
            self._told = state.message
            logger.info("waiting: %s", state.message)
        return state.ended


async def _next(pieces: AsyncIterator[str]) -> str | None:
    return await anext(pieces, None)
