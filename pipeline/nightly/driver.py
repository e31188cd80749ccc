"""Which nights are due, what is done already, and who may run them: one process at a time."""

from contextlib import ExitStack
from dataclasses import dataclass
from datetime import date, timedelta
from zoneinfo import ZoneInfo

from pipeline.config.nightly import NightlyConfig
from pipeline.config.root import Config
from pipeline.errors import Busy, ConfigError
from pipeline.model_store.registry import Registry
from pipeline.nightly.ledger import Night, nights_due, overtaken
from pipeline.nightly.ledger_store import Ledgers
from pipeline.nightly.run_night import NightRun, Result, Work, World
from pipeline.nightly.watchdog import NightWatch, stoppable
from pipeline.storage.lease import LEASE, Lease
from pipeline.storage.store import resolve

__all__ = ["nightly"]

QUEUE_LOOK_SECONDS = 5.0


def nightly(
    config: Config, root: str, work: Work, day: date | None = None, world: World | None = None, dry_run: bool = False
) -> Result:
    """Run the night of `day` (today in nightly.time_zone), and those before it that catch_up asks for.

    `exit_code` of the result is 5 for a night that was held. Raises ConfigError for a day that is not yet, Busy when
    another night runs longer than queue_seconds, Stopped when asked to stop, PipelineError at the time limit, and
    whatever a stage raises; the champion is as it was then, and the same command goes on.
    """
    world = world or World()
    today = world.now().astimezone(ZoneInfo(config.nightly.time_zone)).date()
    asked = day or today
    if asked > today:
        raise ConfigError(f"--date {asked} is in the future: it is {today} in {config.nightly.time_zone}")
    base = resolve(root, config.storage)
    ledgers = Ledgers(base.child("nightly", config.nightly.name))
    one = NightRun(config, ledgers, Registry(base.child("models", config.nightly.name)), work, world)
    nights = _Nights(config.nightly, ledgers, one)
    there = ledgers.read(asked)
    if there is not None and there.is_complete:
        return one.result(there, "already done")
    if dry_run:
        return nights.plan(asked, today)
    lease = Lease(ledgers.store, LEASE, f"nightly training of {config.nightly.name}")
    busy = _take(lease, ledgers, config.nightly, world)
    if busy is not None:
        return nights.left_alone(asked, busy)
    seconds = config.nightly.max_seconds
    deadline = None if seconds is None else world.now() + timedelta(seconds=seconds)
    try:
        # Ray takes SIGTERM for itself when it starts, so what answers it for a night comes after
        with ExitStack() as stack:
            _make_ready(stack, one, asked)
            stack.enter_context(stoppable())
            watch = NightWatch(ledgers, lease, deadline, world.now, world.interrupt)
            return nights.run(asked, today, stack.enter_context(watch))
    finally:
        lease.release()


def _make_ready(stack: ExitStack, one: NightRun, asked: date) -> None:
    try:
        stack.enter_context(one.work.ready())
    except Exception as error:
        one.fail(one.open(asked), error)
        raise


def _take(lease: Lease, ledgers: Ledgers, config: NightlyConfig, world: World) -> str | None:
    """None when it is ours; why not, when the policy is to leave a running night alone. Raises Busy after the wait."""
    until = world.now() + timedelta(seconds=config.queue_seconds)
    while True:
        try:
            lease.acquire()
            return None
        except Busy as error:
            if config.overlap == "skip":
                return str(error)
            if world.now() >= until:
                raise
            if config.overlap == "replace":
                ledgers.ask_to_stop()
        world.sleep(QUEUE_LOOK_SECONDS)


@dataclass(frozen=True)
class _Nights:
    config: NightlyConfig
    ledgers: Ledgers
    one: NightRun

    def plan(self, asked: date, today: date) -> Result:
        due = nights_due(asked, today, self.ledgers.recent(asked), self.config.catch_up)
        run, missed = (", ".join(map(str, days)) or "none" for days in due)
        return {"summary": f"would run nights: {run}; missed: {missed} -> {self.ledgers.store.uri}"}

    def run(self, asked: date, today: date, watch: NightWatch) -> Result:
        known = self.ledgers.recent(asked)
        there = known.get(asked) or self.ledgers.read(asked)
        if there is not None and there.is_complete:  # while we waited
            return self.one.result(there, "already done")
        later = overtaken(asked, known)
        if later is not None and (there is None or not there.is_settled):
            reason = f"the night of {later} came later: an older one does not follow it"
            skipped = self.one.settle(self.one.open(asked), "skipped", reason)
            self.one.tell("skipped", skipped)
            return self.one.result(skipped, "skipped")
        due = nights_due(asked, today, known, self.config.catch_up)
        night: Night | None = None
        for missed in due.missed:
            night = known[missed] = self._miss(missed, asked)
        for day in due.run:
            night = known[day] = self.one.run(day, known, watch)
        assert night is not None
        return self.one.result(night, night.state)

    def _miss(self, day: date, asked: date) -> Night:
        there = self.ledgers.read(day)
        why = "its day was over" if day == asked else f"nobody ran it before the night of {asked}"
        if there is not None:
            there = self.one.as_recorded(there)
            if there.is_settled:
                return self.ledgers.write(there)
            why = f"{there.state}{f' ({there.reason})' if there.reason else ''} and not finished before {asked}"
        night = there or Night(name=self.config.name, date=day.isoformat())
        night = self.ledgers.write(night.settled("missed", f"{why} (catch_up {self.config.catch_up})", self.one.at))
        if day == asked:
            self.one.tell("skipped", night)
        return night

    def left_alone(self, asked: date, reason: str) -> Result:
        """The ledger may be that of the process which runs: it is not touched."""
        night = Night(name=self.config.name, date=asked.isoformat()).settled("skipped", reason, self.one.at)
        self.one.tell("skipped", night)
        return self.one.result(night, "skipped")
