"""How far a job is: a bar with ETA on a terminal, one plain line every 30 seconds elsewhere (stderr)."""

import sys
import time
from typing import TextIO

__all__ = ["Progress", "duration"]

PLAIN_INTERVAL_SECONDS = 30.0
BAR_INTERVAL_SECONDS = 0.2
BAR_WIDTH = 24


def duration(seconds: float) -> str:
    """For people: '42 s', '3 min 05 s', '2 h 10 min'."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


class Progress:
    """Counts towards `total` things of a `unit`; `start` were there before this run and do not count as speed."""

    def __init__(self, label: str, total: int, unit: str, start: int = 0, stream: TextIO | None = None) -> None:
        self.label, self.total, self.unit, self.start = label, total, unit, start
        self.done = start
        self._stream = stream or sys.stderr
        self._bar = self._stream.isatty()
        self._began = time.monotonic()
        self._shown = self._began

    def update(self, done: int, note: str = "") -> None:
        """State that `done` of `total` are finished; prints when it is time to."""
        self.done = done
        now = time.monotonic()
        if now - self._shown >= (BAR_INTERVAL_SECONDS if self._bar else PLAIN_INTERVAL_SECONDS):
            self._shown = now
            self._write(self.line(now, note), end="" if self._bar else "\n")

    def close(self, note: str = "") -> None:
        """Print the last line."""
        self._write(self.line(time.monotonic(), note), end="\n")

    def say(self, text: str) -> None:
        """A line of its own among the others."""
        self._write(text, end="\n")

    @property
    def rate(self) -> float:
        """Things a second since this run began."""
        return self._rate(time.monotonic())

    def _rate(self, now: float) -> float:
        return (self.done - self.start) / max(now - self._began, 1e-9)

    def line(self, now: float, note: str = "") -> str:
        """One line of text, with the rate since this run began and the time left at that rate."""
        rate = self._rate(now)
        parts = [f"{self.done:,}/{self.total:,} {self.unit}", f"{rate:,.1f} {self.unit}/s"]
        if rate > 0 and self.done < self.total:
            parts.append(f"ETA {duration((self.total - self.done) / rate)}")
        if note:
            parts.append(note)
        filled = BAR_WIDTH * self.done // max(self.total, 1)
        bar = f" [{'#' * filled}{'.' * (BAR_WIDTH - filled)}]" if self._bar else ""
        return f"{self.label}{bar} " + ", ".join(parts)

    def _write(self, text: str, end: str) -> None:
        self._stream.write(f"\r\x1b[K{text}{end}" if self._bar else f"{text}{end}")
        self._stream.flush()
