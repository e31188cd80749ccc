"""Elastic sizing while nodes drain.

Ray counts a draining node until the node is gone, although nothing can start there any more, so a worker group sized by
that count would wait in vain. A group that starts meanwhile therefore gets a smaller maximum for its whole life. Once
more workers fit, `ResizeMonitor` asks that group to checkpoint and end, and the next group may grow again.
"""

import threading
import time
from typing import Any, Self

import ray

from pipeline.config.cluster import RayConfig

SETTLED_SECONDS = 25.0
"""Ray polls the nodes every 20 seconds, so until then its count may include a node that is gone."""


def _draining_nodes() -> set[str]:
    """Ids of nodes that are alive and accept no new work; Ray Train uses this call too, as there is no public one."""
    return set(ray._private.state.state.get_draining_nodes())


def remaining_capacity(kind: str) -> list[float]:
    """Total of a resource ("CPU", "GPU") on each node that is alive and not draining, in use or not."""
    draining = _draining_nodes()
    nodes = [node for node in ray.nodes() if node["Alive"] and node["NodeID"] not in draining]
    return [float(node["Resources"].get(kind, 0.0)) for node in nodes]


def usable_workers(config: RayConfig) -> int:
    """Maximum size for a group that starts now: MAX, or while nodes drain what fits on the others, at least MIN."""
    if not _draining_nodes():
        return config.max_workers
    fitting = sum(int(amount) for amount in remaining_capacity("GPU" if config.use_gpu else "CPU"))
    return min(config.max_workers, max(config.min_workers, fitting))


class ResizeMonitor:
    """While the block runs: asks a group of at most `most` workers to end when a larger group should take over.

    That is the case when a larger group fits, or when the drained nodes are gone: an autoscaler adds nodes only for a
    group that may grow. A group that started with the full range needs no monitor: Ray resizes that group itself, even
    onto a draining node.
    """

    def __init__(self, config: RayConfig, coordinator: Any, most: int) -> None:
        self._config, self._coordinator, self._most = config, coordinator, most
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        since: float | None = None
        while not self._ended.wait(self._config.resize_seconds):
            try:
                if usable_workers(self._config) <= self._most:
                    since = None
                    continue
                since = time.monotonic() if since is None else since
                if _draining_nodes() or time.monotonic() - since >= SETTLED_SECONDS:
                    ray.get(self._coordinator.regroup.remote(True))
                    return
            except ray.exceptions.RayError:
                continue  # the head node is busy; loss of the cluster ends the group anyway

    def __enter__(self) -> Self:
        ray.get(self._coordinator.regroup.remote(False))
        if self._most < self._config.max_workers:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()
