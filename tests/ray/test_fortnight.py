"""Sixteen real nights at a given clock: stopped, missed, doubled, regressed, rolled back, over both clock changes.

Real stages on digits, a real S3 server, one cluster. Every night that is killed is a process that gets SIGKILL; the
scheduler's own cron says when each night begins. What is counted at the end is counted from the store.
"""

import multiprocessing
from dataclasses import dataclass
from datetime import UTC, date, datetime
from itertools import islice
from zoneinfo import ZoneInfo

import numpy as np
import pytest
import ray
from night_driver import DRIVERS, Death, Driver, Order
from processes import wait_for
from s3_server import SeaweedServer
from sklearn.datasets import load_digits

from pipeline.config.cron import Cron
from pipeline.config.root import Config
from pipeline.config.storage import StorageConfig
from pipeline.images.png import encode_png
from pipeline.model_store.registry import Registry
from pipeline.nightly.driver import nightly
from pipeline.nightly.ledger import STAGES, Night
from pipeline.nightly.ledger_store import Ledgers
from pipeline.nightly.night_stages import NightStages
from pipeline.nightly.promote import rollback
from pipeline.nightly.run_night import Effects
from pipeline.operations.verify import verify
from pipeline.storage.store import Store, resolve
from tiny import settings

pytestmark = [pytest.mark.ray, pytest.mark.faults, pytest.mark.nightly, pytest.mark.timeout(7200)]

ZONE = ZoneInfo("Europe/Berlin")
HALF_PAST_TWO = Cron.parse("30 2 * * *")  # twice on 25 October 2026, never on 28 March 2027
AUTUMN, SPRING = date(2026, 10, 25), date(2027, 3, 28)
KILLED = {
    date(2026, 10, 20): Death("snapshot", "datasets/digits", r"^(plans|work)/"),
    date(2026, 10, 21): Death("train", "runs", r"/checkpoints/step-000000010/manifest\.json$"),
    date(2026, 10, 22): Death("gate"),
    date(2026, 10, 23): Death("export", "models/digits", r"^v\d+/"),
    date(2026, 10, 25): Death("samples", "samples", r"/commits/"),
    date(2026, 10, 28): Death("evaluate"),
    date(2026, 10, 30): Death("promote"),
    date(2026, 11, 1): Death("report"),
    date(2027, 3, 26): Death("retention"),
}
"""The night that is killed in a stage. Where there is a key: in its middle, else after its work, before the ledger."""


def due(day: date) -> datetime:
    """When the scheduler starts the night of a day, in UTC."""
    midnight = datetime(day.year, day.month, day.day, tzinfo=ZONE)
    (run,) = islice(HALF_PAST_TWO.runs(midnight, ZONE), 1)
    assert run.date() == day
    return run.astimezone(UTC)


@dataclass
class Nights:
    """A root with a source that grows, and the two ways to start a night."""

    server: SeaweedServer
    root: Store
    images: int = 0

    def add(self, count: int) -> None:
        digits = load_digits()
        for k in range(self.images, self.images + count):
            pixels = (digits.images[k][..., None] * 255 / 16).round().astype(np.uint8)
            self.root.put(f"incoming/{digits.target[k]}/{k:04d}.png", encode_png(pixels))
        self.images += count

    def sections(self, lr: float = 0.002, **night) -> dict:
        return settings(
            train={"steps": 160, "lanes": 1, "micro_batch": 32, "lr": lr, "checkpoint_every": 10, "grid_every": 1000},
            generate={"num_samples": 64, "shard_size": 32, "batch_size": 16, "steps": 10},
            evaluate={"classifier_epochs": 3, "classifier_width": 8},
            gate={"tolerance": 5.0, "ceiling": 1e6},  # a good night differs by 1, the regressed one by 16
            nightly={
                "name": "digits",
                "source": self.root.location("incoming"),
                "time_zone": ZONE.key,
                "steps": 20,
                "keep_nights": 10,
                **night,
            },
        )

    def order(self, now: datetime, lr: float = 0.002, death: Death | None = None, **night) -> Order:
        """For a process of its own, on the session's cluster."""
        sections = self.sections(lr, **night)
        sections["ray"] = {"address": ray.get_runtime_context().gcs_address}
        return Order(sections, self.root.uri, now, None, death, self.server.environment)

    def run(self, now: datetime, asked: date | None = None, lr: float = 0.002, **night) -> dict:
        """In this process: the state, and what hooks were told."""
        config, told = Config.model_validate(self.sections(lr, **night)), []
        effects = Effects(now=lambda: now, notify=lambda _, event: told.append((event["date"], event["event"])))
        found = nightly(config, self.root.uri, NightStages(config, self.root, DRIVERS), asked, effects)
        return {**found, "told": told}

    def killed(self, day: date, lr: float = 0.002, **night) -> Night:
        """Its ledger after SIGKILL in the stage that KILLED names."""
        death = KILLED[day]
        assert Driver(self.order(due(day), lr, death, **night)).result() == {"killed": True}
        found = self.ledger(day)
        assert found is not None
        assert (found.next_stage, found.attempts) == (death.stage, 1)
        return found

    def rerun(self, day: date, lr: float = 0.002, **night) -> dict:
        """After the kill: an hour later, to the end."""
        found = self.run(due(day).replace(minute=59), None, lr, **night)
        assert (found["date"], found["attempts"], found["warnings"]) == (day.isoformat(), 2, [])
        return found

    @property
    def registry(self) -> Registry:
        return Registry(self.root.child("models/digits"))

    def ledger(self, day: date) -> Night | None:
        return Ledgers(self.root.child("nightly/digits")).read(day)

    def ledgers(self) -> dict[date, Night]:
        every = Ledgers(self.root.child("nightly/digits"))
        return {day: every.read(day) for day in every.dates()}

    def _run_keys(self, day: date, folder: str) -> list[str]:
        return [e.key for e in self.root.list("runs/") if f"-{day}-" in e.key and f"/{folder}/" in e.key]

    def checkpoints(self, day: date) -> int:
        """How many that night's run has committed, of those that are kept."""
        return sum(key.endswith("/manifest.json") for key in self._run_keys(day, "checkpoints"))

    def starts(self, day: date) -> list[int]:
        """Steps at which workers of that night's run began, over all its attempts."""
        return sorted(self.root.read_json(key)["step"] for key in self._run_keys(day, "attempts"))


