"""Progress reporting on stderr: a bar with ETA on a terminal, one log line every 30 seconds elsewhere."""

import logging
import sys
import threading
import time

logger = logging.getLogger("ddpm.progress")

PLAIN_INTERVAL_SECONDS = 30.0
BAR_INTERVAL_SECONDS = 0.2
BAR_WIDTH = 24


def duration(seconds: float) -> str:
    """Seconds as text: '42 s', '3 min 05 s', '2 h 10 min'."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


class _Terminal:
    """stderr, shared by bars and log lines: a line clears a half-drawn bar, whose next update draws the bar again."""

    def __init__(self) -> None:
        self.bars_allowed = True
        self._lock = threading.Lock()
        self._bar_drawn = False

    def write(self, text: str, is_bar: bool) -> None:
        with self._lock:
            clear = "\r\x1b[K" if is_bar or self._bar_drawn else ""
            self._bar_drawn = is_bar
            sys.stderr.write(f"{clear}{text}" + ("" if is_bar else "\n"))
            sys.stderr.flush()


_terminal = _Terminal()


def allow_bars(allowed: bool) -> None:
    """Whether progress on a terminal is a bar, from now on."""
    _terminal.bars_allowed = allowed


def write_line(text: str) -> None:
    """Write a whole line to stderr, clear of any progress bar."""
    _terminal.write(text, is_bar=False)


class Progress:
    """Counts items towards `total`. The `start` items of earlier commands are left out of the rate."""

    def __init__(self, label: str, total: int, unit: str, start: int = 0) -> None:
        self.label, self.total, self.unit, self.start = label, total, unit, start
        self.done = start
        self._bar = _terminal.bars_allowed and sys.stderr.isatty()
        self._began = time.monotonic()
        self._shown = self._began

    def update(self, done: int, note: str = "") -> None:
        """Set the number of finished items; prints at most every 0.2 s on a terminal, every 30 s elsewhere."""
        self.done = done
        now = time.monotonic()
        if now - self._shown >= (BAR_INTERVAL_SECONDS if self._bar else PLAIN_INTERVAL_SECONDS):
            self._shown = now
            self._print(self.line(now, note), is_bar=True)

    def close(self, note: str = "") -> None:
        """Print the final state on a line of its own."""
        self._print(self.line(time.monotonic(), note), is_bar=False)

    def _print(self, line: str, is_bar: bool) -> None:
        if self._bar:
            _terminal.write(line, is_bar)
        else:
            logger.info("%s", line)

    @property
    def rate(self) -> float:
        """Items a second since this object was created."""
        return self._rate(time.monotonic())

    def _rate(self, now: float) -> float:
        return (self.done - self.start) / max(now - self._began, 1e-9)

    def line(self, now: float, note: str = "") -> str:
        """The progress line: count, rate since creation, time left at that rate, and `note`."""
        rate = self._rate(now)
        parts = [f"{self.done:,}/{self.total:,} {self.unit}", f"{rate:,.1f} {self.unit}/s"]
        if rate > 0 and self.done < self.total:
            parts.append(f"ETA {duration((self.total - self.done) / rate)}")
        if note:
            parts.append(note)
        filled = BAR_WIDTH * self.done // max(self.total, 1)
        bar = f" [{'#' * filled}{'.' * (BAR_WIDTH - filled)}]" if self._bar else ""
        return f"{self.label}{bar} " + ", ".join(parts)
