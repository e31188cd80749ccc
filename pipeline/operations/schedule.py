"""Driver of `ddpm schedule`: renders the schedule for an external scheduler, or runs it in the foreground.

A scheduler only starts the command; the command itself handles repeated, late and overlapping runs. The date is
computed when the command starts, in the schedule's time zone.
"""

import json
import logging
import shlex
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import jinja2
import yaml

from pipeline.config.cron import Cron, portable
from pipeline.config.operations import DATE, ScheduleConfig
from pipeline.config.yaml_loader import read_manifest
from pipeline.errors import ConfigError

logger = logging.getLogger("ddpm.operations")

TARGETS = {
    "systemd": {"systemd.service": "{name}.service", "systemd.timer": "{name}.timer"},
    "cron": {"cron.crontab": "{name}.crontab"},
    "k8s-cronjob": {"k8s-cronjob.yaml": "{name}.yaml"},
    "raycronjob": {"raycronjob.yaml": "{name}.yaml"},
    "airflow": {"airflow.py.txt": "{name}.py"},
}
"""Template name -> file name, by target."""
_CLOCK_CHANGES = {
    "systemd": ("systemd starts no run that day", None),
    "cron": ("cron may start no run that day", "cron may start two runs that day"),
    "k8s-cronjob": ("Kubernetes starts no run that day", "Kubernetes starts two runs that day"),
    "raycronjob": ("KubeRay starts no run that day", "KubeRay starts two runs that day"),
    "airflow": (None, None),
}
"""What a scheduler does at a time that a day never has, and at a time that a day has twice; None: one run.

cronie's source recommends no job in the hour of a clock change with CRON_TZ. robfig/cron documents the skipped runs of
Kubernetes and KubeRay. Airflow runs at the shifted time, and at the second of two equal times.
"""
_ESCAPES = {"\\": "\\\\", '"': '\\"', "%": "%%", "$": "$$"}
_WEEKDAYS = ("Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat")


def render(schedule: ScheduleConfig, target: str | None, out: str | None) -> dict[str, Any]:
    """Render the files of `target`: printed, or written to the local folder `out`. Raises ConfigError."""
    if target not in TARGETS:
        raise ConfigError(f"ddpm schedule render needs --target, one of {', '.join(TARGETS)}")
    templates = _templates()
    warnings = clock_change_warnings(schedule, target, datetime.now(UTC))
    for line in warnings:
        logger.warning("%s", line)
    values = {**_values(schedule, with_rayjob=target in ("k8s-cronjob", "raycronjob")), "warnings": warnings}
    files = {
        file.format(name=schedule.name): templates.get_template(template).render(values)
        for template, file in TARGETS[target].items()
    }
    if out is None:
        summary = "\n".join(f"# {name}\n{text}" for name, text in files.items()).rstrip()
        return {"files": files, "warnings": warnings, "summary": summary}
    Path(out).mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (Path(out) / name).write_text(text)
    return {"files": files, "warnings": warnings, "summary": "\n".join(str(Path(out) / name) for name in files)}


def clock_change_warnings(schedule: ScheduleConfig, target: str, now: datetime) -> list[str]:
    """One line for each clock change at which `target` would not start exactly one run, with the next such day."""
    zone = schedule.time_zone
    found: dict[bool, str] = {}
    for change in Cron.parse(schedule.cron).clock_changes(now, ZoneInfo(zone)):
        if (consequence := _CLOCK_CHANGES[target][change.twice]) is not None and change.twice not in found:
            fault = f"{zone} has {'two' if change.twice else 'no'} {change.at:%H:%M} on {change.day}"
            found[change.twice] = (
                f"{fault}, when the clock changes: {consequence}. Choose a time outside the change, or "
                "schedule.time_zone UTC"
            )
        if len(found) == sum(text is not None for text in _CLOCK_CHANGES[target]):
            break
    return [found[twice] for twice in sorted(found)]


def run_here(schedule: ScheduleConfig, *, dry_run: bool) -> dict[str, Any]:
    """Run the command on schedule until SIGTERM or Ctrl-C; a dry run lists the next five times.

    Raises ConfigError when APScheduler is not installed.
    """
    if dry_run:
        runs = Cron.parse(schedule.cron).runs(datetime.now(UTC), ZoneInfo(schedule.time_zone))
        return {"next": (times := [run.isoformat() for run in islice(runs, 5)]), "summary": "\n".join(times)}
    try:
        from pipeline.operations.scheduler import run
    except ModuleNotFoundError as error:
        raise ConfigError("ddpm schedule run needs APScheduler: pip install 'ddpm-pipeline[schedule]'") from error
    run(schedule)
    return {"summary": "stopped"}


def shell_line(words: Sequence[str], day: str) -> str:
    """The command as one shell line. day: unquoted shell or template expression that yields YYYY-MM-DD."""
    return " ".join(day.join(shlex.quote(part) if part else "" for part in word.split(DATE)) or "''" for word in words)


def calendar_events(cron: Cron) -> list[str]:
    """Equivalent OnCalendar events of systemd.

    Two events when both days are restricted: cron runs on either day, systemd requires all conditions of an event.
    """
    clock = f"{_list(cron.hours, 24)}:{_list(cron.minutes, 60)}:00"
    months = _list(cron.months, 12)
    events = [f"{','.join(_WEEKDAYS[day] for day in cron.weekdays)} *-{months}-* {clock}"] if cron.weekdays else []
    if cron.days or not cron.weekdays:
        events.append(f"*-{months}-{_list(cron.days, 31) if cron.days else '*'} {clock}")
    return events


def _list(values: Sequence[int], full: int) -> str:
    return "*" if len(values) == full else ",".join(f"{value:02d}" for value in values)


def _templates() -> jinja2.Environment:
    loader = jinja2.FileSystemLoader(Path(__file__).parent / "schedules")
    templates = jinja2.Environment(loader=loader, undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    templates.filters["quoted"] = json.dumps
    templates.filters["yaml"] = lambda value: yaml.safe_dump(value, sort_keys=False, width=1000).rstrip()
    templates.filters["systemd"] = lambda line: "".join(_ESCAPES.get(character, character) for character in line)
    return templates


def _values(schedule: ScheduleConfig, *, with_rayjob: bool) -> dict[str, Any]:
    zone = schedule.time_zone
    line = shell_line(schedule.command, f"$(TZ={zone} date +%F)")
    values: dict[str, Any] = {
        **schedule.model_dump(mode="json"),
        "plain_cron": portable(schedule.cron),
        "line": line,
        "airflow_line": shell_line(schedule.command, f"{{{{ data_interval_end.in_timezone('{zone}') | ds }}}}"),
        "events": calendar_events(Cron.parse(schedule.cron)),
        "grace_seconds": round(schedule.grace_hours * 3600),
    }
    if with_rayjob:
        job = _rayjob(Path(schedule.rayjob))
        spec = {**job["spec"], "entrypoint": line}
        values["rayjob"] = {**job, "metadata": {"generateName": f"{schedule.name}-"}, "spec": spec}
    return values


def _rayjob(path: Path) -> dict[str, Any]:
    try:
        manifest = read_manifest(path.read_bytes(), f"schedule.rayjob: {path}")
    except OSError as error:
        raise ConfigError(f"schedule.rayjob: cannot read {path}: {error.strerror}") from error
    if not isinstance(manifest, dict) or manifest.get("kind") != "RayJob" or "spec" not in manifest:
        raise ConfigError(f"schedule.rayjob: {path} must hold one RayJob with a spec")
    return manifest
