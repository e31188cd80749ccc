"""Simulated weeks of nights: ledgers, promotions and champion follow the policy, and no night trains twice."""

import os
import signal
import sys
import threading
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime

import pytest
from light_nights import Killed, LightStages, Simulation

from pipeline.config.storage import StorageConfig
from pipeline.errors import Busy, ConfigError, DataError, PipelineError, Stopped
from pipeline.model_store.registry import ChangeRequest, Registry
from pipeline.nightly import driver, watchdog
from pipeline.nightly.ledger import STAGES
from pipeline.nightly.ledger_store import Ledgers
from pipeline.nightly.run_night import NightRun
from pipeline.storage.store import resolve

WORKING = [stage for stage in STAGES if stage not in ("gate", "promote")]


@pytest.fixture
def sim(store) -> Simulation:
    return Simulation(store)


@pytest.fixture
def memory_sim(request) -> Simulation:
    return Simulation(resolve(f"memory://{request.node.name}-{id(request)}", StorageConfig()))


def rollback(sim: Simulation, reason: str = "it draws nines only") -> None:
    sim.registry.rollback(None, ChangeRequest(reason, f"person {sim.time}", sim.time, {}))


# --- a fortnight -----------------------------------------------------------------------------------------------------


def test_a_fortnight(sim):
    sim.source.quality = {f"2026-11-{d:02d}": q for d, q in {1: 0.8, 2: 0.6, 3: 0.9, 9: 0.4, 11: 0.3, 12: 0.9}.items()}
    sim.source.data = {"2026-11-05": "same", "2026-11-06": "same", "2026-11-07": "same"}
    sim.source.quality |= {"2026-11-05": 0.6, "2026-11-10": 0.395, "2026-11-14": 0.35}
    first = sim.at(1).run()
    assert (first["state"], first["exit_code"], first["champion"], first["version"]) == ("promoted", 0, 1, 1)
    assert sim.at(2).run()["state"] == "promoted"
    held = sim.at(3).run()  # a regressed model
    assert (held["state"], held["exit_code"], held["champion"], sim.champion()) == ("held", 5, 2, 2)
    assert "significantly worse" in held["reason"]
    assert sim.registry.head().challenger == 3
    # night 4 is missed: the machine was off
    assert sim.at(5).run()["state"] == "promoted"  # as good: not worse by more than the tolerance
    skipped = sim.at(6).run()
    assert (skipped["state"], skipped["exit_code"]) == ("skipped", 0)
    assert "nothing changed since the night of 2026-11-05 (promoted)" in skipped["reason"]
    assert sim.at(7).run()["state"] == "skipped"
    # 8 is missed too
    assert sim.at(9).run()["state"] == "promoted"
    assert sim.at(10).run()["state"] == "promoted"
    rollback(sim)
    assert sim.champion() == 5
    assert sim.at(11).run()["state"] == "promoted"
    assert sim.ledger(11).done.train.parent == 5, "trained from where a person went back to"
    assert sim.at(12).run()["state"] == "held"
    # 13 is missed
    held = sim.at(14).run()
    assert (held["state"], "0.35 against 0.3" in held["reason"]) == ("held", True)
    assert sim.states() == {
        1: "promoted",
        2: "promoted",
        3: "held",
        4: "missed",
        5: "promoted",
        6: "skipped",
        7: "skipped",
        8: "missed",
        9: "promoted",
        10: "promoted",
        11: "promoted",
        12: "held",
        13: "missed",
        14: "held",
    }
    assert sim.stages.trained == [f"2026-11-{d:02d}" for d in (1, 2, 3, 5, 9, 10, 11, 12, 14)]
    moves = [move for move in sim.actions() if move[0] != "challenge"]
    assert moves == [
        *(("promote", v) for v in (1, 2, 4, 5, 6)),
        *(("rollback", 5), ("promote", 7)),
    ]
    assert sim.ledger(4).reason == "it was not run before the night of 2026-11-05 (catch_up latest)"
    assert sim.told == [(f"2026-11-{d:02d}", e) for d, e in [
        (1, "success"), (2, "success"), (3, "hold"), (5, "success"), (6, "skipped"), (7, "skipped"), (9, "success"),
        (10, "success"), (11, "success"), (12, "hold"), (14, "hold"),
    ]]  # fmt: skip