@pytest.fixture
def nights(seaweed, s3_uri, ray_cluster) -> Nights:
    multiprocessing.get_context("forkserver").set_forkserver_preload(["night_driver"])
    return Nights(seaweed, resolve(s3_uri, StorageConfig()))


def test_a_fortnight_and_a_spring(nights):
    _first_week(nights)
    _the_hour_that_comes_twice(nights)
    _two_nights_off_and_two_schedulers(nights)
    _going_back(nights)
    _a_winter_off_and_the_hour_that_is_missing(nights)
    _ledgers_are_what_the_policy_says(nights)
    _promotions_are_what_the_policy_says(nights)
    _nothing_was_trained_twice(nights)
    for folder in ("models/digits", "nightly/digits", "datasets/digits"):
        assert verify(Config(), nights.root.location(folder))["state"] == "verified"


def _october(day: int) -> date:
    return date(2026, 10, day)


def _first_week(nights: Nights) -> None:
    """19 to 24 October: killed in snapshot, train, gate and export; a model that regressed; a day without news."""
    nights.add(240)
    assert nights.run(due(_october(19)))["state"] == "promoted"
    for day, steps in ((20, 20), (21, 200)):
        nights.add(30)
        champion = nights.registry.head().champion
        nights.killed(_october(day), steps=steps)
        assert nights.registry.head().champion == champion
        assert nights.rerun(_october(day), steps=steps)["state"] == "promoted"
    began, again = nights.starts(_october(21))
    assert (began, again >= 10) == (0, True), "the second attempt went on from a checkpoint"
    nights.add(30)
    nights.killed(_october(22), lr=0.3)
    held = nights.rerun(_october(22), lr=0.3)
    assert (held["state"], held["exit_code"], held["champion"], held["told"]) == (
        *("held", 5, 3),
        [("2026-10-22", "hold")],
    )
    assert "significantly worse" in held["reason"]
    nights.killed(_october(23))
    assert nights.rerun(_october(23))["state"] == "promoted"  # the settings are the good ones again
    skipped = nights.run(due(_october(24)))
    assert (skipped["state"], skipped["exit_code"], skipped["told"]) == ("skipped", 0, [("2026-10-24", "skipped")])
    assert "nothing changed since the night of 2026-10-23 (promoted)" in skipped["reason"]


def _the_hour_that_comes_twice(nights: Nights) -> None:
    """02:30 on 25 October: the first one is killed in samples; a cron that knows nothing starts it at the second."""
    nights.add(30)
    nights.killed(AUTUMN)
    first, second = (datetime(2026, 10, 25, hour, 30, tzinfo=UTC) for hour in (0, 1))
    assert due(AUTUMN) == first
    assert first.astimezone(ZONE).time() == second.astimezone(ZONE).time()
    again = nights.run(second)
    assert (again["state"], again["date"], again["attempts"]) == ("promoted", "2026-10-25", 2)
    late = nights.run(datetime(2026, 10, 25, 22, 30, tzinfo=UTC))  # 23:30, in the 25th hour of that day
    assert (late["date"], late["told"], late["attempts"]) == ("2026-10-25", [], 2)
    assert nights.starts(AUTUMN) == [0]


def _two_nights_off_and_two_schedulers(nights: Nights) -> None:
    """26 and 27 are missed, 28 makes up for the newest; on 29 one is left alone and one takes over."""
    nights.add(30)
    nights.killed(_october(28))
    assert nights.rerun(_october(28))["state"] == "promoted"
    nights.add(30)
    one = Driver(nights.order(due(_october(29))))
    wait_for(lambda: (night := nights.ledger(_october(29))) is not None and night.done.snapshot is not None, 1200)
    left = nights.run(due(_october(29)))
    assert (left["state"], left["exit_code"], left["told"]) == ("skipped", 0, [("2026-10-29", "skipped")])
    assert "is in use by process" in left["reason"]
    wait_for(lambda: nights.checkpoints(_october(29)) > 0, 1200)
    other = nights.run(due(_october(29)), overlap="replace")
    first = one.result()
    assert (first["exit_code"], first["told"]) == (143, [("2026-10-29", "failure")])
    assert "takes over" in first["error"]
    assert (other["state"], other["attempts"]) == ("promoted", 2)


