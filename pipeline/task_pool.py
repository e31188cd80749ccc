"""Bounded fan-out of Ray tasks: few run at a time, so the driver's memory does not grow with their number."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import ray

from pipeline.errors import Transient
from pipeline.log import Entry, collect, replay

T = TypeVar("T")

TASKS_A_CPU = 2
RETRIES = 3


def fan_out(
    function: Callable[..., T], shared: Any, calls: Iterable[tuple[Any, ...]], at_a_time: int | None = None
) -> Iterator[T]:
    """Yield function(shared, *call) for every call, in order of completion.

    A task is retried when its process dies or it raises Transient, so `function` must be safe to repeat. `shared` is
    sent to each node once. Any other error of a task is raised here at once. The tasks that run at that moment end by
    themselves, or with the driver: Ray 2.60 can abort a driver that cancels a task which completes at the same time
    ("Tried to complete task that was not pending"). Warnings that a task logged appear in the driver's log with its
    result.
    at_a_time: number of running tasks, by default two a CPU of the cluster.
    """
    task = ray.remote(max_retries=RETRIES, retry_exceptions=[Transient])(_with_warnings).options(name=_name(function))
    common = ray.put((function, shared))
    at_a_time = at_a_time or TASKS_A_CPU * max(1, int(ray.cluster_resources().get("CPU", 1)))
    waiting: list[ray.ObjectRef] = []
    for call in calls:
        if len(waiting) >= at_a_time:
            (done,), waiting = ray.wait(waiting)
            yield _result(done)
        waiting.append(task.remote(common, *call))
    while waiting:
        (done,), waiting = ray.wait(waiting)
        yield _result(done)


def _with_warnings(common: tuple[Callable[..., T], Any], *call: Any) -> tuple[T, list[Entry]]:
    """The task itself: the result of one call, and the warnings that it logged."""
    function, shared = common
    warnings = collect(task=_name(function))
    return function(shared, *call), warnings.take()


def _result(reference: ray.ObjectRef) -> Any:
    result, warnings = ray.get(reference)
    replay(warnings)
    return result


def _name(function: Callable[..., Any]) -> str:
    return getattr(function, "__name__", "task")