def test_again_is_already_done(sim):
    first = sim.at(1).run()
    told, calls, records = list(sim.told), list(sim.stages.calls), sim.actions()
    again = sim.at(1, hour=22).run()
    later = sim.at(3).run(1)
    for result in (again, later):
        assert result["summary"].startswith("night of 2026-11-01: already done (promoted) v000001: KD-light 0.5")
        assert (result["exit_code"], result["champion"], result["uri"]) == (0, 1, first["uri"])
    assert (sim.told, sim.stages.calls, sim.actions()) == (told, calls, records)


# --- killed, failed, resumed -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("stage", WORKING)
def test_a_night_killed_in_a_stage_goes_on(sim, monkeypatch, stage, when):
    """Killed before its artefact is committed, or after that but before the ledger entry."""
    sim.at(1).run()
    sim.at(2)

    def kill(at, night):
        if at == stage:
            raise Killed

    setattr(sim.stages, when, kill)
    with monkeypatch.context() as patch:
        patch.setattr(NightRun, "fail", lambda *_: None)  # SIGKILL: nobody writes that it failed
        with pytest.raises(Killed):
            sim.run()
    assert sim.champion() == (2 if stage in ("report", "retention") else 1)
    assert sim.ledger(2).state == ("promoted" if stage in ("report", "retention") else "running")
    setattr(sim.stages, when, lambda at, night: None)
    sim.stages.calls.clear()
    result = sim.at(2, hour=8).run()
    assert (result["state"], result["attempts"], sim.champion()) == ("promoted", 2, 2)
    assert sim.stages.calls == WORKING[WORKING.index(stage) :], "stages that are committed are not even asked"
    assert sim.stages.trained == ["2026-11-01", "2026-11-02"]
    assert sim.actions() == [("challenge", 1), ("promote", 1), ("challenge", 2), ("promote", 2)]
    assert sim.told[-1] == ("2026-11-02", "success")


@pytest.mark.unit
def test_killed_at_any_write_a_night_ends_as_if_nothing_was(memory_sim, monkeypatch):
    """Kills the process before and after every write of ledger, registry and artefact, in turn."""
    places = ((Ledgers, "write"), (Registry, "_append"), (LightStages, "_once"))

    def armed(patch, nth: int, when: str) -> list[int]:
        seen = [0]
        for owner, name in places:
            real = getattr(owner, name)

            def write(self, *args, real=real):
                seen[0] += 1
                if seen[0] == nth and when == "before":
                    raise Killed
                result = real(self, *args)
                if seen[0] == nth and when == "after":
                    raise Killed
                return result

            patch.setattr(owner, name, write)
        patch.setattr(NightRun, "fail", lambda *_: None)
        return seen

    def night(root: str) -> Simulation:
        sim = Simulation(memory_sim.root.child(root))
        sim.at(1).run()
        return sim.at(2)

    with monkeypatch.context() as patch:
        calm = night("calm")
        seen = armed(patch, 0, "never")
        calm.run()
    assert seen[0] == 19
    for nth in range(1, seen[0] + 1):
        for when in ("before", "after"):
            sim = night(f"{when}-{nth}")
            with monkeypatch.context() as patch:
                armed(patch, nth, when)
                with pytest.raises(Killed):
                    sim.run()
            result = sim.run()
            assert result["state"] == "promoted", (nth, when)
            assert (sim.actions(), sim.states()) == (calm.actions(), calm.states()), (nth, when)
            assert sim.stages.trained == calm.stages.trained, (nth, when)
            assert sim.registry.versions() == [1, 2], (nth, when)
            assert sim.ledger(2).done == calm.ledger(2).done, (nth, when)


