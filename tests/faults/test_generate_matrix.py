"""Before, after and within every step of the commit protocol, every way to die: the same command ends the same."""

import pytest
from crash_points import EXIT_CODE, STEPS, Fault, Player
from invariants import check_invariants, created_once
from played_job import MORE, PLAN, finishes, is_whole, litter, play

from pipeline.config.storage import StorageConfig
from pipeline.storage.store import resolve

pytestmark = pytest.mark.faults

EXITS = {"exception": 1, "exit": EXIT_CODE, "kill": -9, "hang": -9}
NIGHTLY_BUT_KILL = [pytest.param(k, marks=[] if k == "kill" else pytest.mark.nightly) for k in EXITS]
WRITTEN = ("PLAN", "DATA", "MARK", "SEAL", "SUCCESS")


def dies(job, fault):
    """A process does the job among what dead attempts left, until it breaks."""
    litter(job, MORE if fault.of_more else PLAN)
    with Player(job, fault) as player:
        player.reaches_its_fault()
        if fault.kind == "hang":
            player.kill()
        assert player.ends() == EXITS[fault.kind], player.error


@pytest.mark.parametrize("kind", EXITS)
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("step", STEPS)
def test_on_local_files(step, when, kind, tmp_path):
    job = resolve(str(tmp_path / "job"), StorageConfig())
    dies(job, Fault(step, when, kind))
    finishes(job)


@pytest.mark.parametrize("kind", NIGHTLY_BUT_KILL)
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("step", STEPS)
def test_an_extension_on_local_files(step, when, kind, tmp_path):
    """The samples that were sealed before stay what they are, and stay readable."""
    job = resolve(str(tmp_path / "job"), StorageConfig())
    play(job)
    sealed = created_once(job)
    dies(job, Fault(step, when, kind, of_more=True))
    check_invariants(job, sealed)
    finishes(job, MORE)
    is_whole(job, sealed, MORE)
    play(job)
    is_whole(job, sealed, MORE)


@pytest.mark.parametrize("kind", ["exception", "kill"])
@pytest.mark.parametrize("step", WRITTEN)
def test_on_local_files_with_the_bytes_written_and_the_name_not_given(step, kind, tmp_path):
    job = resolve(str(tmp_path / "job"), StorageConfig())
    dies(job, Fault(step, "within", kind))
    finishes(job)


@pytest.mark.parametrize("kind", NIGHTLY_BUT_KILL)
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("step", STEPS)
def test_on_s3(step, when, kind, s3_uri):
    job = resolve(s3_uri, StorageConfig())
    dies(job, Fault(step, when, kind))
    finishes(job)


@pytest.mark.parametrize("when", ["after", "before"], ids=["lost reply", "lost request"])
@pytest.mark.parametrize("step", [*WRITTEN, "GC"])
def test_the_store_does_not_say_whether_it_did(step, when, tmp_path):
    """A create-once is asked again and read back; at the other writes the attempt is given up and the job run again."""
    job = resolve(str(tmp_path / "job"), StorageConfig())
    litter(job)
    with Player(job, Fault(step, when, "lost")) as player:
        player.reaches_its_fault()
        asked_again = step in ("PLAN", "MARK", "SEAL")
        assert player.ends() == (0 if asked_again else 1)
        assert asked_again or player.error == "Transient: lost"
    finishes(job)
