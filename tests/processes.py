"""Processes of this machine, and waiting for what they do."""

import time
from collections.abc import Callable
from pathlib import Path

__all__ = ["titled", "wait_for"]


def wait_for(condition: Callable[[], bool], seconds: float = 240) -> None:
    """Returns as soon as the condition holds; fails after so many seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s"
        time.sleep(0.02)


def titled(text: str) -> set[int]:
    """Ids of the processes whose command line holds the text."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if text.encode() in (folder / "cmdline").read_bytes():
                found.add(int(folder.name))
        except OSError:
            continue
    return found
