"""Logging: one logger `ddpm` with one handler on stderr, and forwarding of workers' warnings to the driver.

Every module logs to `logging.getLogger("ddpm.<folder>")`, and the driver calls `configure`. The stderr of a Ray worker
is a file on its node. So a worker also calls `collect`, which gathers its warnings; they travel to the driver with the
worker's results, and the driver logs them with `replay`.
"""

import json
import logging
import platform
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Final, NamedTuple

from pipeline import progress

logger = logging.getLogger("ddpm")

LEVELS: Final = ("debug", "info", "warning", "error")
FORMATS: Final = ("text", "json")
REPEAT_SECONDS: Final = 30.0
LIKE_MESSAGES: Final = 5
MAX_PENDING: Final = 100
PREFIXES: Final = {"INFO": "", "CRITICAL": "error: "}


class Entry(NamedTuple):
    """A log record of a worker on its way to the driver; a value of builtin types."""

    created: float  # Unix seconds
    level: int
    name: str
    template: str
    """The message before its arguments were filled in: equal for records of one line of code."""
    message: str
    origin: Mapping[str, str | int]
    """node, and rank, actor or task."""


# --- formats ---------------------------------------------------------------------------------------------------------


_origin: dict[str, str | int] = {}
"""Node, and rank, actor or task of this process; empty on the driver."""


class _TextFormatter(logging.Formatter):
    """Notices as plain lines, else `warning: ...` or `error: ...`; a traceback stands before its error."""

    def format(self, record: logging.LogRecord) -> str:
        prefix = PREFIXES.get(record.levelname, f"{record.levelname.lower()}: ")
        origin = ", ".join(f"{key} {value}" for key, value in getattr(record, "origin", _origin).items())
        prefix += f"[{origin}] " if origin else ""
        traceback = [self.formatException(record.exc_info)] if record.exc_info else []
        return "\n".join([*traceback, *(prefix + line for line in record.getMessage().splitlines())])


class _JsonFormatter(logging.Formatter):
    """One JSON object a line: time (RFC 3339, UTC), level, logger, message; node, rank, actor, task where known."""

    def format(self, record: logging.LogRecord) -> str:
        fields = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "origin", _origin),
        }
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return json.dumps(fields)


class _StderrHandler(logging.Handler):
    """Writes whole lines to the current `sys.stderr`, clear of a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            progress.write_line(self.format(record))
        except Exception:
            self.handleError(record)


def configure(level: str = "info", style: str = "text") -> None:
    """Set up stderr. level: one of LEVELS; style: one of FORMATS. Replaces any earlier setup of this process."""
    _origin.clear()
    handler = _StderrHandler()
    handler.setFormatter(_JsonFormatter() if style == "json" else _TextFormatter())
    _replace(handler)
    logger.setLevel(level.upper())
    progress.allow_bars(style == "text" and logger.isEnabledFor(logging.INFO))
    _forwarded.clear()


def _replace(handler: logging.Handler) -> None:
    for present in list(logger.handlers):
        if type(present) is type(handler):
            logger.removeHandler(present)
    logger.addHandler(handler)


# --- from workers to the driver --------------------------------------------------------------------------------------


class _RepeatLimit:
    """Admits a message once in REPEAT_SECONDS, and at most LIKE_MESSAGES of the same logger and template."""

    def __init__(self) -> None:
        self._windows: dict[tuple[str, str], tuple[float, set[str]]] = {}  # (start, messages) by (logger, template)

    def admits(self, name: str, template: str, message: str) -> bool:
        now, key = time.monotonic(), (name, template)
        start, messages = self._windows.get(key, (now, set()))
        if now - start >= REPEAT_SECONDS:
            start, messages = now, set()
        if message in messages or len(messages) >= LIKE_MESSAGES:
            return False
        self._windows[key] = (start, messages | {message})
        return True

    def clear(self) -> None:
        self._windows.clear()


_forwarded = _RepeatLimit()
"""Limits what `replay` logs: a store outage seen by 64 workers takes a few lines."""


class WarningCollector(logging.Handler):
    """Gathers records of level WARNING and above within _RepeatLimit, or passes each to `send`."""

    def __init__(self, send: Callable[[Entry], object] | None, origin: Mapping[str, str | int]) -> None:
        super().__init__(logging.WARNING)
        self._send = send
        self.origin = origin
        self._pending: deque[Entry] = deque(maxlen=MAX_PENDING)
        self._limit = _RepeatLimit()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            message = record.getMessage()
            if self._limit.admits(record.name, record.msg, message):
                entry = Entry(record.created, record.levelno, record.name, record.msg, message, self.origin)
                (self._send or self._pending.append)(entry)
        except Exception:
            self.handleError(record)

    def take(self) -> list[Entry]:
        """Records since the last call."""
        return [self._pending.popleft() for _ in range(len(self._pending))]


def collect(send: Callable[[Entry], object] | None = None, **origin: str | int) -> WarningCollector:
    """Start to gather warnings in this worker; a later call replaces the collector. origin: rank, actor or task.

    Records of level INFO and above also go, as JSON, to the process's stderr, which Ray keeps in a file on the node.
    """
    collector = WarningCollector(send, {"node": platform.node(), **origin})
    _replace(collector)
    if _origin or not any(isinstance(handler, _StderrHandler) for handler in logger.handlers):  # not on a driver
        configure(style="json")
        _origin.update(collector.origin)
    return collector


def replay(entries: Iterable[Entry]) -> None:
    """On the driver: log the records of workers with their time and origin, within _RepeatLimit."""
    for entry in entries:
        target = logging.getLogger(entry.name)
        if target.isEnabledFor(entry.level) and _forwarded.admits(entry.name, entry.template, entry.message):
            record = logging.LogRecord(entry.name, entry.level, "", 0, entry.message, None, None)
            record.created, record.origin = entry.created, entry.origin
            target.handle(record)