@pytest.mark.parametrize("stage", ["snapshot", "train", "evaluate"])
def test_a_failed_night_leaves_the_champion_and_says_why(sim, stage):
    sim.at(1).run()

    def fail(at, night):
        if at == stage:
            raise DataError("the disk ate it")

    sim.stages.before = fail
    with pytest.raises(DataError, match="ate it"):
        sim.at(2).run()
    assert (sim.champion(), sim.ledger(2).state, sim.ledger(2).reason) == (1, "failed", "the disk ate it")
    assert sim.told[-1] == ("2026-11-02", "failure")
    sim.stages.before = lambda at, night: None
    assert sim.run()["state"] == "promoted"
    assert sim.stages.trained == ["2026-11-01", "2026-11-02"]


def test_a_report_that_fails_is_a_warning(sim):
    def fail(at, night):
        if at == "report":
            raise DataError("no ink")

    sim.stages.before = fail
    result = sim.at(1).run()
    assert (result["state"], result["warnings"], sim.champion()) == ("promoted", ["report: no ink"], 1)
    assert "warning: report: no ink" in result["summary"]


def test_a_failed_night_that_nobody_finished_is_missed(sim):
    sim.at(1).run()
    sim.stages.before = lambda at, night: (_ for _ in ()).throw(DataError("full")) if at == "train" else None
    with pytest.raises(DataError):
        sim.at(2).run()
    sim.stages.before = lambda at, night: None
    assert sim.at(3).run()["state"] == "promoted"
    assert sim.states() == {1: "promoted", 2: "missed", 3: "promoted"}
    assert sim.ledger(2).reason == "failed (full) and not finished before 2026-11-03 (catch_up latest)"
    assert sim.run(2)["summary"].startswith("night of 2026-11-02: already done (missed)")


@pytest.mark.parametrize("then", ["the next night", "other settings"])
def test_a_promotion_that_is_recorded_counts_though_its_night_died_before_it_said_so(sim, monkeypatch, then):
    sim.at(1).run()
    real = NightRun._promote

    def die(run, night):
        real(run, night)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(NightRun, "_promote", die)
        patch.setattr(NightRun, "fail", lambda *_: None)
        with pytest.raises(Killed):
            sim.at(2).run()
    assert (sim.champion(), sim.ledger(2).state) == (2, "running")
    if then == "the next night":
        assert sim.at(3).run()["state"] == "promoted"
        assert sim.states() == dict.fromkeys((1, 2, 3), "promoted")
    else:
        sim.stages.used = "lower lr"
        assert sim.run()["report"] is not None
    assert (sim.ledger(2).state, sim.ledger(2).done.promote.record) == ("promoted", 4)
    assert sim.stages.trained.count("2026-11-02") == 1


def test_other_settings_begin_a_failed_night_anew(sim):
    sim.stages.before = lambda at, night: (_ for _ in ()).throw(DataError("NaN")) if at == "evaluate" else None
    with pytest.raises(DataError):
        sim.at(1).run()
    sim.stages.before = lambda at, night: None
    sim.stages.used = "lower lr"
    result = sim.run()
    assert (result["state"], result["version"], result["attempts"]) == ("promoted", 2, 2)
    assert sim.stages.trained == ["2026-11-01", "2026-11-01"]


def test_a_person_who_promotes_meanwhile_is_not_overruled(sim):
    sim.at(1).run()
    sim.at(2).run()

    def go_back(at, night):
        if at == "evaluate":
            rollback(sim)

    sim.stages.after = go_back
    result = sim.at(3).run()
    assert (result["state"], result["champion"], sim.champion()) == ("held", 1, 1)
    assert "is v000001 since record 6, not v000002" in result["reason"]


# --- which nights ----------------------------------------------------------------------------------------------------


def test_catch_up_all_runs_every_night_in_order(sim):
    sim.settings = {"catch_up": "all"}
    sim.at(1).run()
    result = sim.at(4).run()
    assert (result["date"], sim.states()) == ("2026-11-04", dict.fromkeys((1, 2, 3, 4), "promoted"))
    assert sim.stages.trained == [f"2026-11-0{d}" for d in (1, 2, 3, 4)]


