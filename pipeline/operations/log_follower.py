"""Streams a Ray job's log to stdout until the job ends; reconnects without repeating output."""

import asyncio
import logging
import time
from collections.abc import Callable

import aiohttp

from pipeline.errors import PipelineError
from pipeline.operations.jobs_client import JobsClient, JobState

logger = logging.getLogger("ddpm.operations")

QUIET_SECONDS = 30.0
RETRY_SECONDS = 2.0
MAX_FAILURES = 30  # consecutive: over a minute


class LogFollower:
    """write: receives the job's output. After an interrupt, `run` continues at the same character of the log."""

    def __init__(
        self,
        jobs: JobsClient,
        job_id: str,
        write: Callable[[str], None],
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._jobs, self._id, self._write, self._sleep = jobs, job_id, write, sleep
        self._written = 0  # characters
        self._reported = ""

    def run(self) -> JobState:
        """The final state of the job. Raises PipelineError after MAX_FAILURES failed connections."""
        failures = 0
        while True:
            before = self._written
            try:
                asyncio.run(self._follow())
                state = self._jobs.state(self._id)
            except BrokenPipeError:  # of `write`: stdout is closed
                raise
            except (RuntimeError, OSError, aiohttp.ClientError, PipelineError) as error:
                failures = 1 if self._written > before else failures + 1
                if failures >= MAX_FAILURES:
                    raise PipelineError(
                        f"lost the dashboard at {self._jobs.address}; the job continues, and the same command attaches"
                    ) from error
            else:
                if state.ended:
                    return state
            self._sleep(RETRY_SECONDS)

    async def _follow(self) -> None:
        """Write the log past `_written` until the stream ends; a new stream starts at the log's beginning."""
        skip = self._written
        pieces = aiter(self._jobs.tail(self._id))
        waiting: asyncio.Future[str | None] | None = None
        try:
            while True:
                waiting = waiting or asyncio.ensure_future(anext(pieces, None))
                if not (await asyncio.wait({waiting}, timeout=QUIET_SECONDS))[0]:
                    if await self._has_ended():
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

    async def _has_ended(self) -> bool:
        """Checked while no output arrives: the connection may be dead, or the job may wait for resources."""
        state = await asyncio.to_thread(self._jobs.state, self._id)
        if state.status == "PENDING" and state.message and state.message != self._reported:
            self._reported = state.message
            logger.info("waiting: %s", state.message)
        return state.ended
