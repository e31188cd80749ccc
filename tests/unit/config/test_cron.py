"""Run times of cron expressions in a time zone. A wrong time at a clock change would lose or repeat a nightly run."""

from datetime import UTC, datetime, timedelta
from itertools import islice
from zoneinfo import ZoneInfo

import pytest
from apscheduler.triggers.cron import CronTrigger
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config.cron import Cron

pytestmark = pytest.mark.unit

BERLIN = ZoneInfo("Europe/Berlin")


def runs(text, start, count, zone=BERLIN):
    return [run.isoformat() for run in islice(Cron.parse(text).runs(start, zone), count)]


def test_a_time_that_a_clock_change_skips_runs_an_hour_later_on_the_same_day():
    start = datetime(2027, 3, 27, 12, tzinfo=BERLIN)
    assert runs("30 2 * * *", start, 2) == ["2027-03-28T03:30:00+02:00", "2027-03-29T02:30:00+02:00"]


def test_a_time_that_a_clock_change_repeats_runs_once():
    start = datetime(2027, 10, 30, 12, tzinfo=BERLIN)
    assert runs("30 2 * * *", start, 2) == ["2027-10-31T02:30:00+02:00", "2027-11-01T02:30:00+01:00"]
    between = datetime(2027, 10, 31, 1, 0, tzinfo=UTC)  # 02:00 for the second time
    assert runs("30 2 * * *", between, 1) == ["2027-11-01T02:30:00+01:00"]


def test_every_day_of_two_years_has_one_run_in_any_zone():
    for name in ("Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "America/Santiago"):
        zone = ZoneInfo(name)
        for hour in (0, 2, 3):
            found = list(islice(Cron.parse(f"15 {hour} * * *").runs(datetime(2026, 1, 1, tzinfo=zone), zone), 730))
            assert [run.date() for run in found] == [datetime(2026, 1, 1).date() + timedelta(n) for n in range(730)]


def test_two_times_that_a_skipped_hour_makes_equal_run_once():
    start = datetime(2027, 3, 28, 0, tzinfo=BERLIN)
    assert runs("30 2,3 * * *", start, 2) == ["2027-03-28T03:30:00+02:00", "2027-03-29T02:30:00+02:00"]


def test_day_of_month_or_day_of_week_is_enough():
    start = datetime(2026, 6, 1, 12, tzinfo=UTC)  # a Monday
    found = list(islice(Cron.parse("0 6 13 * FRI").runs(start, UTC), 4))
    assert [(run.day, run.isoweekday()) for run in found] == [(5, 5), (12, 5), (13, 6), (19, 5)]


@pytest.mark.parametrize("sunday", ["0", "7", "sun"])
def test_sunday_is_0_7_or_sun(sunday):
    first = next(Cron.parse(f"0 0 * * {sunday}").runs(datetime(2026, 6, 1, tzinfo=UTC), UTC))
    assert first.isoweekday() == 7


def test_the_last_run_within_the_past_hours():
    cron, now = Cron.parse("0 3 * * *"), datetime(2026, 6, 2, 8, tzinfo=UTC)
    assert cron.last_until(now, UTC, timedelta(hours=6)) == datetime(2026, 6, 2, 3, tzinfo=UTC)
    assert cron.last_until(now, UTC, timedelta(hours=5)) is None, "exactly as old as the grace is too old"
    assert cron.last_until(datetime(2026, 6, 2, 3, tzinfo=UTC), UTC, timedelta(hours=1)).hour == 3


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("0 3 * *", "five fields"),
        ("@daily", "five fields"),
        ("60 3 * * *", "minute '60' must lie in 0-59"),
        ("0 24 * * *", "hour '24'"),
        ("0 3 0 * *", "day of month '0'"),
        ("0 3 * 13 *", "month '13'"),
        ("0 3 * * 8", "day of week '8'"),
        ("0 3 * * MOM", "day of week 'MOM' is no number or SUN-SAT"),
        ("0 5-3 * * *", "hour '5-3'"),
        ("*/0 3 * * *", "minute '*/0'"),
        ("0 3 31 2 *", "no month has"),
        ("0 3 */2 * MON", "disagree"),
        ("0 3,, * * *", "hour ''"),
    ],
)
def test_an_invalid_expression_is_refused_by_field(text, says):
    with pytest.raises(ValueError, match=r".") as caught:
        Cron.parse(text)
    assert says in str(caught.value)


def field(low, high):
    number = st.integers(low, high)
    span = st.tuples(number, number).map(lambda pair: f"{min(pair)}-{max(pair)}")
    stepped = st.integers(1, 9).map(f"{low}-{high}/{{}}".format)  # APScheduler refuses a step wider than the range
    part = st.one_of(number.map(str), span, stepped)
    return st.one_of(
        st.just("*"), st.integers(1, 9).map("*/{}".format), st.lists(part, min_size=1, max_size=3).map(",".join)
    )


@settings(max_examples=60)
@given(field(0, 59), field(0, 23), field(1, 28), field(1, 12), st.datetimes(datetime(2024, 1, 1), datetime(2030, 1, 1)))
def test_without_clock_changes_it_agrees_with_another_implementation(minute, hour, day, month, start):
    start = start.replace(tzinfo=UTC, microsecond=0)
    theirs, at = CronTrigger(minute=minute, hour=hour, day=day, month=month, timezone=UTC), start
    for ours in islice(Cron.parse(f"{minute} {hour} {day} {month} *").runs(start, UTC), 3):
        at = theirs.get_next_fire_time(None, at + timedelta(microseconds=1))
        assert ours == at
