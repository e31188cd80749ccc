"""Retries: which errors are repeated, for how long, and with which waits."""

import time

import pytest

from pipeline.errors import AlreadyExists, Transient
from pipeline.storage.retry import limited, retry, retry_through_outage

pytestmark = pytest.mark.unit


class Away:
    """Fails `failures` times, then returns "data"."""

    def __init__(self, failures: float, error: type[Exception] = Transient) -> None:
        self.failures, self.error, self.calls = failures, error, 0

    def __call__(self) -> str:
        self.calls += 1
        if self.calls <= self.failures:
            raise self.error("no answer")
        return "data"


def test_a_first_success_is_called_once_and_logs_nothing(caplog):
    action = Away(0)
    assert retry_through_outage(action, 10, "shard 3") == "data"
    assert (action.calls, caplog.messages) == (1, [])


def test_an_outage_logs_two_lines_however_many_retries(monkeypatch, caplog):
    monkeypatch.setattr("pipeline.storage.retry.FIRST_DELAY_SECONDS", 0.01)
    action = Away(4)
    assert retry_through_outage(action, 10, "shard 3") == "data"
    assert action.calls == 5
    assert len(caplog.messages) == 2
    assert "shard 3: no answer; waiting up to 10 s" in caplog.messages[0]
    assert "shard 3: the store is back" in caplog.messages[1]


def test_retries_end_after_the_time_with_a_last_try(caplog):
    action = Away(float("inf"))
    began = time.monotonic()
    with pytest.raises(Transient, match=r"shard 3: the store was away for 1 s: no answer"):
        retry_through_outage(action, 0.6, "shard 3")
    assert 0.6 <= time.monotonic() - began < 5
    assert 2 <= action.calls <= 4
    assert len(caplog.messages) == 1


def test_waits_grow_and_are_bounded(monkeypatch):
    pauses, now = [], [0.0]
    monkeypatch.setattr("time.sleep", lambda seconds: (pauses.append(seconds), now.__setitem__(0, now[0] + seconds)))
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    with pytest.raises(Transient, match="away for 600 s"):
        retry_through_outage(Away(float("inf")), 600, "x")
    assert sum(pauses) == pytest.approx(600)
    for number, pause in enumerate(pauses[:-1]):
        longest = min(0.5 * 2**number, 15.0)
        assert longest / 2 <= pause <= longest
    assert len(set(pauses)) == len(pauses)  # spread, so that many workers do not return together


def test_an_outage_of_zero_seconds_is_one_try(caplog):
    action = Away(1)
    with pytest.raises(Transient):
        retry_through_outage(action, 0, "x")
    assert (action.calls, caplog.messages) == (1, [])


def test_other_errors_are_not_repeated():
    action = Away(1, AlreadyExists)
    with pytest.raises(AlreadyExists):
        retry_through_outage(action, 600, "x")
    assert action.calls == 1


def test_a_limited_policy_doubles_its_waits_and_then_raises_the_error(monkeypatch):
    waits = []
    monkeypatch.setattr("time.sleep", waits.append)
    action = Away(float("inf"))
    with pytest.raises(Transient, match="no answer"):
        retry(action, limited(4, first_seconds=1.0, longest_seconds=4.0))
    assert action.calls == 5
    assert all(longest / 2 <= wait <= longest for wait, longest in zip(waits, (1, 2, 4, 4), strict=True))


def test_a_limited_policy_repeats_only_what_it_was_given(monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    assert retry(Away(2, AlreadyExists), limited(2, 1.0, repeatable=lambda error: True)) == "data"
    action = Away(1, AlreadyExists)
    with pytest.raises(AlreadyExists):
        retry(action, limited(2, 1.0))
    assert action.calls == 1
