"""Logging: readable text or one JSON object a line on stderr, and workers' warnings on the driver without a flood."""

import io
import json
import logging
import pickle
import subprocess
import sys

import pytest

from pipeline import log, progress
from pipeline.log import collect, configure, logger, replay
from pipeline.progress import Progress

pytestmark = pytest.mark.unit
child = logging.getLogger("ddpm.test")


@pytest.fixture(autouse=True)
def fresh():
    """The logger as a new process has it, before and after."""
    handlers, level = list(logger.handlers), logger.level
    logger.handlers.clear()
    log._forwarded.clear()
    log._origin.clear()
    yield
    log._origin.clear()
    logger.handlers[:] = handlers
    logger.setLevel(level)
    progress.allow_bars(True)


def error() -> Exception:
    try:
        raise KeyError("x")
    except KeyError as raised:
        return raised


def test_text_is_for_a_person(capsys):
    configure()
    child.debug("hidden")
    child.info("submitted %s", "job-1")
    child.warning("away")
    child.error("two\nlines")
    child.error("unexpected KeyError", exc_info=error())
    lines = capsys.readouterr().err.splitlines()
    assert lines[:4] == ["submitted job-1", "warning: away", "error: two", "error: lines"]
    assert lines[4] == "Traceback (most recent call last):"
    assert lines[-1] == "error: unexpected KeyError"


@pytest.mark.parametrize(("level", "shown"), [("debug", 4), ("info", 3), ("warning", 2), ("error", 1)])
def test_the_level_is_the_least_that_is_shown(capsys, level, shown):
    configure(level)
    for number in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR):
        child.log(number, "x")
    assert len(capsys.readouterr().err.splitlines()) == shown


def test_json_is_one_object_a_line(capsys):
    configure(style="json")
    child.warning("two\nlines")
    child.error("unexpected", exc_info=error())
    first, second = (json.loads(line) for line in capsys.readouterr().err.splitlines())
    assert (first["level"], first["logger"], first["message"]) == ("warning", "ddpm.test", "two\nlines")
    assert first["time"].endswith("+00:00")
    assert "KeyError: 'x'" in second["traceback"]


def test_configuring_again_leaves_one_handler(capsys):
    configure()
    configure("warning")
    child.info("hidden")
    child.warning("once")
    assert capsys.readouterr().err == "warning: once\n"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_log_line_is_not_glued_to_a_bar(monkeypatch):
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    monkeypatch.setattr(progress, "BAR_INTERVAL_SECONDS", 0)
    configure()
    bar = Progress("train", 10, "steps")
    bar.update(5)
    child.warning("away")
    child.warning("back")
    bar.update(6)
    bar.close()
    parts = terminal.getvalue().split("\r\x1b[K")
    assert parts[0] == ""
    assert parts[1].startswith("train [")
    assert parts[2] == "warning: away\nwarning: back\n"
    assert parts[-1].endswith("\n")


@pytest.mark.parametrize("setting", [("info", "json"), ("warning", "text")])
def test_a_terminal_gets_no_bar_in_json_or_when_only_warnings_are_wanted(monkeypatch, setting):
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    configure(*setting)
    Progress("train", 10, "steps").close()
    assert "\r" not in terminal.getvalue()
    assert [json.loads(line)["logger"] for line in terminal.getvalue().splitlines()] == ["ddpm.progress"] * (
        setting[1] == "json"
    )


# --- workers ---------------------------------------------------------------------------------------------------------


def test_a_worker_s_warning_arrives_with_its_origin(capsys):
    warnings = collect(actor="node-1:42")
    child.info("stays")
    child.warning("%s is away", "s3://b")
    own = [json.loads(line) for line in capsys.readouterr().err.splitlines()]  # the worker's file on its node
    assert [(line["message"], line["actor"]) for line in own] == [
        ("stays", "node-1:42"),
        ("s3://b is away", "node-1:42"),
    ]
    entries = pickle.loads(pickle.dumps(warnings.take()))
    assert [(entry.message, entry.origin["actor"]) for entry in entries] == [("s3://b is away", "node-1:42")]
    assert warnings.take() == []
    configure()
    replay(entries)
    assert f"warning: [node {entries[0].origin['node']}, actor node-1:42] s3://b is away" in capsys.readouterr().err


def test_a_driver_that_collects_keeps_its_own_setting(capsys):
    configure()
    collect(task="x")
    child.warning("plain")
    assert capsys.readouterr().err == "warning: plain\n"


def test_json_has_rank_and_time_of_the_worker(capsys):
    sent = []
    collect(sent.append, rank=3)
    child.error("lost")
    configure(style="json")
    capsys.readouterr()
    replay([sent[0]._replace(created=0.0)])
    line = json.loads(capsys.readouterr().err)
    assert (line["rank"], line["level"], line["time"]) == (3, "error", "1970-01-01T00:00:00.000+00:00")


def test_an_outage_that_64_workers_see_is_few_lines(capsys, monkeypatch):
    configure()
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])

    def lines() -> int:
        for rank in range(64):
            warnings = collect(rank=rank)
            for _ in range(10):
                child.warning("%s: no answer", "run")
            child.warning("shard %d: no answer", rank)
            entries = warnings.take()
            assert len(entries) == 2
            capsys.readouterr()
            replay(entries)
            shown.append(capsys.readouterr().err)
        return len("".join(shown).splitlines())

    shown: list[str] = []
    assert lines() == 1 + log.LIKE_MESSAGES
    shown.clear()
    now[0] += log.REPEAT_SECONDS
    assert lines() == 1 + log.LIKE_MESSAGES


def test_a_collector_keeps_a_bounded_number_and_replaces_the_one_before():
    first = collect(task="a")
    second = collect(task="b")
    for number in range(2 * log.MAX_PENDING):
        child.warning(f"template {number}")
    assert first.take() == []
    assert len(second.take()) == log.MAX_PENDING


def test_logging_starts_neither_ray_nor_torch():
    code = "import pipeline.log, sys; sys.exit(bool({'ray', 'torch'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
