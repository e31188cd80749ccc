"""An S3 server behind a bad line: lost and late requests, refusals, absence, its own death. The job ends the same."""

import pytest
from crash_points import STEPS, Fault, Player
from invariants import created_once
from played_job import finishes, is_whole, litter

from pipeline.config.storage import StorageConfig
from pipeline.storage.store import resolve
from proxy import HttpProxy

pytestmark = pytest.mark.faults

WRITES = {step: f"{'DELETE' if step == 'GC' else 'PUT'} .*/{key}" for step, (_, key) in STEPS.items() if step != "MAKE"}
LATE_SECONDS = 2.0
BY_DAY = {"lost reply": WRITES, "503": ("MARK", "GC"), "late": ("DATA", "MARK", "SEAL")}
"""The rest of the matrix runs at night."""


def matrix():
    for action in ("lost reply", "lost request", "503", "500", "late"):
        for step in WRITES:
            by_day = step in BY_DAY.get(action, ())
            yield pytest.param(action, step, marks=[] if by_day else pytest.mark.nightly)


@pytest.fixture
def line(seaweed):
    port = int(seaweed.endpoint.rpartition(":")[2])
    with HttpProxy("127.0.0.1", port, LATE_SECONDS) as proxy:
        yield proxy


@pytest.fixture
def job(s3_uri):
    """The folder, reached directly."""
    job = resolve(s3_uri, StorageConfig())
    litter(job)
    return job


def through(line, job, retries=3):
    """The same folder through the line, for a client that soon loses patience."""
    impatient = StorageConfig(endpoint=line.endpoint, read_timeout_seconds=1, retries=retries)
    return resolve(job.uri, impatient)


@pytest.mark.parametrize(("action", "step"), [*matrix()])
def test_one_write_meets_a_bad_line(action, step, job, line):
    """The same process gets over it."""
    broken = line.break_next(WRITES[step], action)
    with Player(through(line, job)) as player:
        assert player.ends() == 0, player.error
    assert broken.struck == 1
    if action == "late":
        assert line.landed.acquire(timeout=60)
    is_whole(job)


@pytest.mark.parametrize("rerun", ["before it", "after it"])
@pytest.mark.parametrize("step", ["DATA", "MARK", "SEAL"])
def test_the_request_of_a_dead_process_lands_late(step, rerun, job, line):
    """A late marker may still win, since its data is there until the seal; a late data file is only left over."""
    line.break_next(WRITES[step], "late")
    with Player(through(line, job)) as player:
        assert line.holds.acquire(timeout=60)
        player.kill()
        player.ends()
    earlier = created_once(job)
    if rerun == "after it":
        assert line.landed.acquire(timeout=60)
    finishes(job)
    if rerun == "before it":
        assert line.landed.acquire(timeout=60)
        finishes(job)
    is_whole(job, earlier)


def test_every_third_request_fails_in_its_own_way(job, line):
    for every, action in ((3, "503"), (7, "500"), (5, "lost reply"), (11, "lost request")):
        line.break_next(".", action, times=1000, every=every)
    with Player(through(line, job, retries=9)) as player:
        assert player.ends() == 0, player.error
    is_whole(job)


@pytest.mark.parametrize("step", ["DATA", "MARK", "SEAL", "GC"])
def test_the_store_is_away_for_longer_than_anyone_waits(step, job, line):
    with Player(through(line, job, retries=0), Fault(step, "before", "wait")) as player:
        player.reaches_its_fault()
        line.cut()
        player.goes_on()
        assert player.ends() == 1
        assert player.error.startswith("Transient: ")
    finishes(job)


@pytest.mark.parametrize(
    ("step", "when"),
    [("DATA", "before"), ("MARK", "after"), pytest.param("SEAL", "after", marks=pytest.mark.nightly)],
)
def test_the_server_is_killed_and_started_again(step, when, job, seaweed):
    """What it acknowledged is there afterwards; the process waits for it and goes on."""
    patient = resolve(job.uri, StorageConfig(retries=9))
    with Player(patient, Fault(step, when, "wait")) as player:
        player.reaches_its_fault()
        earlier = created_once(job)
        seaweed.kill()
        player.goes_on()
        seaweed.restart()
        assert player.ends() == 0, player.error
    is_whole(job, earlier)
