"""Processes of this machine: find some by command line, and wait for a condition."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path


def wait_for(condition: Callable[[], bool], seconds: float = 240) -> None:
    """Returns as soon as the condition holds; fails after so many seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s"
        time.sleep(0.02)


def titled(text: str, under: int | None = None) -> set[int]:
    """Ids of processes whose command line holds the text; `under`: only descendants of this process.

    Another test process may run a Ray cluster of its own at the same time: a test that kills looks only below itself.
    """
    found, parents = set(), {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if text.encode() in (folder / "cmdline").read_bytes():
                found.add(int(folder.name))
        except OSError:
            continue
    return {pid for pid in found if under is None or under in _ancestors(pid, parents)}


def _ancestors(pid: int, parents: dict[int, int]) -> Iterator[int]:
    while (pid := parents.get(pid, 0)) > 0:
        yield pid
