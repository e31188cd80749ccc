"""Joining or starting a Ray cluster, the same way for every stage."""

import logging
import os
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, chdir, contextmanager
from functools import cache
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

import ray
from ray.data import DataContext

from pipeline.config.cluster import RayConfig
from pipeline.errors import ConfigError, PipelineError
from pipeline.log import logger

OBJECT_STORE_BYTES = 512 * 2**20
IDLE_WORKERS = 16
NO_PROGRESS_SECONDS = 30 * 60
LONGEST_TEMP_DIR_BYTES = 38
"""Ray puts sockets 68 bytes below this folder, and the path of a Unix socket has at most 107 bytes."""
SHORT_TEMP_DIR = "/tmp"
ROOT = Path(__file__).parents[1]
RESTART_NOTICE = b"has constructor arguments in the object store and max_restarts > 0"


@contextmanager
def cluster(config: RayConfig, num_cpus: int) -> Iterator[None]:
    """Connect to a Ray cluster for the time of one stage; a process that is connected already stays so.

    num_cpus: logical CPUs of a cluster that is started here, unless `ray.num_cpus` is set.
    Raises ConfigError when the address does not answer, PipelineError when a local cluster does not start.
    """
    joined = ray.is_initialized()
    if not joined:
        _start(config, config.num_cpus or num_cpus)
    _configure_ray_data()
    try:
        yield
    finally:
        if not joined:
            ray.shutdown()


def _start(config: RayConfig, num_cpus: int) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    own = config.address == "local"
    local = _local_options(num_cpus) if own else {}
    try:
        with ExitStack() as stack:
            stack.enter_context(chdir(ROOT))  # workers import from the driver's folder first: a user's pipeline.py, say
            if own:
                stack.enter_context(_children_ignore_hangup())
            ray.init(address=config.address, log_to_driver=False, logging_level=logging.ERROR, **local)
    except (ConnectionError, ValueError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"no Ray cluster at {config.address!r}: {first} (--address local starts one)") from error
    except Exception as error:
        if type(error) is not Exception or "timed out during startup" not in str(error):
            raise
        raise PipelineError(
            "a local Ray cluster did not start within Ray's 30 seconds: the machine is too busy, or short of memory "
            "(free some, and run the same command again)"
        ) from error
    total = ray.cluster_resources()
    logger.info(
        "cluster: %s, nodes %d, CPUs %g, GPUs %g",
        "local, for this command" if own else f"joined {ray.get_runtime_context().gcs_address}",
        len([node for node in ray.nodes() if node["Alive"]]),
        total.get("CPU", 0),
        total.get("GPU", 0),
    )


def _local_options(num_cpus: int) -> dict[str, Any]:
    """Options of ray.init for a cluster of this command alone; sets the environment that Ray reads besides."""
    # The cluster listens on loopback only and ends with the driver; a token file in the home directory would stay.
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    # Ray ends idle workers beyond the CPU count; a lane's next read would start a process and import torch again.
    os.environ.setdefault("RAY_num_workers_soft_limit", str(IDLE_WORKERS))
    os.environ.setdefault("RAY_worker_maximum_startup_concurrency", str(IDLE_WORKERS))
    return {
        "num_cpus": num_cpus,
        "object_store_memory": OBJECT_STORE_BYTES,
        "include_dashboard": False,
        "_temp_dir": _ray_temp_dir(),
    }


def _ray_temp_dir() -> str | None:
    """A shorter folder when the usual one is too long for Ray's sockets. Raises ConfigError when there is none."""
    usual = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    if len(os.fsencode(usual)) <= LONGEST_TEMP_DIR_BYTES:
        return None
    if not os.access(SHORT_TEMP_DIR, os.W_OK | os.X_OK):
        raise ConfigError(
            f"{usual} is too long for the sockets of a local Ray cluster: set RAY_TMPDIR to a folder of at most "
            f"{LONGEST_TEMP_DIR_BYTES} bytes"
        )
    return f"{SHORT_TEMP_DIR}/ray"


@contextmanager
def _children_ignore_hangup() -> Iterator[None]:
    """Processes started in the block outlive a closed terminal, so that the driver can still store a checkpoint."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)


def metric_tag(uri: str) -> str:
    """A URI as the value of a metric's tag: Ray's metrics take ASCII only, so other characters are percent-encoded."""
    return quote(uri, safe="".join(map(chr, range(0x20, 0x7F))), errors="surrogateescape")


def _configure_ray_data() -> None:
    """Ray Data's own log lines and bars stay in the files of its session: a stage reports its progress itself."""
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_no_progress_timeout_s = NO_PROGRESS_SECONDS
    logging.getLogger("ray.data").setLevel(logging.ERROR)


@cache
def hide_restart_notice() -> None:
    """Before the first actors of Ray Data in a process: keep Ray's notice on how they are started off stderr.

    Ray Data keeps the arguments of every actor pool in the object store, for as long as the pool lives, and lets Ray
    restart the actors. Ray core warns of that combination once a process, from C++, where no log level can be set for
    one line. So an actor that is ended at once draws the notice while descriptor 2 leads to a file. Other text that
    arrives there meanwhile is passed on.
    """

    class Unused:
        def __init__(self, argument: None) -> None: ...

    with tempfile.TemporaryFile() as file:
        with _stderr_to(file):
            ray.kill(ray.remote(num_cpus=0, max_restarts=1)(Unused).remote(ray.put(None)))
        file.seek(0)
        for line in file:
            if RESTART_NOTICE not in line:
                os.write(2, line)


@contextmanager
def _stderr_to(file: IO[bytes]) -> Iterator[None]:
    stderr = os.dup(2)
    os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
