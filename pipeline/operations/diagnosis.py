"""Diagnosis for `ddpm doctor`. Pure: facts -> one finding, which names the remedy unless its level is ok."""

import ipaddress
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from pipeline.operations.submission import MIB, largest

SKEW_WARNING_SECONDS, SKEW_FAILURE_SECONDS = 5.0, 300.0  # S3 refuses signatures that are 15 minutes off
SLOW_SECONDS = 0.5


class Finding(NamedTuple):
    """One line of `ddpm doctor`."""

    level: Literal["ok", "warn", "fail"]
    subject: str
    text: str

    def __str__(self) -> str:
        return f"{self.level:<5} {self.subject}: {self.text}"


class Node(NamedTuple):
    """Facts about one node; only `error` when no task could run there."""

    name: str
    versions: Mapping[str, str]  # python, ray, torch, ddpm-pipeline
    gpus: float = 0  # as Ray counts them
    cuda: str | None = None  # of the torch build
    driver: str | None = None
    devices: tuple[str, ...] = ()
    error: str | None = None


def versions(nodes: Sequence[Node]) -> Finding:
    """Compares all nodes with the first, the machine that runs the doctor."""
    lost = [f"{node.name} ({node.error})" for node in nodes if node.error]
    if lost:
        return Finding("fail", "versions", f"no task runs on {', '.join(lost)}: give every node the same image")
    mine = nodes[0]
    odd = [
        f"{name} is {node.versions.get(name)} on {node.name}, {here} on {mine.name}"
        for node in nodes[1:]
        for name, here in mine.versions.items()
        if node.versions.get(name) != here
    ]
    if odd:
        return Finding("fail", "versions", f"{'; '.join(odd)}: install both sides with constraints.txt")
    found = ", ".join(f"{name} {version}" for name, version in mine.versions.items())
    others = f", here and on {len(nodes) - 1} node{'s' if len(nodes) > 2 else ''}" if len(nodes) > 1 else ""
    return Finding("ok", "versions", found + others)


def devices(nodes: Sequence[Node], wanted: bool, may_grow: bool) -> Finding:
    """wanted: `ray.use_gpu`. may_grow: an autoscaler may add nodes."""
    for node in (node for node in nodes if node.gpus and not node.error):
        if node.cuda is None:
            return Finding("fail", "device", f"{node.name} has a GPU, but torch is a CPU build: install the CUDA build")
        if node.driver is None:
            return Finding(
                "fail", "device", f"{node.name} has no NVIDIA driver loaded: use a GPU image, check nvidia-smi"
            )
        if not node.devices:
            older = f"driver {node.driver} does not run CUDA {node.cuda}"
            return Finding("fail", "device", f"{node.name}: torch sees no GPU ({older}?): update the driver")
    seen = [f"{', '.join(node.devices)} (driver {node.driver})" for node in nodes if node.devices]
    if seen:
        return Finding("ok", "device", "; ".join(sorted(set(seen))))
    if not wanted:
        return Finding("ok", "device", "CPU")
    level: Literal["warn", "fail"] = "warn" if may_grow else "fail"
    return Finding(level, "device", "ray.use_gpu is true and no node has a GPU now: add one, or set it to false")


def dashboard(url: str | None, answer: int | None) -> Finding:
    """url: host:port as announced by Ray. answer: HTTP status of a request without a token, None when unreachable."""
    subject = "dashboard"
    if not url:
        return Finding("ok", subject, "none")
    host = url.rpartition(":")[0].strip("[]")
    loopback = host == "localhost" or _is_loopback(host)
    if answer in (401, 403):
        return Finding("ok", subject, f"{url} refuses calls without a token")
    if answer is None:
        return Finding(
            "warn", subject, f"{url} does not answer here, so its token was not tested: run this on the head"
        )
    if loopback:
        return Finding("warn", subject, "no token is required, and Ray's other ports are open: set RAY_AUTH_MODE=token")
    remedy = "start every node with RAY_AUTH_MODE=token, or the head with --dashboard-host=127.0.0.1"
    return Finding("fail", subject, f"{url} accepts jobs without a token from any client: {remedy}")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def clock(offset: float) -> Finding:
    """offset: seconds by which the store's clock is ahead of this machine's."""
    if abs(offset) < SKEW_WARNING_SECONDS:
        return Finding("ok", "clock", "agrees with the store's")
    level: Literal["warn", "fail"] = "fail" if abs(offset) >= SKEW_FAILURE_SECONDS else "warn"
    side = "behind" if offset > 0 else "ahead of"
    return Finding(level, "clock", f"{abs(offset):.0f} s {side} the store's: set it by NTP (timedatectl set-ntp true)")


def latency(seconds: float) -> Finding:
    """seconds: one small write and read."""
    text = f"{1000 * seconds:.0f} ms for a small write and read"
    if seconds < SLOW_SECONDS:
        return Finding("ok", "store latency", text)
    return Finding("warn", "store latency", f"{text}: use a bucket in the cluster's region")


def package(folder: str, sizes: Mapping[str, int], limit: int) -> Finding:
    """sizes: bytes of the files that Ray would pack, by first part of the path. limit: Ray's largest upload, bytes."""
    total = sum(sizes.values())
    text = f"{folder} packs {total / MIB:.1f} MiB"
    if total < limit // 10:
        return Finding("ok", "working_dir", text)
    level: Literal["warn", "fail"] = "fail" if total >= limit else "warn"
    return Finding(
        level,
        "working_dir",
        f"{text} of {limit / MIB:.0f}: list files that no job needs in .rayignore ({largest(sizes)})",
    )
