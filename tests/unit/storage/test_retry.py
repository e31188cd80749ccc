"""Waiting for a store that is away, and for nothing else."""

import time

import pytest

from pipeline.errors import AlreadyExists, Transient
from pipeline.storage.retry import patiently

pytestmark = pytest.mark.unit


class Away:
    """Fails so often, then answers."""

    def __init__(self, failures: float, error: type[Exception] = Transient) -> None:
        self.failures, self.error, self.calls = failures, error, 0

    def __call__(self) -> str:
        self.calls += 1
        if self.calls <= self.failures:
            raise self.error("no answer")
        return "data"


def test_a_store_that_answers_is_asked_once_and_nothing_is_said(caplog):
    action = Away(0)
    assert patiently(action, 10, "shard 3") == "data"
    assert (action.calls, caplog.messages) == (1, [])


def test_two_lines_are_said_however_often_it_is_tried(monkeypatch, caplog):
    monkeypatch.setattr("pipeline.storage.retry.FIRST_DELAY_SECONDS", 0.01)
    action = Away(4)
    assert patiently(action, 10, "shard 3") == "data"
    assert action.calls == 5
    assert len(caplog.messages) == 2
    assert "shard 3: no answer; waiting up to 10 s" in caplog.messages[0]
    assert "shard 3: the store is back" in caplog.messages[1]


def test_patience_ends_after_its_time_with_a_last_try(caplog):
    action = Away(float("inf"))
    began = time.monotonic()
    with pytest.raises(Transient, match=r"shard 3: the store was away for 1 s: no answer"):
        patiently(action, 0.6, "shard 3")
    assert 0.6 <= time.monotonic() - began < 5
    assert 2 <= action.calls <= 4
    assert len(caplog.messages) == 1


def test_pauses_grow_and_are_bounded(monkeypatch):
    pauses, now = [], [0.0]
    monkeypatch.setattr("time.sleep", lambda seconds: (pauses.append(seconds), now.__setitem__(0, now[0] + seconds)))
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    with pytest.raises(Transient, match="away for 600 s"):
        patiently(Away(float("inf")), 600, "x")
    assert sum(pauses) == pytest.approx(600)
    for number, pause in enumerate(pauses[:-1]):
        longest = min(0.5 * 2**number, 15.0)
        assert longest / 2 <= pause <= longest
    assert len(set(pauses)) == len(pauses)  # spread: many workers do not return together


def test_without_patience_one_try(caplog):
    action = Away(1)
    with pytest.raises(Transient):
        patiently(action, 0, "x")
    assert (action.calls, caplog.messages) == (1, [])


def test_other_errors_pass_at_once():
    action = Away(1, AlreadyExists)
    with pytest.raises(AlreadyExists):
        patiently(action, 600, "x")
    assert action.calls == 1
