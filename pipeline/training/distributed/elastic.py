"""Room for workers beside nodes that said that they will go, and a new start once there is more.

Ray counts such a node until it is gone, though nothing can be started on it any more: what is asked for by that count
waits in vain until then. So a group that starts meanwhile is given a smaller largest size, for good; later it is asked
to give way to one that may grow again.
"""

import threading
import time
from typing import Any, Self

import ray

from pipeline.config.root import RayConfig

__all__ = ["ResizeMonitor", "most_workers", "staying"]

SETTLED_SECONDS = 25.0
"""Ray looks at the nodes every 20 seconds: before, it may count one that is gone."""


def _going() -> set[str]:
    """Ids of nodes that are alive and take no new work. What Ray Train asks, too: there is no public way."""
    return set(ray._private.state.state.get_draining_nodes())


def staying(kind: str) -> list[float]:
    """How much of a resource ("CPU", "GPU") each node has that is alive and does not go, whoever uses it."""
    going = _going()
    nodes = [node for node in ray.nodes() if node["Alive"] and node["NodeID"] not in going]
    return [float(node["Resources"].get(kind, 0.0)) for node in nodes]


def most_workers(config: RayConfig) -> int:
    """The largest group that is worth asking for now: MAX, or while nodes go what fits on the others, at least MIN."""
    if not _going():
        return config.max_workers
    room = sum(int(most) for most in staying("GPU" if config.use_gpu else "CPU"))
    return min(config.max_workers, max(config.min_workers, room))


class ResizeMonitor:
    """While the block runs: tells the board when a group of at most `most` workers should give way to a larger one.

    That is when a larger one fits, or when the nodes that made it small are gone: only a group that may grow makes an
    autoscaler bring others. A group that began with the whole range is left to Ray, which may still resize it onto a
    node that goes.
    """

    def __init__(self, config: RayConfig, coordinator: Any, most: int) -> None:
        self._config, self._board, self._most = config, coordinator, most
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        since: float | None = None
        while not self._ended.wait(self._config.resize_seconds):
            try:
                if most_workers(self._config) <= self._most:
                    since = None
                    continue
                since = time.monotonic() if since is None else since
                if _going() or time.monotonic() - since >= SETTLED_SECONDS:
                    ray.get(self._board.regroup.remote(True))
                    return
            except ray.exceptions.RayError:
                continue  # a busy head; a lost cluster ends the group by itself

    def __enter__(self) -> Self:
        ray.get(self._board.regroup.remote(False))
        if self._most < self._config.max_workers:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()
