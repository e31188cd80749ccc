"""What the nodes of a cluster say of themselves, what its dashboard answers, and what Ray would pack."""

import importlib.metadata
import platform
import re
import socket
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline import __version__
from pipeline.operations.diagnosis import Node
from pipeline.operations.package import UPLOAD_LIMIT, packed_files

__all__ = ["answers", "dashboard_url", "every_node", "package_sizes", "status_without_token", "this_node"]

CONNECT_SECONDS = 5.0
ANSWER_SECONDS = 120.0  # a node's first task starts a process and may import torch
DRIVER = Path("/proc/driver/nvidia/version")


def this_node(name: str, gpus: float = 0) -> Node:
    """Facts of the process that calls; torch is imported only where there is a GPU to ask for."""
    found = {
        "python": platform.python_version(),
        "ray": ray.__version__,
        "torch": importlib.metadata.version("torch").partition("+")[0],
        "ddpm-pipeline": __version__,
    }
    driver = re.search(r"Kernel Module.*?\s(\d+\.[\d.]+)", DRIVER.read_text()) if DRIVER.exists() else None
    if not gpus and driver is None:
        return Node(name, found)
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    names = tuple(torch.cuda.get_device_name(index) for index in range(count))
    return Node(name, found, gpus, torch.version.cuda, driver and driver[1], names)


def answers(address: str) -> bool:
    """False when the address names a port that nothing listens on: Ray would look for minutes before it says so."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return True
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
    except OSError:
        return False
    return True


def every_node() -> list[Node]:
    """This process first, then each living node of the cluster that is joined."""
    tasks = {}
    for node in ray.nodes():
        if node["Alive"]:
            name, gpus = node["NodeManagerAddress"], node["Resources"].get("GPU", 0.0)
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            task = ray.remote(num_cpus=0, num_gpus=min(gpus, 0.01), max_retries=0)(this_node)
            tasks[name] = task.options(scheduling_strategy=there).remote(name, gpus)
    ray.wait(list(tasks.values()), num_returns=len(tasks), timeout=ANSWER_SECONDS)
    return [this_node("this process"), *(_answer(name, task) for name, task in tasks.items())]


def _answer(name: str, task: Any) -> Node:
    try:
        found: Node = ray.get(task, timeout=0)
    except Exception as error:  # whatever a foreign environment raises is the finding
        cause = getattr(error, "cause", None) or error
        return Node(name, {}, error=f"{type(cause).__name__}: {(str(cause).splitlines() or [''])[0]}")
    return found


def dashboard_url() -> str | None:
    """host:port of the cluster that is joined, as the head announces it."""
    url: str | None = ray.init(ignore_reinit_error=True, logging_level="ERROR").address_info.get("webui_url")
    return url or None


def status_without_token(url: str) -> int | None:
    """HTTP status of a call that carries no token; None when nothing answers."""
    try:
        with urllib.request.urlopen(f"http://{url}/api/jobs/", timeout=10) as reply:
            return int(reply.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None


def package_sizes(folder: Path, excludes: Sequence[str] = ()) -> tuple[dict[str, int], int]:
    """Bytes that Ray would pack of `folder`, by first part of the path, and the most that its dashboard takes.

    Counting ends above that: a home folder is not walked to its end.
    """
    sizes: dict[str, int] = {}
    for path in packed_files(folder, excludes=excludes):
        top = path.relative_to(folder).parts[0]
        sizes[top] = sizes.get(top, 0) + path.stat().st_size
        if sum(sizes.values()) >= UPLOAD_LIMIT:
            break
    return sizes, UPLOAD_LIMIT
