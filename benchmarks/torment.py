"""Repeats a `generate` command until the folder is sealed, while killing its driver and actors."""

import argparse
import os
import random
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from invariants import created_once

from pipeline.generation.commit import committed_shards, is_sealed, read_plan
from pipeline.storage.store import Store

ROOT = Path(__file__).resolve().parents[1]
POLL_SECONDS, SAY_SECONDS = 0.5, 30.0
MOST_FAILURES = 5
ACTOR = b"ray::MapWorker"


@dataclass
class Record:
    """Log: driver memory (seconds, samples, MB), kills, decisions, failures."""

    began: float = field(default_factory=time.monotonic)
    memory: list[tuple[float, int, float]] = field(default_factory=list)
    actor_kills: int = 0
    driver_kills: list[dict[str, float]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    markers: dict[str, bytes] = field(default_factory=dict)
    in_driver: float = 0.0  # seconds that a driver ran

    def seconds(self) -> float:
        return time.monotonic() - self.began


def resident_mb(pid: int) -> float:
    """Resident memory of a process in MB (1e6 bytes), 0 for an ended process."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    return int(found[1]) * 1024 / 1e6 if found else 0.0


def actors_under(driver: int) -> list[int]:
    """Process ids of the generation actors among a driver's descendants."""
    above, titles = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            above[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            titles[int(folder.name)] = (folder / "cmdline").read_bytes()
        except OSError:
            continue

    def descends(pid: int) -> bool:
        while pid in above and pid != driver:
            pid = above[pid]
        return pid == driver

    return [pid for pid, title in titles.items() if ACTOR in title and descends(pid)]


@contextmanager
def driving(words: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The driver's process, its stderr at the end of `log`; killed when this process fails."""
    with log.open("ab") as file:
        process = subprocess.Popen(words, cwd=ROOT, stdout=file, stderr=file)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _children_cpu() -> float:
    """CPU seconds of the children that ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


class Torment:
    """Repeats the driver until the folder is sealed, with the planned kills."""

    def __init__(self, job: Store, words: list[str], options: argparse.Namespace, log: Path) -> None:
        self._job, self._words, self._log = job, words, log
        self._samples = options.samples
        self._every = 60.0 * options.minutes_between_kills
        self._chance = random.Random(options.seed)
        share = [self._chance.uniform(0.1, 0.9) for _ in range(options.driver_kills)]
        self._driver_moments = sorted(options.samples * s for s in share)
        self.record = Record()
        self._said = 0.0

    def committed(self) -> int:
        """Samples in committed shards (the last shard may be short)."""
        shards = sum(1 for _ in committed_shards(self._job))
        return min(self._samples, shards * read_plan(self._job).shard_size) if shards else 0

    def run(self) -> Record:
        while not is_sealed(self._job):
            if len(self.record.failures) > MOST_FAILURES:
                sys.exit("\n".join(["too many failures", *self.record.failures]))
            before, began = self.committed(), time.monotonic()
            with driving(self._words, self._log) as driver:
                self._watch(driver, before)
            self.record.in_driver += time.monotonic() - began
        return self.record

    def _watch(self, driver: "subprocess.Popen[bytes]", before: int) -> None:
        began, done = time.monotonic(), before
        next_kill = began + self._every
        while driver.poll() is None:
            time.sleep(POLL_SECONDS)
            memory, done = resident_mb(driver.pid), self.committed()
            if memory:
                self.record.memory.append((round(self.record.seconds(), 1), done, round(memory, 1)))
            self._say(done)
            if done > before and self._unresumed():
                self.record.driver_kills[-1]["seconds_to_next_commit"] = round(time.monotonic() - began, 1)
            if done > before and self._driver_moments and done >= self._driver_moments[0]:
                self._driver_moments.pop(0)
                return self._kill_driver(driver)
            if time.monotonic() >= next_kill:
                next_kill = time.monotonic() + self._every
                self._kill_actor(driver.pid)
        if driver.returncode:
            last = self._log.read_text(errors="replace").strip().splitlines()[-1:]
            self.record.failures.append(f"driver ended with {driver.returncode}: {' '.join(last)}")
        return None

    def _unresumed(self) -> bool:
        kills = self.record.driver_kills
        return bool(kills) and "seconds_to_next_commit" not in kills[-1]

    def _kill_actor(self, driver: int) -> None:
        victims = actors_under(driver)
        if victims:
            os.kill(self._chance.choice(sorted(victims)), signal.SIGKILL)
            self.record.actor_kills += 1
            self.record.markers |= created_once(self._job)

    def _kill_driver(self, driver: "subprocess.Popen[bytes]") -> None:
        """Kill the driver, then time how fast a new process finds the missing shards (`--dry-run`, without Ray)."""
        driver.kill()
        driver.wait()
        self.record.markers |= created_once(self._job)
        began, cpu = time.monotonic(), _children_cpu()
        said = subprocess.run([*self._words, "--dry-run"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        seconds = time.monotonic() - began
        missing = int(re.search(r"\(([\d,]+) missing\)", said)[1].replace(",", ""))
        self.record.driver_kills.append(
            {
                "samples": self.committed(),
                "decision_seconds": round(seconds, 2),
                "decision_cpu_seconds": round(_children_cpu() - cpu, 2),
                "missing_shards": missing,
            }
        )

    def _say(self, done: int) -> None:
        now = self.record.seconds()
        if now - self._said >= SAY_SECONDS:
            self._said = now
            kills = f"{self.record.actor_kills} actors and {len(self.record.driver_kills)} drivers killed"
            print(f"million: {done:,}/{self._samples:,} samples, {now:.0f} s, {kills}", file=sys.stderr, flush=True)
