"""The holder of a lease: a process, identified by host, boot, PID namespace, PID and start time, as PIDs are reused."""

import os
import socket
from datetime import UTC, datetime
from typing import Literal

from pipeline.config.base import Section

_BOOT = "/proc/sys/kernel/random/boot_id"


class Holder(Section):
    """The lease document. Unlike a manifest it names a host and a time, for messages."""

    kind: Literal["lease"] = "lease"
    state: Literal["held", "released"] = "held"
    token: str
    beat: int
    host: str
    boot: str  # the machine's boot id; empty where there is none
    pid_namespace: int  # inode: equal pids of two containers are two processes
    pid: int
    started: str  # start of the process in clock ticks since boot; tells processes with a reused pid apart
    since: str  # UTC

    @property
    def machine(self) -> tuple[str, str, int]:
        return self.host, self.boot, self.pid_namespace

    @property
    def process(self) -> tuple[int, str]:
        return self.pid, self.started


def this_process(token: str) -> Holder:
    pid = os.getpid()
    return Holder(
        token=token,
        beat=0,
        host=socket.gethostname(),
        boot=_text(_BOOT).strip(),
        pid_namespace=_inode("/proc/self/ns/pid"),
        pid=pid,
        started=_status(pid)[1],
        since=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def process_state(holder: Holder) -> Literal["free", "living", "unknown"]:
    """State of a holder on this machine and in this PID namespace."""
    try:
        os.kill(holder.pid, 0)
    except ProcessLookupError:
        return "free"
    except OSError:
        pass  # the process exists and belongs to another user
    state, started = _status(holder.pid)
    if not started:  # /proc hides the process
        return "unknown"
    return "living" if started == holder.started and state not in "ZX" else "free"


def _status(pid: int) -> tuple[str, str]:
    """State letter and start time of a process, ("", "") when unreadable. Its name in `stat` may hold ")" or spaces."""
    fields = _text(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return (fields[0], fields[19]) if len(fields) > 19 else ("", "")


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def _inode(path: str) -> int:
    try:
        return os.stat(path).st_ino
    except OSError:
        return 0


def describe(holder: Holder | None) -> str:
    """The holder in words, for messages."""
    if holder is None:
        return "another process"
    try:
        began = datetime.fromisoformat(holder.since)
        seconds = max(0, round((datetime.now(UTC) - began).total_seconds()))
    except (ValueError, TypeError):
        return f"process {holder.pid} on {holder.host}"
    hours, minutes = seconds // 3600, seconds // 60 % 60
    return f"process {holder.pid} on {holder.host} since {holder.since} (for {hours} h {minutes:02d} min)"