def test_catch_up_all_trains_once_when_the_data_is_the_same(sim):
    sim.settings = {"catch_up": "all"}
    sim.source.data = dict.fromkeys((f"2026-11-0{d}" for d in (2, 3, 4)), "the same")
    sim.at(1).run()
    sim.at(4).run()
    assert sim.states() == {1: "promoted", 2: "promoted", 3: "skipped", 4: "skipped"}
    assert sim.at(5).run(retrain_unchanged=True)["state"] == "promoted"


def test_catch_up_none_lets_a_day_that_is_over_be(sim):
    sim.settings = {"catch_up": "none"}
    sim.at(1).run()
    result = sim.at(4).run(3)
    assert (result["state"], result["exit_code"], sim.states()) == (
        *("missed", 0),
        {1: "promoted", 2: "missed", 3: "missed"},
    )
    assert sim.told[-1] == ("2026-11-03", "skipped")
    assert sim.run()["state"] == "promoted"


def test_an_older_night_does_not_follow_a_newer_one(sim):
    sim.at(5).run()
    result = sim.at(6).run(3)
    assert (result["state"], "later night of 2026-11-05 is settled" in result["reason"]) == (
        "skipped",
        True,
    )
    assert sim.stages.trained == ["2026-11-05"]
    with pytest.raises(ConfigError, match="--date 2026-11-07 is in the future"):
        sim.run(7)


@pytest.mark.unit
@pytest.mark.parametrize(
    ("utc", "zone", "date"),
    [
        (datetime(2026, 10, 24, 22, 30, tzinfo=UTC), "Europe/Berlin", "2026-10-25"),  # 00:30, summer time ends at 3
        (datetime(2026, 10, 25, 1, 30, tzinfo=UTC), "Europe/Berlin", "2026-10-25"),  # 02:30 for the second time
        (datetime(2026, 10, 25, 22, 30, tzinfo=UTC), "Europe/Berlin", "2026-10-25"),  # 23:30, winter time
        (datetime(2026, 3, 29, 1, 30, tzinfo=UTC), "Europe/Berlin", "2026-03-29"),  # 03:30: there was no 02:30
        (datetime(2026, 11, 24, 3, 0, tzinfo=UTC), "America/Los_Angeles", "2026-11-23"),
    ],
)
def test_today_is_a_date_of_the_zone(memory_sim, utc, zone, date):
    memory_sim.time = utc
    assert memory_sim.run(time_zone=zone)["date"] == date


# --- two at once -----------------------------------------------------------------------------------------------------


def beside(sim: Simulation, overlap: str, first_stage: str = "train"):
    """Start a second scheduler while the first runs a stage; results of both."""
    started, go_on, results = threading.Event(), threading.Event(), {}

    def wait(at, night):
        if at == first_stage and not started.is_set():
            started.set()
            assert go_on.wait(20)
            if sim.interrupted.is_set():
                raise Stopped("SIGTERM")

    sim.interrupted = threading.Event()
    sim.interrupt = lambda: (sim.interrupted.set(), go_on.set())
    sim.sleep = lambda seconds: threading.Event().wait(0.05)
    sim.stages.before = wait

    def run(name: str) -> None:
        try:
            results[name] = sim.run(overlap=overlap)["summary"]
        except PipelineError as error:
            results[name] = error

    first = threading.Thread(target=run, args=("first",))
    first.start()
    assert started.wait(20)
    second = threading.Thread(target=run, args=("second",))
    second.start()
    if overlap == "skip":
        second.join(20)
    elif overlap == "queue":
        second.join(0.3)
        assert second.is_alive()
    if overlap != "replace":
        go_on.set()
    first.join(20)
    second.join(20)
    return results


def test_of_two_schedulers_one_runs_and_the_other_leaves_it(sim):
    results = beside(sim.at(1), "skip")
    assert "promoted" in results["first"]
    assert "skipped" in results["second"]
    assert "is in use by process" in results["second"]
    assert sim.told == [("2026-11-01", "skipped"), ("2026-11-01", "success")]
    assert (sim.stages.trained, sim.states()) == (["2026-11-01"], {1: "promoted"})


