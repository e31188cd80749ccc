"""Foreground scheduler of `ddpm schedule run`: starts the command on its cron schedule, one run at a time."""

import logging
import signal
import subprocess
import threading
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.blocking import BlockingScheduler
from apscheduler.triggers.base import BaseTrigger

from pipeline.config.cron import Cron
from pipeline.config.operations import DATE, ScheduleConfig

logger = logging.getLogger("ddpm.operations")


class CronRuns(BaseTrigger):  # type: ignore[misc]
    """Trigger with the semantics of `Cron`.

    APScheduler's cron trigger differs: Monday is 0, both day fields must match, and a repeated hour fires twice.
    """

    def __init__(self, schedule: ScheduleConfig) -> None:
        self.cron, self.zone = Cron.parse(schedule.cron), ZoneInfo(schedule.time_zone)

    def get_next_fire_time(self, previous: datetime | None, now: datetime) -> datetime:
        """The next run after the previous one, even in the past: the scheduler applies grace time and coalescing."""
        return next(self.cron.runs(previous or now, self.zone))


def build(schedule: ScheduleConfig, start: Callable[[Sequence[str]], None]) -> BlockingScheduler:
    """A scheduler that calls `start` with the command's words; a run missed by less than grace_hours starts at once."""
    trigger = CronRuns(schedule)
    grace = timedelta(hours=schedule.grace_hours)

    def due() -> None:
        day = trigger.cron.last_until(datetime.now(UTC), trigger.zone, grace)
        assert day is not None, "a due run is newer than grace_hours"
        start([word.replace(DATE, day.date().isoformat()) for word in schedule.command])

    scheduler = BlockingScheduler(
        timezone=trigger.zone,
        executors={"default": ThreadPoolExecutor(1)},
        job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": int(grace.total_seconds())},
    )
    now = datetime.now(UTC)
    first = trigger.cron.last_until(now, trigger.zone, grace) or trigger.get_next_fire_time(None, now)
    scheduler.add_job(due, trigger, id=schedule.name, next_run_time=first)
    return scheduler


def run(schedule: ScheduleConfig) -> None:
    """Blocks until SIGTERM or Ctrl-C, which terminate a running command and wait for its end."""
    running: list[subprocess.Popen[bytes]] = []

    def start(words: Sequence[str]) -> None:
        _say(f"starts {' '.join(words)}")
        try:
            running[:] = [subprocess.Popen(words)]
        except OSError as error:
            return _say(f"cannot start {words[0]}: {error.strerror}; give its full path in schedule.command")
        return _say(f"ended with {running[0].wait()}")

    def stop(*_: object) -> None:
        for process in running:
            process.terminate()
        threading.Thread(target=scheduler.shutdown).start()  # shutdown waits for the command; a signal handler must not

    scheduler = build(schedule, start)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    _say(f"{schedule.cron} ({schedule.time_zone}); next run {scheduler.get_jobs()[0].next_run_time:%F %H:%M %Z}")
    scheduler.start()


def _say(text: str) -> None:
    logger.info("%s %s", f"{datetime.now(UTC):%FT%TZ}", text)
