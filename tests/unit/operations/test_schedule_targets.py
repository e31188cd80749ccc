"""What each scheduler takes, and whether it starts one run a day over both clock changes or the files say otherwise."""

import json
import re
import shutil
import subprocess
from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.__main__ import main
from pipeline.config.cron import Cron, portable
from pipeline.config.operations import ScheduleConfig
from pipeline.operations.schedule import TARGETS, calendar_events, clock_change_warnings

pytestmark = pytest.mark.unit

ROBFIG = {  # documented bounds: https://pkg.go.dev/github.com/robfig/cron/v3, used by Kubernetes and KubeRay
    "minute": (0, 59),
    "hour": (0, 23),
    "day of month": (1, 31),
    "month": (1, 12),
    "day of week": (0, 6),
}
NOW = datetime(2026, 6, 1, tzinfo=UTC)
FILES = {"k8s-cronjob": "ddpm-nightly.yaml", "raycronjob": "ddpm-nightly.yaml", "cron": "ddpm-nightly.crontab"}


def robfig(text):
    """The values of each field as robfig/cron's standard parser reads them: number, range, step; no 7, no wrap."""
    fields = []
    for word, (low, high) in zip(text.split(), ROBFIG.values(), strict=True):
        found = set()
        for part in word.split(","):
            bounds, _, step = part.partition("/")
            first, dash, last = bounds.partition("-")
            start = low if first == "*" else int(first)
            end = high if first == "*" else int(last) if dash else start
            assert low <= start <= end <= high, part
            assert not step or (int(step) > 0 and (dash or first == "*")), "cronie ignores a step without a range"
            found |= set(range(start, end + 1, int(step or 1)))
        fields.append((found, word == "*"))
    return fields


def of(cron):
    full = [set(range(low, high + 1)) for low, high in ROBFIG.values()]
    days, weekdays = cron.days or full[2], cron.weekdays or full[4]
    return [set(cron.minutes), set(cron.hours), set(days), set(cron.months), set(weekdays)]


def numbers(low, high, names=()):
    one = st.one_of(st.integers(low, high).map(str), *([st.sampled_from(names)] if names else []))
    span = st.tuples(st.integers(low, high), st.integers(low, high)).map(lambda pair: "-".join(map(str, sorted(pair))))
    part = st.one_of(one, span, st.builds("{}/{}".format, st.one_of(span, st.just("*")), st.integers(1, 9)))
    return st.one_of(st.just("*"), st.lists(part, min_size=1, max_size=3).map(",".join))


@settings(max_examples=200, deadline=None)
@given(numbers(0, 59), numbers(0, 23), numbers(1, 12, ("JAN", "dec")), numbers(0, 7, ("SUN", "Fri")))
def test_every_expression_renders_within_robfig_s_bounds_with_the_same_times(minute, hour, month, weekday):
    text = f"{minute} {hour} * {month} {weekday}"
    parsed, rendered = Cron.parse(text), portable(text)
    assert Cron.parse(rendered) == parsed
    assert [found for found, _ in robfig(rendered)] == of(parsed)


@pytest.mark.parametrize(
    ("text", "rendered"),
    [
        ("0 3 * * 7", "0 3 * * 0"),
        ("0 3 * * 5-7", "0 3 * * 0,5,6"),
        ("0 3 * * 0-7/2", "0 3 * * 0,2,4,6"),
        ("0 3 * * SUN", "0 3 * * 0"),
        ("0 3 * * mon-FRI", "0 3 * * 1,2,3,4,5"),
        ("0 3 1 JAN,jul *", "0 3 1 1,7 *"),
        ("5/20 3 * * *", "5,25,45 3 * * *"),
        ("*/15 1-5/2 1,15 * *", "*/15 1-5/2 1,15 * *"),
        ("30 2 * * 1-5", "30 2 * * 1-5"),
    ],
)
def test_names_sunday_7_and_open_steps_become_numbers(text, rendered):
    assert portable(text) == rendered


