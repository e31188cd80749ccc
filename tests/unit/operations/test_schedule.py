"""Rendered schedules: each target's own parser accepts them, with the same run times and command words."""

import json
import re
import shlex
import shutil
import subprocess
import sys
import threading
import time
import types
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import jsonschema
import pytest
import yaml
from manifests_schema import SCHEMAS

from jobs.__main__ import main
from pipeline.config.cron import Cron
from pipeline.config.operations import ScheduleConfig
from pipeline.config.root import Config
from pipeline.errors import ConfigError
from pipeline.operations.schedule import TARGETS, calendar_events, render, run_here, shell_line
from pipeline.operations.scheduler import CronRuns, build

pytestmark = pytest.mark.unit

RAYJOB = Path(__file__).parents[3] / "deploy/kuberay/rayjob.yaml"
AWKWARD = ("ddpm", "nightly", "--date", "{date}", "--config", 'my "own" $night 100%.yaml', "--run", "runs/{date}-a")


def schedule(**values):
    base = {"cron": "30 2 * * 1-5", "time_zone": "Europe/Berlin", "command": AWKWARD, "rayjob": str(RAYJOB)}
    return ScheduleConfig(**{**base, **values})


def files(target, **values):
    return render(schedule(**values), target, None)["files"]


def test_a_shell_reads_the_words_of_the_command_and_the_day_of_the_zone():
    words = [w.replace("{date}", "2026-11-24") for w in AWKWARD]
    line = shell_line(AWKWARD, "$(TZ=Europe/Berlin date +%F)")
    made = subprocess.run(["bash", "-c", f'printf "%s\\0" {line}'], capture_output=True, check=True, text=True).stdout
    today = datetime.now(ZoneInfo("Europe/Berlin")).date()
    days = {today.isoformat(), (today - timedelta(days=1)).isoformat()}  # the day may end between the two
    assert any(made.split("\0")[:-1] == [w.replace("2026-11-24", day) for w in words] for day in days)


def unescaped(line):
    """How systemd unescapes a double-quoted word: backslashes, then %% and $$."""
    return line.replace('\\"', '"').replace("\\\\", "\\").replace("%%", "%").replace("$$", "$")


def test_systemd_verifies_the_units_and_the_service_says_the_line(tmp_path):
    made = files("systemd")
    assert set(made) == {"ddpm-nightly.service", "ddpm-nightly.timer"}
    exec_start = next(line for line in made["ddpm-nightly.service"].splitlines() if line.startswith("ExecStart="))
    inner = exec_start.removeprefix('ExecStart=/bin/sh -c "exec ').removesuffix('"')
    assert unescaped(inner) == shell_line(AWKWARD, "$(TZ=Europe/Berlin date +%F)")
    assert "Persistent=true" in made["ddpm-nightly.timer"]
    render(schedule(), "systemd", str(tmp_path))
    if shutil.which("systemd-analyze"):
        units = [str(tmp_path / name) for name in made]
        done = subprocess.run(["systemd-analyze", "verify", *units], capture_output=True, text=True)
        assert (done.returncode, [line for line in done.stderr.splitlines() if "ddpm" in line]) == (0, [])


@pytest.mark.parametrize("cron", ["30 2 * * 1-5", "*/20 1,13 * 2-4 *", "0 6 13 * FRI", "5 4 1 JAN *"])
def test_calendar_events_name_the_same_times(cron):
    events = calendar_events(Cron.parse(cron))
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd-analyze is not installed")
    found = set()
    for event in events:
        command = ["systemd-analyze", "calendar", "--iterations=6", "--base-time=2026-06-01 12:00:00", f"{event} UTC"]
        out = subprocess.run(
            command, capture_output=True, text=True, check=True, env={"TZ": "UTC", "LC_ALL": "C"}
        ).stdout
        times = re.findall(r"(?:Next elapse|Iter\. #\d+): \w+ ([-0-9]+ [:0-9]+)", out)
        assert len(times) == 6
        found |= {datetime.fromisoformat(f"{text}+00:00") for text in times}
    runs = Cron.parse(cron).runs(datetime(2026, 6, 1, 12, tzinfo=UTC), UTC)
    assert sorted(found)[:6] == [next(runs) for _ in range(6)]


def test_events_of_two_days_are_two_lines():
    assert calendar_events(Cron.parse("0 6 13 * FRI")) == ["Fri *-*-* 06:00:00", "*-*-13 06:00:00"]
    assert files("systemd", cron="0 6 13 * FRI")["ddpm-nightly.timer"].count("OnCalendar=") == 2


