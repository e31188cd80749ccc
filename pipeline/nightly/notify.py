"""Notification hooks of a night: webhook, command, Prometheus textfile. A failing hook is only a warning."""

import json
import logging
import os
import subprocess
import urllib.request
from collections.abc import Iterator
from datetime import datetime
from typing import Any, Final

from pipeline.config.nightly import HookConfig, NightlyConfig
from pipeline.config.storage import StorageConfig
from pipeline.storage.store import resolve

EVENTS: Final = ("success", "failure", "hold", "skipped")
WEBHOOK_SECONDS: Final = 20.0
COMMAND_SECONDS: Final = 300.0

Event = dict[str, Any]

logger = logging.getLogger("ddpm.nightly")


def run_hooks(config: NightlyConfig, event: Event) -> None:
    """Run the hooks of `event["event"]`, one of EVENTS. The warning of a failed hook never contains its URL."""
    for hook in getattr(config, f"on_{event['event']}"):
        try:
            _run(hook, event)
        except Exception as error:  # any hook error: the night's outcome and exit code stay
            what = hook.webhook_env or hook.textfile or (hook.command or ("",))[0]
            why = type(error).__name__
            if hook.webhook_env is None:  # else the error message may repeat the URL, which may hold a token
                why = f"{why}: {error}"
            logger.warning("hook %s of on_%s failed: %s", what, event["event"], why)


def _run(hook: HookConfig, event: Event) -> None:
    body = json.dumps(event, sort_keys=True).encode()
    if hook.webhook_env is not None:
        _post(os.environ[hook.webhook_env], body)
    elif hook.command is not None:
        subprocess.run(hook.command, input=body, check=True, timeout=COMMAND_SECONDS)
    elif hook.textfile is not None:
        folder, _, name = os.path.abspath(hook.textfile).rpartition("/")
        resolve(folder or "/", StorageConfig()).put(name, prometheus_text(event).encode())


def _post(url: str, body: bytes) -> None:
    if not url.startswith(("https://", "http://")):
        raise ValueError("no http(s) URL")
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=WEBHOOK_SECONDS) as answer:
        answer.read()


def prometheus_text(event: Event) -> str:
    """The event in Prometheus text format: state, end time, duration, scores."""
    return "\n".join([*_lines(event), ""])


def _lines(event: Event) -> Iterator[str]:
    name = _quoted(event["name"])
    yield "# TYPE ddpm_nightly_state gauge"
    for kind in EVENTS:
        yield f'ddpm_nightly_state{{name={name},state="{kind}"}} {int(kind == event["event"])}'
    figures = {
        "ended_timestamp_seconds": datetime.fromisoformat(event["at"]).timestamp(),
        "champion_version": event["champion"] or 0,
        "attempts": event["attempts"],
        "seconds": event["seconds"],
    }
    for key, value in figures.items():
        yield f"# TYPE ddpm_nightly_{key} gauge"
        yield f"ddpm_nightly_{key}{{name={name}}} {float(value):.17g}"
    if event["metrics"]:
        yield "# TYPE ddpm_nightly_score gauge"
    for metric, value in sorted(event["metrics"].items()):
        yield f"ddpm_nightly_score{{name={name},metric={_quoted(metric)}}} {float(value):.17g}"


def _quoted(text: str) -> str:
    escaped = text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
    return f'"{escaped}"'
