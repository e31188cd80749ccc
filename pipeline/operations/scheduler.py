"""`ddpm schedule run`: the command at its times, one at a time, in the foreground."""

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

__all__ = ["CronRuns", "build", "run"]

logger = logging.getLogger("ddpm.operations")


class CronRuns(BaseTrigger):  # type: ignore[misc]
    """The runs of `Cron`. APScheduler's own trigger counts Monday as 0, wants both days, and fires an hour twice."""

    def __init__(self, schedule: ScheduleConfig) -> None:
        self.cron, self.zone = Cron.parse(schedule.cron), ZoneInfo(schedule.time_zone)

    def get_next_fire_time(self, previous: datetime | None, now: datetime) -> datetime:
        """Every run after the previous one, also those of the past: grace and coalescing are the scheduler's."""
        return next(self.cron.runs(previous or now, self.zone))


def build(schedule: ScheduleConfig, start: Callable[[Sequence[str]], None]) -> BlockingScheduler:
    """A scheduler that calls `start` with the words of the command; a run missed by less than the grace starts now."""
    trigger = CronRuns(schedule)
    grace = timedelta(hours=schedule.grace_hours)

    def due() -> None:
        day = trigger.cron.last_until(datetime.now(UTC), trigger.zone, grace)
        assert day is not None, "a run that is due is not older than the grace"
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
    """Until SIGTERM or Ctrl-C; a command that runs then is asked to end, and waited for."""
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
        threading.Thread(target=scheduler.shutdown).start()  # it waits for the command; a handler must not

    scheduler = build(schedule, start)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    _say(f"{schedule.cron} ({schedule.time_zone}); next run {scheduler.get_jobs()[0].next_run_time:%F %H:%M %Z}")
    scheduler.start()


def _say(text: str) -> None:
    logger.info("%s %s", f"{datetime.now(UTC):%FT%TZ}", text)
