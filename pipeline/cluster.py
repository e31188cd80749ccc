"""Joining or starting a Ray cluster, the same way for every stage."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import ray
from ray.data import DataContext

from pipeline.config.root import RayConfig
from pipeline.errors import ConfigError, PipelineError

__all__ = ["cluster"]

OBJECT_STORE_BYTES = 512 * 2**20
IDLE_WORKERS = 16
NO_PROGRESS_SECONDS = 30 * 60


@contextmanager
def cluster(config: RayConfig, num_cpus: int) -> Iterator[None]:
    """A connection for the time of one stage; joins the one that is there.

    num_cpus: logical CPUs that the stage needs at least, for a local cluster of its own.
    Raises ConfigError when the address answers nothing, PipelineError when a local cluster does not come up.
    """
    joined = ray.is_initialized()
    if not joined:
        _start(config, config.num_cpus or num_cpus)
    _quieten()
    try:
        yield
    finally:
        if not joined:
            ray.shutdown()


def _start(config: RayConfig, num_cpus: int) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    own = config.address == "local"
    if own:
        # Loopback only and gone with the driver: token files in the home directory would outlive it.
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
        # Ray ends idle workers beyond the CPU count; a lane's next read would start a process and import torch again.
        os.environ.setdefault("RAY_num_workers_soft_limit", str(IDLE_WORKERS))
        os.environ.setdefault("RAY_worker_maximum_startup_concurrency", str(IDLE_WORKERS))
    local = {"num_cpus": num_cpus, "object_store_memory": OBJECT_STORE_BYTES, "include_dashboard": False} if own else {}
    try:
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


def _quieten() -> None:
    """Ray Data's own log lines and bars stay in its session logs: a stage reports progress itself."""
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_no_progress_timeout_s = NO_PROGRESS_SECONDS
    logging.getLogger("ray.data").setLevel(logging.ERROR)
