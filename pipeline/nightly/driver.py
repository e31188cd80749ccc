"""Driver of `ddpm nightly`: decides which nights are due, takes the lease, runs them one at a time."""

from contextlib import ExitStack
from dataclasses import dataclass
from datetime import date, timedelta
from zoneinfo import ZoneInfo

from pipeline.config.nightly import NightlyConfig
from pipeline.config.root import Config
from pipeline.errors import Busy, ConfigError
from pipeline.model_store.registry import Registry
from pipeline.nightly.ledger import Night, newer_settled, nights_due
from pipeline.nightly.ledger_store import Ledgers
from pipeline.nightly.run_night import Effects, NightRun, Result, Stages
from pipeline.nightly.watchdog import NightWatch, stop_on_sigterm
from pipeline.storage.lease import LEASE, Lease
from pipeline.storage.store import resolve

QUEUE_POLL_SECONDS = 5.0


def nightly(
    config: Config,
    root: str,
    stages: Stages,
    day: date | None = None,
    effects: Effects | None = None,
    dry_run: bool = False,
) -> Result:
    """Run the night of `day` (default: today in nightly.time_zone), and earlier ones that catch_up names.

    `exit_code` of the result is 5 for a held night. Raises ConfigError for a date in the future, Busy when another
    night holds the lease for longer than queue_seconds, Stopped after SIGTERM or a takeover, PipelineError at the time
    limit, and what a stage raises. After an error the champion is unchanged and the same command continues the night.
    """
    effects = effects or Effects()
    today = effects.now().astimezone(ZoneInfo(config.nightly.time_zone)).date()
    day = day or today
    if day > today:
        raise ConfigError(f"--date {day} is in the future: today is {today} in {config.nightly.time_zone}")
    base = resolve(root, config.storage)
    ledgers = Ledgers(base.child("nightly", config.nightly.name))
    runner = NightRun(config, ledgers, Registry(base.child("models", config.nightly.name)), stages, effects)
    invocation = _Invocation(config.nightly, ledgers, runner, day, today)
    night = ledgers.read(day)
    if night is not None and night.is_complete:
        return runner.result(night, "already done")
    return invocation.plan() if dry_run else invocation.run()


@dataclass(frozen=True)
class _Invocation:
    """One `ddpm nightly` command for the night of `day`."""

    config: NightlyConfig
    ledgers: Ledgers
    runner: NightRun
    day: date
    today: date

    def plan(self) -> Result:
        due = nights_due(self.day, self.today, self.ledgers.recent(self.day), self.config.catch_up)
        run, missed = (", ".join(map(str, days)) or "none" for days in due)
        return {"summary": f"would run nights: {run}; missed: {missed} -> {self.ledgers.store.uri}"}

    def run(self) -> Result:
        effects, seconds = self.runner.effects, self.config.max_seconds
        lease = Lease(self.ledgers.store, LEASE, f"nightly training of {self.config.name}")
        busy = self._take(lease)
        if busy is not None:
            return self._skip_beside(busy)
        deadline = None if seconds is None else effects.now() + timedelta(seconds=seconds)
        try:
            # ray.init installs its own SIGTERM handler, so the night installs its handler afterwards
            with ExitStack() as stack:
                self._prepare(stack)
                stack.enter_context(stop_on_sigterm())
                watch = NightWatch(self.ledgers, lease, deadline, effects.now, effects.interrupt)
                return self._run_due(stack.enter_context(watch))
        finally:
            lease.release()

    def _take(self, lease: Lease) -> str | None:
        """Take the lease; None when taken, else the reason to skip (overlap `skip`). Raises Busy after the wait."""
        effects = self.runner.effects
        until = effects.now() + timedelta(seconds=self.config.queue_seconds)
        while True:
            try:
                lease.acquire()
                return None
            except Busy as error:
                if self.config.overlap == "skip":
                    return str(error)
                if effects.now() >= until:
                    raise
                if self.config.overlap == "replace":
                    self.ledgers.request_stop()
            effects.sleep(QUEUE_POLL_SECONDS)

    def _prepare(self, stack: ExitStack) -> None:
        try:
            stack.enter_context(self.runner.stages.ready())
        except Exception as error:
            self.runner.fail(self.runner.open(self.day), error)
            raise

    def _run_due(self, watch: NightWatch) -> Result:
        known = self.ledgers.recent(self.day)
        night = known.get(self.day) or self.ledgers.read(self.day)
        if night is not None and night.is_complete:  # finished by another process while this one waited
            return self.runner.result(night, "already done")
        newer = newer_settled(self.day, known)
        if newer is not None and (night is None or not night.is_settled):
            reason = f"the later night of {newer} is settled already: an older night cannot follow a newer one"
            night = self.runner.settle(self.runner.open(self.day), "skipped", reason)
            self.runner.notify("skipped", night)
            return self.runner.result(night, "skipped")
        due = nights_due(self.day, self.today, known, self.config.catch_up)
        for missed in due.missed:
            night = known[missed] = self._miss(missed)
        for day in due.run:
            night = known[day] = self.runner.run(day, known, watch)
        assert night is not None
        return self.runner.result(night, night.state)

    def _miss(self, day: date) -> Night:
        night = self.ledgers.read(day)
        why = "its day was over" if day == self.day else f"it was not run before the night of {self.day}"
        if night is not None:
            night = self.runner.with_promotion(night)
            if night.is_settled:
                return self.ledgers.write(night)
            why = f"{night.state}{f' ({night.reason})' if night.reason else ''} and not finished before {self.day}"
        night = night or Night(name=self.config.name, date=day.isoformat())
        night = self.runner.settle(night, "missed", f"{why} (catch_up {self.config.catch_up})")
        if day == self.day:
            self.runner.notify("skipped", night)
        return night

    def _skip_beside(self, reason: str) -> Result:
        """Skip without a ledger entry: the ledger of `day` may belong to the running process."""
        night = Night(name=self.config.name, date=self.day.isoformat())
        night = night.settled("skipped", reason, self.runner.timestamp)
        self.runner.notify("skipped", night)
        return self.runner.result(night, "skipped")