@pytest.mark.parametrize("target", list(FILES))
def test_sunday_is_0_in_the_rendered_file(tmp_path, capsys, target):
    words = ["--schedule.cron", "0 3 * * 7", "--schedule.time_zone", "UTC", "--out", str(tmp_path)]
    assert main(["schedule", "render", "--target", target, *words]) == 0
    text = (tmp_path / FILES[target]).read_text()
    if target == "cron":
        assert "\n0 3 * * 0 ddpm" in text
    else:
        jobs = {document["kind"]: document for document in yaml.safe_load_all(text)}
        assert jobs["CronJob" if target == "k8s-cronjob" else "RayCronJob"]["spec"]["schedule"] == "0 3 * * 0"
    assert "warning" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("systemd", ["no 02:30 on 2027-03-28, when the clock changes: systemd starts no run"]),
        ("cron", ["no 02:30 on 2027-03-28", "two 02:30 on 2026-10-25"]),
        ("k8s-cronjob", ["no 02:30 on 2027-03-28", "two 02:30 on 2026-10-25"]),
        ("raycronjob", ["no 02:30 on 2027-03-28", "two 02:30 on 2026-10-25"]),
        ("airflow", []),
    ],
)
def test_a_time_inside_a_clock_change_is_a_warning_and_others_are_none(target, says):
    found = clock_change_warnings(ScheduleConfig(cron="30 2 * * *", time_zone="Europe/Berlin"), target, NOW)
    assert len(found) == len(says)
    assert all(text in line for text, line in zip(says, found, strict=True))
    for cron, zone in (("30 3 * * *", "Europe/Berlin"), ("30 2 * * *", "UTC"), ("30 2 * * MON", "Europe/Berlin")):
        assert clock_change_warnings(ScheduleConfig(cron=cron, time_zone=zone), target, NOW) == []
    every_hour = ScheduleConfig(cron="30 * * * *", time_zone="Europe/Berlin")
    assert clock_change_warnings(every_hour, target, NOW) == []


@pytest.mark.parametrize("target", list(TARGETS))
def test_the_warning_is_in_the_output_and_in_a_comment_of_the_file(tmp_path, capsys, target):
    words = ["--schedule.cron", "30 2 * * *", "--schedule.time_zone", "Europe/Berlin", "--out", str(tmp_path), "--json"]
    assert main(["schedule", "render", "--target", target, *words]) == 0
    out, error = capsys.readouterr()
    warnings = json.loads(out.splitlines()[-1])["warnings"]
    assert len(warnings) == {"systemd": 1, "airflow": 0}.get(target, 2)
    text = "".join(path.read_text() for path in tmp_path.iterdir())
    for line in warnings:
        assert f"warning: {line}" in error
        assert f"# Warning: {line}.\n" in text


ZONES = [
    "Europe/Berlin",
    "America/New_York",
    "America/Santiago",
    "Australia/Lord_Howe",
    "Atlantic/Azores",
    "Asia/Tokyo",
]


@pytest.mark.parametrize("zone", ZONES)
@pytest.mark.parametrize("cron", ["30 2 * * *", "15 0 * * *", "30 23 * * *", "0 3 * * 7", "45 1,2 * * *"])
def test_systemd_starts_our_runs_but_for_the_days_it_warns_of(zone, cron):
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd-analyze is not installed")
    parsed, local = Cron.parse(cron), ZoneInfo(zone)
    count = 400 * len(parsed.hours)
    (event,) = calendar_events(parsed)
    command = ["systemd-analyze", "calendar", f"--iterations={count}", "--base-time=2026-06-01 00:00:00"]
    done = subprocess.run(
        [*command, f"{event} {zone}"], capture_output=True, text=True, check=True, env={"TZ": "UTC", "LC_ALL": "C"}
    )
    times = re.findall(r"(?:Next elapse|Iter\. #\d+): \w+ ([-0-9]+ [:0-9]+)", done.stdout)
    found = [datetime.fromisoformat(f"{text}+00:00") for text in times]
    assert len(found) == count
    ours = {run.astimezone(UTC) for run in until(parsed, local, found[-1])}
    changes = list(changes_until(parsed, local, found[-1].date()))
    skipped = {datetime.combine(c.day, c.at, local).astimezone(UTC) for c in changes if not c.twice}
    assert ours - set(found) == skipped & ours
    assert set(found) <= ours
    warned = clock_change_warnings(ScheduleConfig(cron=cron, time_zone=zone), "systemd", NOW)
    assert bool(warned) == bool(skipped)


def until(cron, zone, end):
    for run in cron.runs(NOW, zone):
        if run > end:
            return
        yield run


def changes_until(cron, zone, end):
    for change in cron.clock_changes(NOW, zone):
        if change.day > end:
            return
        yield change


def test_a_change_is_named_with_its_day_and_time():
    changes = Cron.parse("30 2 * * *").clock_changes(NOW, ZoneInfo("Europe/Berlin"))
    assert next(changes) == (date(2026, 10, 25), time(2, 30), True)
    assert next(changes) == (date(2027, 3, 28), time(2, 30), False)
    assert next(Cron.parse("0 0 * * *").clock_changes(NOW, ZoneInfo("America/Santiago"))).day == date(2026, 9, 6)
    assert next(changes).day - date(2027, 3, 28) == timedelta(days=217)