def test_crontab_lines_are_cron_s_grammar_and_lose_no_percent_sign():
    lines = [line for line in files("cron")["ddpm-nightly.crontab"].splitlines() if not line.startswith("#")]
    assert lines[0] == "CRON_TZ=Europe/Berlin"
    *fields, command = lines[1].split(maxsplit=5)
    Cron.parse(" ".join(fields))
    assert command.replace("\\%", "%") == shell_line(AWKWARD, "$(TZ=Europe/Berlin date +%F)")
    assert "%" not in command.replace("\\%", ""), "cron ends a command at a bare percent sign"


@pytest.mark.parametrize("target", ["k8s-cronjob", "raycronjob"])
def test_kubernetes_manifests_hold_known_fields_only(target):
    for document in yaml.safe_load_all(files(target)["ddpm-nightly.yaml"]):
        jsonschema.validate(document, SCHEMAS[document["kind"]])


def test_the_cronjob_creates_the_rayjob_with_our_line_grace_and_zone():
    documents = {d["kind"]: d for d in yaml.safe_load_all(files("k8s-cronjob", grace_hours=2.5)["ddpm-nightly.yaml"])}
    spec = documents["CronJob"]["spec"]
    assert (spec["schedule"], spec["timeZone"], spec["startingDeadlineSeconds"]) == (
        "30 2 * * 1-5",
        "Europe/Berlin",
        9000,
    )
    job = yaml.safe_load(documents["ConfigMap"]["data"]["rayjob.yaml"])
    jsonschema.validate(job, SCHEMAS["RayJob"])
    assert job["spec"]["entrypoint"] == shell_line(AWKWARD, "$(TZ=Europe/Berlin date +%F)")
    assert job["metadata"] == {"generateName": "ddpm-nightly-"}, "a fixed name could be created once only"
    assert job["spec"]["rayClusterSpec"] == yaml.safe_load(RAYJOB.read_text())["spec"]["rayClusterSpec"]


def test_the_raycronjob_has_the_zone_and_our_line():
    (document,) = yaml.safe_load_all(files("raycronjob")["ddpm-nightly.yaml"])
    assert document["spec"]["timeZone"] == "Europe/Berlin"
    assert document["spec"]["jobTemplate"]["entrypoint"].startswith("ddpm nightly --date $(TZ=Europe/Berlin date +%F)")


def test_the_airflow_dag_compiles_and_passes_the_day_of_the_run(monkeypatch):
    """Executes the DAG file against stubs of Airflow's four names, which record their arguments."""
    ((name, text),) = files("airflow").items()
    assert name == "ddpm-nightly.py"
    seen = {}

    class Dag:
        def __init__(self, **values):
            seen.update(values)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

    def module(path, **names):
        monkeypatch.setitem(sys.modules, path, types.SimpleNamespace(**names))

    module("airflow", DAG=Dag)
    module("airflow.timetables.trigger", CronTriggerTimetable=lambda cron, timezone: (cron, timezone))
    module("airflow.providers.standard.operators.bash", BashOperator=lambda **values: seen.update(values))
    module("pendulum", datetime=lambda *date, tz: (*date, tz))
    exec(compile(text, name, "exec"), {})
    assert (seen["dag_id"], seen["schedule"]) == ("ddpm-nightly", ("30 2 * * 1-5", "Europe/Berlin"))
    assert (seen["catchup"], seen["max_active_runs"]) == (False, 1)
    template = "{{ data_interval_end.in_timezone('Europe/Berlin') | ds }}"
    line = seen["bash_command"].replace(template, "2026-11-24")
    assert shlex.split(line) == [word.replace("{date}", "2026-11-24") for word in AWKWARD]
    assert line.endswith(" ")


def test_an_unknown_target_and_an_unusable_rayjob_are_one_line(tmp_path):
    with pytest.raises(ConfigError, match="--target, one of systemd, cron, k8s-cronjob, raycronjob, airflow"):
        render(schedule(), "windows", None)
    with pytest.raises(ConfigError, match=r"schedule\.rayjob: cannot read .*nothing\.yaml"):
        files("k8s-cronjob", rayjob=str(tmp_path / "nothing.yaml"))
    (tmp_path / "other.yaml").write_text("kind: RayCluster\n")
    with pytest.raises(ConfigError, match="must hold one RayJob"):
        files("raycronjob", rayjob=str(tmp_path / "other.yaml"))


