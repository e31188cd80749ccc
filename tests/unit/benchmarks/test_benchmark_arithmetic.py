"""What benchmarks compute from their clocks: wrong arithmetic there would be a wrong claim."""

import math

import pyarrow as pa
import pytest
from equal_fd import judged
from scaleout import asleep
from suite import HEADLINES, RUNS, Outcome, closing_table, rows_of
from time_to_fd import compared, reached

pytestmark = pytest.mark.unit


def log_of(*shards):
    """Rows (start, seconds) of a shard log."""
    return pa.table({"started": [float(s) for s, _ in shards], "seconds": [float(d) for _, d in shards]})


def test_actors_that_never_wait_are_fully_efficient():
    found = asleep(log_of((0, 2), (2, 2), (4, 2), (0, 2), (2, 2), (4, 2)), actors=2)
    assert found == {"efficiency": pytest.approx(1.0), "whole_efficiency": pytest.approx(1.0)}


def test_pauses_between_shards_count():
    """One actor rests a second between two shards of two seconds; the other does not."""
    found = asleep(log_of((0, 2), (3, 2), (0, 2.5), (2.5, 2.5)), actors=2)
    assert found["efficiency"] == pytest.approx(5 / 6)  # until second 3, when both are at work for the last time
    assert found["whole_efficiency"] == pytest.approx(9 / 10)


def test_the_end_with_fewer_actors_counts_only_for_the_whole():
    found = asleep(log_of((0, 2), (2, 2), (0, 2), (2, 2), (4, 4)), actors=2)
    assert found["efficiency"] == pytest.approx(1.0)
    assert found["whole_efficiency"] == pytest.approx(12 / 16)


def test_actors_that_never_meet_are_an_error():
    with pytest.raises(RuntimeError, match="2 actors never worked at the same time"):
        asleep(log_of((0, 2), (3, 2)), actors=2)


def test_time_to_a_level_is_read_off_the_curve():
    curve = [(10.0, 100.0), (20.0, 10.0), (30.0, 1.0)]
    assert reached(curve, 10.0) == pytest.approx(20.0)
    assert reached(curve, math.sqrt(1000.0)) == pytest.approx(15.0)  # half-way in the logarithm
    assert reached(curve, 200.0) == 10.0
    assert reached(curve, 0.5) == math.inf


def test_a_trainer_twice_as_fast_needs_half_the_time():
    theirs = [(10.0 * k, 100.0 / k) for k in range(1, 11)]
    mine = [(cpu / 2, fd) for cpu, fd in theirs]
    found = compared(mine, theirs)
    assert found["cpu_over_diffusers"]["value"] == pytest.approx(0.5)
    assert found["cpu_over_diffusers"]["ok"]
    assert not compared(theirs, mine)["cpu_over_diffusers"]["ok"]
    assert compared(mine, theirs[:5])["target_fd"]["value"] == pytest.approx(20.0)  # the best that both reach


def figure(value, bar=None, ok=True):
    return {"value": value, "bar": bar, "ok": ok}


def test_the_table_has_headlines_other_bars_and_failures():
    figures = {
        "requests_a_shard": figure(4.5, 4.1, False),
        "commit_over_put": figure(2.0),
        "commit_ms": figure(20.0),
        "put_ms": figure(10.0),
    }
    outcomes = {
        "commit": Outcome(figures, 1.0),
        "million": Outcome({"gaps": figure(0, 0)}, 1.0),
        "train": Outcome(None, 2.0, "exit 1: no store"),
    }
    rows = rows_of(outcomes)
    assert ("commit a shard, ms: ours / one put", "20", "10", "2", "", "") in rows
    assert ("requests to the store a shard", "", "", "4.5", "4.1", "NO") in rows
    assert ("million: gaps", "", "", "0", "0", "yes") in rows
    assert rows[-1] == ("train", "", "", "", "", "FAILED: exit 1: no store")
    assert len(closing_table(rows).splitlines()) == len(rows) + 1


def test_headlines_are_of_scripts_that_the_suite_runs():
    assert {line.script for line in HEADLINES} <= {script.name for script in RUNS}


def test_the_fastest_of_the_samplers_that_are_as_good_counts():
    samplers = [("ddpm", 1000), ("ddim", 50), ("dpm++2m", 10)]
    rates = {samplers[0]: ([1.0], []), samplers[1]: ([20.0, 22.0], [10.0, 11.0]), samplers[2]: ([100.0], [50.0])}
    bad = judged(samplers, dict(zip(samplers, (2.0, 2.05, 3.0), strict=True)), 0.1, rates)
    assert (bad["speed_up_at_equal_fd"]["value"], bad["steps_at_equal_fd"]["value"]) == (21.0, 50)
    assert bad["ddim_50_over_diffusers"] == figure(2.0, 1.7)
    assert "ddpm_1000_over_diffusers" not in bad
    good = judged(samplers, dict(zip(samplers, (2.0, 2.05, 2.19), strict=True)), 0.1, rates)
    assert (good["speed_up_at_equal_fd"]["value"], good["steps_at_equal_fd"]["value"]) == (100.0, 10)
