"""Two drivers at once, and zombies: a process that sleeps through the seal and the garbage collection, and wakes."""

import pytest
from crash_points import STEPS, Fault, Player
from invariants import created_once
from played_job import MORE, PLAN, finishes, is_whole, litter, play

from pipeline.config.storage import StorageConfig
from pipeline.errors import ConfigError
from pipeline.generation.commit import create_plan
from pipeline.storage.store import resolve

pytestmark = pytest.mark.faults

POINTS = [(step, when) for step in STEPS for when in ("before", "after")]
TOGETHER = [("PLAN", "before"), ("DATA", "after"), ("SEAL", "before"), ("SUCCESS", "before"), ("GC", "before")]
BEFORE_ITS_END = [(step, "before") for step in ("DATA", "MARK", "SEAL", "SUCCESS", "GC")]
ON_S3 = {("DATA", "before"), ("MARK", "before"), ("SEAL", "before")}


def both_stores(points):
    """Parameters (kind, step, when): every point on local files; on S3 some, and all at night."""
    for step, when in points:
        yield pytest.param("local", step, when)
        yield pytest.param("s3", step, when, marks=[] if (step, when) in ON_S3 else pytest.mark.nightly)


@pytest.fixture
def job(request, kind, tmp_path):
    uri = request.getfixturevalue("s3_uri") if kind == "s3" else str(tmp_path / "job")
    return resolve(uri, StorageConfig())


def owns(step, when):
    """Whether a process that stopped there had committed its shard."""
    return step not in ("MAKE", "DATA") and (step, when) != ("MARK", "before")


@pytest.mark.parametrize(("kind", "step", "when"), [*both_stores(POINTS)])
def test_a_zombie_wakes_after_the_seal_and_the_collection(job, step, when):
    """Its images differ from those that were committed meanwhile: none of them may get in."""
    litter(job)
    with Player(job, Fault(step, when, "stop"), variant=0 if owns(step, when) else 1) as zombie:
        zombie.reaches_its_fault().is_stopped()
        finishes(job)
        earlier = created_once(job)
        zombie.goes_on()
        assert zombie.ends() == 0, zombie.error
    is_whole(job, earlier)


@pytest.mark.parametrize(("kind", "step", "when"), [*both_stores(BEFORE_ITS_END)])
def test_a_zombie_wakes_after_the_job_was_extended(job, step, when):
    """It ends the job that it knew; the extension, which it does not know, loses nothing."""
    litter(job)
    with Player(job, Fault(step, when, "stop"), variant=0 if owns(step, when) else 1) as zombie:
        zombie.reaches_its_fault().is_stopped()
        finishes(job)
        finishes(job, MORE)
        earlier = created_once(job)
        zombie.goes_on()
        assert zombie.ends() == 0, zombie.error
    is_whole(job, earlier, MORE)


@pytest.mark.parametrize(("step", "when"), TOGETHER)
def test_two_drivers_extend_at_once(step, when, tmp_path):
    job = resolve(str(tmp_path / "job"), StorageConfig())
    play(job)
    sealed = created_once(job)
    litter(job, MORE)
    fault = Fault(step, when, "wait", of_more=True)
    with Player(job, fault) as one, Player(job, fault) as other:
        for driver in (one, other):
            driver.reaches_its_fault()
        for driver in (one, other):
            driver.goes_on()
        for driver in (one, other):
            assert driver.ends() == 0, driver.error
    is_whole(job, sealed, MORE)


@pytest.mark.parametrize(("kind", "step", "when"), [*both_stores(TOGETHER)])
def test_two_drivers_take_the_same_step_at_once(job, step, when):
    litter(job)
    fault = Fault(step, when, "wait")
    with Player(job, fault) as one, Player(job, fault) as other:
        for driver in (one, other):
            driver.reaches_its_fault()
        for driver in (one, other):
            driver.goes_on()
        for driver in (one, other):
            assert driver.ends() == 0, driver.error
    is_whole(job)


@pytest.mark.parametrize("kind", ["local", "s3"])
def test_four_drivers_race(job):
    litter(job)
    drivers = [Player(job) for _ in range(4)]
    for driver in drivers:
        with driver:
            assert driver.ends() == 0, driver.error
    is_whole(job)


@pytest.mark.parametrize("kind", ["local", "s3"])
def test_another_plan_is_refused_and_touches_nothing(job):
    with Player(job, Fault("MARK", "before", "wait")) as driver:
        driver.reaches_its_fault()
        before = [tuple(entry) for entry in job.list()]
        with pytest.raises(ConfigError, match="seed 3 stored, 4 requested"):
            create_plan(job, PLAN.model_copy(update={"seed": 4}))
        assert [tuple(entry) for entry in job.list()] == before
        driver.goes_on()
        assert driver.ends() == 0, driver.error
    is_whole(job)
    play(job)
    is_whole(job)