def _going_back(nights: Nights) -> None:
    """A person goes back; the next night trains from there. 31 October is over when it is asked for."""
    before = nights.registry.head().champion
    config = Config.model_validate(nights.sections())
    done = rollback(config, nights.registry.store.uri, None, "it draws nines only", lambda: due(_october(30)))
    assert (done.champion, before) == (7, 8)
    nights.add(30)
    killed = nights.killed(_october(30))
    assert (killed.champion, nights.registry.head().champion) == (7, 9), "the record was written, the ledger was not"
    assert nights.rerun(_october(30))["state"] == "promoted"
    assert nights.ledger(_october(30)).done.train.parent == 7
    nights.add(30)
    november = date(2026, 11, 1)
    missed = nights.run(due(november), asked=_october(31), catch_up="none")
    assert (missed["state"], missed["exit_code"]) == ("missed", 0)
    settled = nights.killed(november, catch_up="none")
    assert settled.state == "promoted", "a night is decided before its report is there"
    assert nights.rerun(november, catch_up="none")["report"] is not None


def _a_winter_off_and_the_hour_that_is_missing(nights: Nights) -> None:
    """26 March: one night for a whole winter. 28 March has no 02:30, and makes up for the 27th (catch_up all)."""
    nights.add(30)
    nights.killed(date(2027, 3, 26))
    assert nights.rerun(date(2027, 3, 26))["state"] == "promoted"
    nights.add(30)
    assert due(SPRING).astimezone(ZONE).hour == 3
    last = nights.run(due(SPRING), catch_up="all")
    assert (last["date"], last["state"]) == ("2027-03-28", "skipped")
    assert "nothing changed since the night of 2027-03-27 (promoted)" in last["reason"]
    assert last["told"] == [("2027-03-27", "success"), ("2027-03-28", "skipped")]


TRAINED = [
    *map(_october, (19, 20, 21, 22, 23, 25, 28, 29, 30)),
    date(2026, 11, 1),
    date(2027, 3, 26),
    date(2027, 3, 27),
]
"""Version k + 1 is of night k."""
HELD = _october(22)


def _ledgers_are_what_the_policy_says(nights: Nights) -> None:
    found = nights.ledgers()
    winter = {day for day in found if date(2026, 11, 1) < day < date(2027, 3, 26)}
    assert len(winter) == 31, "older ones leave no trace"
    missed = {*map(_october, (26, 27, 31)), *winter}
    expected = dict.fromkeys(TRAINED, "promoted") | {HELD: "held", _october(24): "skipped", SPRING: "skipped"}
    assert {day: night.state for day, night in found.items()} == expected | dict.fromkeys(missed, "missed")
    assert all(found[day].is_complete and not found[day].warnings for day in found)
    attempts = {day: night.attempts for day, night in found.items() if night.attempts > 1}
    assert attempts == dict.fromkeys([*KILLED, _october(29)], 2)
    assert [found[day].done.export.version for day in TRAINED] == list(range(1, 13))
    assert {death.stage for death in KILLED.values()} == set(STAGES)
    gone = {key for night in found.values() for key in (night.done.retention.removed if night.done.retention else ())}
    assert {key.split("/")[0] for key in gone} == {"runs", "samples"}
    assert not any(entry.key.startswith(tuple(gone)) for entry in nights.root.list())


def _promotions_are_what_the_policy_says(nights: Nights) -> None:
    records = nights.registry.records()
    moves = [(record.action, record.champion) for record in records if record.action != "challenge"]
    held = TRAINED.index(HELD) + 1
    promoted = [("promote", number) for number in range(1, 13) if number != held]
    assert moves == [*promoted[:7], ("rollback", 7), *promoted[7:]]
    assert [r.challenger for r in records if r.action == "challenge"] == list(range(1, 13))
    assert (nights.registry.head().champion, nights.registry.versions()) == (12, list(range(1, 13)))
    parents = [nights.registry.version(number).facts["parent"] for number in range(1, 13)]
    assert parents == [None, 1, 2, 3, 3, 5, 6, 7, 7, 9, 10, 11]


def _nothing_was_trained_twice(nights: Nights) -> None:
    """One run and one version a night; a run that began twice went on from a checkpoint."""
    runs = {entry.key.split("/")[1] for entry in nights.root.list("runs/")}
    kept = TRAINED[-len(runs) :]
    assert sorted(name.removeprefix("digits-")[:10] for name in runs) == sorted(map(str, kept))
    for day in kept:
        first, *more = nights.starts(day)
        assert first == 0
        assert len(more) <= (day in (_october(21), _october(29)))
        assert all(step > 0 for step in more), f"{day} trained anew"
    assert len({nights.registry.version(number).source for number in nights.registry.versions()}) == 12
