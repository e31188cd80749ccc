"""Logging: one logger `ddpm` with one handler on stderr, and the way of a worker's warnings to the driver.

A driver calls `configure` once; every module logs to `logging.getLogger("ddpm.<folder>")`. What Ray's workers write to
stderr goes to files of their nodes, so a worker calls `collect` and sends its warnings along with what it returns
anyway; the driver logs them again with `replay`.
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

__all__ = ["FORMATS", "LEVELS", "Entry", "WarningCollector", "collect", "configure", "logger", "replay"]

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


class _TextFormatter(logging.Formatter):
    """For people: a notice as it is, `warning: ...`, `error: ...`; a traceback stands before its error."""

    def format(self, record: logging.LogRecord) -> str:
        prefix = PREFIXES.get(record.levelname, f"{record.levelname.lower()}: ")
        origin = ", ".join(f"{key} {value}" for key, value in getattr(record, "origin", {}).items())
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
            **getattr(record, "origin", {}),
        }
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return json.dumps(fields)


class _StderrHandler(logging.Handler):
    """Whole lines on the present `sys.stderr`; a progress bar gives way to them."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            progress.write_line(self.format(record))
        except Exception:
            self.handleError(record)


def configure(level: str = "info", style: str = "text") -> None:
    """Set up stderr: `level` is one of LEVELS, `style` one of FORMATS. A call replaces the setting of the last one."""
    _replace(_StderrHandler, _stderr_handler(style))
    logger.setLevel(level.upper())
    progress.allow_bars(style == "text" and logger.isEnabledFor(logging.INFO))
    _forwarded.clear()


def _stderr_handler(style: str) -> logging.Handler:
    handler = _StderrHandler()
    handler.setFormatter(_JsonFormatter() if style == "json" else _TextFormatter())
    return handler


def _replace(kind: type[logging.Handler], handler: logging.Handler) -> None:
    for present in list(logger.handlers):
        if isinstance(present, kind):
            logger.removeHandler(present)
    logger.addHandler(handler)


# --- from workers to the driver --------------------------------------------------------------------------------------


class _RepeatLimit:
    """In REPEAT_SECONDS no message twice, and at most LIKE_MESSAGES of one template."""

    def __init__(self) -> None:
        self._windows: dict[str, tuple[float, set[str]]] = {}  # start and messages by template

    def admits(self, template: str, message: str) -> bool:
        now = time.monotonic()
        start, messages = self._windows.get(template, (now, set()))
        if now - start >= REPEAT_SECONDS:
            start, messages = now, set()
        if message in messages or len(messages) >= LIKE_MESSAGES:
            return False
        self._windows[template] = (start, messages | {message})
        return True

    def clear(self) -> None:
        self._windows.clear()


_forwarded = _RepeatLimit()
"""Of records that `replay` logs: an outage of the store is one line, not one from each of 64 workers."""


class WarningCollector(logging.Handler):
    """Keeps WARNING and above of this process for the driver, within _RepeatLimit, or hands each to `send`."""

    def __init__(self, send: Callable[[Entry], object] | None, origin: Mapping[str, str | int]) -> None:
        super().__init__(logging.WARNING)
        self._send = send
        self._origin = {"node": platform.node(), **origin}
        self._pending: deque[Entry] = deque(maxlen=MAX_PENDING)
        self._limit = _RepeatLimit()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            message = record.getMessage()
            if self._limit.admits(record.msg, message):
                entry = Entry(record.created, record.levelno, record.name, record.msg, message, self._origin)
                (self._send or self._pending.append)(entry)
        except Exception:
            self.handleError(record)

    def take(self) -> list[Entry]:
        """Records since the last call."""
        return [self._pending.popleft() for _ in range(len(self._pending))]


def collect(send: Callable[[Entry], object] | None = None, **origin: str | int) -> WarningCollector:
    """Begin to collect in this worker; a later call replaces the collector. origin: rank, actor or task.

    All records from INFO on also go to this process's stderr, which Ray keeps in a file of the node.
    """
    collector = WarningCollector(send, origin)
    _replace(WarningCollector, collector)
    if not any(isinstance(handler, _StderrHandler) for handler in logger.handlers):
        configure()
    return collector


def replay(entries: Iterable[Entry]) -> None:
    """Log records of workers on the driver, with their time and origin, within _RepeatLimit."""
    for entry in entries:
        target = logging.getLogger(entry.name)
        if target.isEnabledFor(entry.level) and _forwarded.admits(entry.template, entry.message):
            record = logging.LogRecord(entry.name, entry.level, "", 0, entry.message, None, None)
            record.created, record.origin = entry.created, entry.origin
            target.handle(record)