def test_every_target_is_reached_from_the_command_line(tmp_path, capsys):
    flags = ["--schedule.time_zone", "Europe/Berlin", "--schedule.rayjob", str(RAYJOB)]
    for target in TARGETS:
        assert main(["schedule", "render", "--target", target, "--out", str(tmp_path / target), *flags]) == 0
        assert list((tmp_path / target).iterdir())
    assert main(["schedule", "run", "--dry-run", "--json", *flags]) == 0
    assert len(json.loads(capsys.readouterr().out.splitlines()[-1])["next"]) == 5
    assert main(["schedule", "run", "--schedule.cron", "0 99 * * *"]) == 2
    assert "schedule.cron: hour '99' must lie in 0-23 (got '0 99 * * *'; from command line)" in capsys.readouterr().err


def test_a_schedule_decides_no_result():
    assert Config().digest() == Config(schedule=schedule()).digest()


def test_a_start_shortly_after_a_run_makes_up_for_it_and_a_late_one_does_not():
    now = datetime.now(UTC)
    due = (now - timedelta(hours=2)).replace(second=0, microsecond=0)
    daily = {"cron": f"{due.minute} {due.hour} * * *", "time_zone": "UTC"}
    (job,) = build(schedule(**daily, grace_hours=3), print).get_jobs()
    assert job.next_run_time == due
    (job,) = build(schedule(**daily, grace_hours=1), print).get_jobs()
    assert job.next_run_time == due + timedelta(days=1)


def test_a_due_run_gets_the_day_that_it_was_due_on():
    now = datetime.now(UTC)
    due = (now - timedelta(hours=5)).replace(second=0, microsecond=0)
    started = []
    values = {"cron": f"{due.minute} {due.hour} * * *", "time_zone": "UTC", "grace_hours": 6}
    (job,) = build(schedule(**values, command=("do", "{date}")), started.append).get_jobs()
    job.func()
    assert started == [["do", due.date().isoformat()]]


def test_missed_runs_become_one_and_no_run_starts_beside_another():
    entered, release = threading.Semaphore(0), threading.Event()

    def start(_words):
        entered.release()
        release.wait(20)

    scheduler = build(schedule(cron="* * * * *", time_zone="UTC"), start)
    (job,) = scheduler.get_jobs()
    job.modify(next_run_time=datetime.now(UTC) - timedelta(minutes=30))
    thread = threading.Thread(target=scheduler.start)
    thread.start()
    try:
        assert entered.acquire(timeout=20)
        job.modify(next_run_time=datetime.now(UTC))
        assert not entered.acquire(timeout=0.5), "thirty runs were missed: one makes up for them, and it still runs"
    finally:
        release.set()
        scheduler.shutdown()
        thread.join(20)


def test_the_scheduler_keeps_our_times_over_clock_changes():
    trigger, berlin = CronRuns(schedule(cron="30 2 * * *")), ZoneInfo("Europe/Berlin")
    spring, autumn = datetime(2027, 3, 27, 12, tzinfo=berlin), datetime(2027, 10, 30, 12, tzinfo=berlin)
    assert trigger.get_next_fire_time(None, spring).isoformat() == "2027-03-28T03:30:00+02:00"
    first = trigger.get_next_fire_time(None, autumn)
    assert first.isoformat() == "2027-10-31T02:30:00+02:00"
    assert trigger.get_next_fire_time(first, first).isoformat() == "2027-11-01T02:30:00+01:00"


def test_sigterm_ends_the_command_and_then_the_scheduler(tmp_path):
    flag = tmp_path / "running"
    command = f"sh,-c,touch {flag}; exec sleep 60"
    argv = [
        sys.executable,
        "-m",
        "jobs",
        "schedule",
        "run",
        "--schedule.cron",
        "* * * * *",
        "--schedule.command",
        command,
    ]
    process = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not flag.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.terminate()
    _, said = process.communicate(timeout=20)
    assert process.returncode == 0
    assert "starts sh -c" in said
    assert "ended with -15" in said


def test_keep_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "apscheduler.executors.pool", None)
    monkeypatch.delitem(sys.modules, "pipeline.operations.scheduler")
    with pytest.raises(ConfigError, match=r"pip install 'ddpm-pipeline\[schedule\]'"):
        run_here(schedule(), dry_run=False)