def test_or_waits_for_it(sim):
    results = beside(sim.at(1), "queue")
    assert "promoted" in results["first"]
    assert "already done (promoted)" in results["second"]
    assert (sim.stages.trained, sim.states()) == (["2026-11-01"], {1: "promoted"})


def test_or_takes_over(sim, monkeypatch):
    monkeypatch.setattr(watchdog, "POLL_SECONDS", 0.05)
    results = beside(sim.at(1), "replace")
    assert isinstance(results["first"], Stopped)
    assert "another process, which takes over" in str(results["first"])
    assert "promoted" in results["second"]
    assert (sim.stages.trained, sim.states(), sim.ledger(1).attempts) == (["2026-11-01"], {1: "promoted"}, 2)


def test_waiting_has_an_end(sim, monkeypatch):
    with driver.Lease(sim.root.child("nightly", "light"), "lease.json", "another night"):

        def tick(seconds):
            sim.time = sim.time.replace(minute=sim.time.minute + 1)

        sim.sleep = tick
        with pytest.raises(Busy, match="nightly training of light"):
            sim.at(1).run(overlap="queue", queue_seconds=150)
    assert sim.time.minute == 3


def test_the_time_limit_stops_between_stages_and_the_next_goes_on(sim):
    def slow(at, night):
        if at == "train":
            sim.time = sim.time.replace(hour=sim.time.hour + 2)

    sim.stages.after = slow
    with pytest.raises(PipelineError, match="time limit"):
        sim.at(1).run(max_seconds=3600)
    assert (sim.ledger(1).state, "time limit" in sim.ledger(1).reason) == ("failed", True)
    assert sim.run(max_seconds=3600)["state"] == "promoted"
    assert sim.stages.trained == ["2026-11-01"]


def test_the_time_limit_reaches_into_a_stage(sim, monkeypatch):
    monkeypatch.setattr(watchdog, "POLL_SECONDS", 0.02)
    interrupted = threading.Event()
    sim.interrupt = interrupted.set

    def hang(at, night):
        if at == "samples":
            sim.time = sim.time.replace(hour=9)
            assert interrupted.wait(10)
            raise Stopped("SIGTERM")

    sim.stages.before = hang
    with pytest.raises(PipelineError, match="time limit") as caught:
        sim.at(1).run(max_seconds=3600)
    assert caught.value.exit_code == 1
    assert "time limit" in sim.ledger(1).reason


@pytest.mark.unit
def test_sigterm_is_the_night_s_also_when_its_cluster_takes_it_for_itself(memory_sim, monkeypatch):
    """ray.init installs a SIGTERM handler that exits with the signal's number; the night's handler must replace it."""

    @contextmanager
    def cluster():
        before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(number))
        yield
        signal.signal(signal.SIGTERM, before)

    def stopped(at, night):
        if at == "evaluate":
            os.kill(os.getpid(), signal.SIGTERM)

    memory_sim.stages.ready, memory_sim.stages.before = cluster, stopped
    with pytest.raises(Stopped, match="stopped by SIGTERM") as caught:
        memory_sim.at(1).run()
    assert (caught.value.exit_code, memory_sim.ledger(1).state, memory_sim.told) == (
        *(143, "failed"),
        [("2026-11-01", "failure")],
    )
    memory_sim.stages.before = lambda at, night: None
    assert memory_sim.run()["state"] == "promoted"


@pytest.mark.unit
def test_a_cluster_that_does_not_start_is_a_failed_night_that_is_told(memory_sim):
    @contextmanager
    def cluster():
        raise PipelineError("Ray did not start")
        yield

    memory_sim.at(1).run()
    memory_sim.stages.ready = cluster
    with pytest.raises(PipelineError, match="did not start"):
        memory_sim.at(2).run()
    night = memory_sim.ledger(2)
    assert (night.state, night.reason, night.attempts) == ("failed", "Ray did not start", 1)
    assert memory_sim.told[-1] == ("2026-11-02", "failure")
    memory_sim.stages.ready = nullcontext
    assert memory_sim.run()["state"] == "promoted"
