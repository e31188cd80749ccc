"""Facts about a cluster for `ddpm doctor` and `ddpm submit`: versions and devices of every node, dashboard access."""

import importlib.metadata
import platform
import re
import socket
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline import __version__
from pipeline.operations.diagnosis import Node
from pipeline.operations.submission import first_line

CONNECT_SECONDS = 5.0
ANSWER_SECONDS = 120.0  # the first task on a node starts a process and may import torch
DRIVER = Path("/proc/driver/nvidia/version")


def installed_versions() -> dict[str, str]:
    """Versions in this process by name: python, ray, torch (without its local part, such as +cu128)."""
    torch = importlib.metadata.version("torch").partition("+")[0]
    return {"python": platform.python_version(), "ray": importlib.metadata.version("ray"), "torch": torch}


def this_node(name: str, gpus: float = 0) -> Node:
    """Facts about the calling process; imports torch only where Ray or the kernel reports a GPU."""
    found = {**installed_versions(), "ddpm-pipeline": __version__}
    driver = re.search(r"Kernel Module.*?\s(\d+\.[\d.]+)", DRIVER.read_text()) if DRIVER.exists() else None
    if not gpus and driver is None:
        return Node(name, found)
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    names = tuple(torch.cuda.get_device_name(index) for index in range(count))
    return Node(name, found, gpus, torch.version.cuda, driver and driver[1], names)


def is_listening(address: str) -> bool:
    """False when nothing listens at the address's host and port; Ray itself would retry for minutes.

    True for an address without a valid port, such as `auto` or `head:abc`: Ray says what is wrong with it.
    """
    try:
        parts = urlsplit(address if "://" in address else f"//{address}")
        port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    except ValueError:
        return True
    if not parts.hostname or port is None:
        return True
    try:
        socket.create_connection((parts.hostname, port), timeout=CONNECT_SECONDS).close()
    except OSError:
        return False
    return True


def every_node() -> list[Node]:
    """This process first, then each live node of the joined cluster."""
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
    except Exception as error:  # any error of the node's environment is a finding
        cause = getattr(error, "cause", None) or error
        return Node(name, {}, error=f"{type(cause).__name__}: {first_line(str(cause))}")
    return found


def dashboard_url() -> str | None:
    """host:port of the joined cluster's dashboard, as announced by the head; None without one."""
    url: str | None = ray.init(ignore_reinit_error=True, logging_level="ERROR").address_info.get("webui_url")
    return url or None


def status_without_token(url: str) -> int | None:
    """HTTP status of a request without a token; None when nothing answers."""
    try:
        with urllib.request.urlopen(f"http://{url}/api/jobs/", timeout=10) as reply:
            return int(reply.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None
