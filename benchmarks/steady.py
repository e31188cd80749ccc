"""Rate and CPU cost of `generate` while all actors work, without start-up and the end of the last shards."""

import os
import threading
import time
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import pyarrow as pa

_TICK = os.sysconf("SC_CLK_TCK")


class Steady(NamedTuple):
    """Images of a stretch, its wall seconds, CPU seconds of all processes; startup: seconds before the first shard."""

    images: float
    seconds: float
    cpu: float
    startup: float

    @property
    def rate(self) -> float:
        """Images a second."""
        return self.images / self.seconds

    @property
    def cost(self) -> float:
        """CPU seconds an image."""
        return self.cpu / self.images


class CpuClock:
    """CPU seconds of this process and its descendants over time; `with CpuClock() as clock:` reads twice a second."""

    def __init__(self) -> None:
        self._ended: dict[int, float] = {}
        self._readings: list[tuple[float, float]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._read_on, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def between(self, start: float, end: float) -> float:
        """CPU seconds between two Unix times, interpolated."""
        times, cpu = zip(*self._readings, strict=True)
        first, last = np.interp([start, end], times, cpu)
        return float(last - first)

    def _read_on(self) -> None:
        while not self._stop.wait(0.5):
            self._readings.append((time.time(), self._read()))

    def _read(self) -> float:
        """The sum keeps the last known time of an ended process."""
        above, cpu = {}, {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            above[int(folder.name)] = int(fields[1])
            cpu[int(folder.name)] = (int(fields[11]) + int(fields[12])) / _TICK
        for pid, seconds in cpu.items():
            if _descends(pid, os.getpid(), above):
                self._ended[pid] = seconds
        return sum(self._ended.values())


def _descends(pid: int, ancestor: int, above: dict[int, int]) -> bool:
    while pid in above and pid != ancestor:
        pid = above[pid]
    return pid == ancestor


def steady(log: pa.Table, actors: int, began: float, clock: CpuClock) -> Steady:
    """The stretch from the first to the last moment at which `actors` shards were being made.

    log: rows of SHARD_METRICS. Idle time inside the stretch counts; a shard across its border counts in proportion.
    """
    starts = log["started"].to_numpy()
    ends = starts + log["seconds"].to_numpy()
    moments = np.sort(np.concatenate([starts, ends]))
    busy = [m for m in moments if np.sum((starts <= m) & (m < ends)) >= actors]
    if not busy:
        raise RuntimeError(f"{actors} actors never worked at the same time: too few shards, or no room for them")
    first = busy[0]
    last = min(ends[(starts <= busy[-1]) & (busy[-1] < ends)])
    inside = np.clip(np.minimum(ends, last) - np.maximum(starts, first), 0, None) / (ends - starts)
    images = float(np.sum(inside * log["rows"].to_numpy()))
    return Steady(images, last - first, clock.between(first, last), starts.min() - began)
