"""Progress: rate of this run only, time left at that rate, plain lines where there is no terminal."""

import pytest

from pipeline.progress import Progress, duration

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(("seconds", "text"), [(5.4, "5 s"), (65, "1 min 05 s"), (7800, "2 h 10 min")])
def test_durations_read_well(seconds, text):
    assert duration(seconds) == text


def test_the_rate_does_not_count_what_was_there_before():
    progress = Progress("train", 100, "steps", start=40)
    progress.done = 50
    line = progress.line(progress._began + 5.0)
    assert "50/100 steps" in line
    assert "2.0 steps/s" in line
    assert "ETA 25 s" in line


def test_no_terminal_means_plain_lines_and_few(caplog):
    caplog.set_level("INFO", "ddpm")
    progress = Progress("x", 10, "images")
    for done in range(10):
        progress.update(done)
    progress.close()
    assert len(caplog.messages) == 1
    assert "\r" not in caplog.text
