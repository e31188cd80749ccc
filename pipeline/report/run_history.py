"""Tables on how a run or a generation job was executed: restarts, stragglers and cost. Pure functions."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa

from pipeline.report.render.content import Table
from pipeline.report.render.scales import NO_VALUE, figures

SLOW: Final = 1.5
"""A straggler takes more than this many times the median seconds per image."""
_MAX_ROWS: Final = 12
_MAX_NAMED: Final = 5


class Work(NamedTuple):
    """Work of a stage: total `hours` of its workers or actors, and the number of images processed."""

    name: str
    hours: float
    images: int


def training_work(name: str, curves: pa.Table) -> Work:
    """From METRICS: each step occupies every worker of its world size."""
    seconds = np.asarray(curves["step_seconds"]) * np.asarray(curves["world_size"])
    images = int(np.asarray(curves["images"]).max()) if len(curves) else 0
    return Work(f"Training, {name}", float(seconds.sum()) / 3600.0, images)


def generation_work(name: str, shards: pa.Table) -> Work:
    """From SHARD_METRICS: time that actors spent in sampling."""
    rows = int(np.asarray(shards["rows"]).sum())
    return Work(f"Generation, {name}", float(np.asarray(shards["seconds"]).sum()) / 3600.0, rows)


def cost_table(works: Sequence[Work], price: float | None) -> Table | None:
    """Worker-hours and, with a price per hour, the cost; None when nothing was measured."""
    known = [work for work in works if work.hours > 0 and work.images > 0]
    if not known:
        return None
    columns = ("Work", "Images", "Worker-hours", "s per image", *(("Cost",) if price is not None else ()))
    rows = tuple(
        (
            work.name,
            f"{work.images:,}",
            figures(work.hours),
            figures(work.hours * 3600.0 / work.images),
            *((f"{work.hours * price:,.2f}",) if price is not None else ()),
        )
        for work in known
    )
    note = "Busy time of all workers or actors, without start-up and idle time. " + (
        "Set generate.price_per_hour for the cost." if price is None else f"Price: {figures(price)} per worker-hour."
    )
    return Table("Cost", columns, rows, note=note)


def starts_table(name: str, attempts: Sequence[Mapping[str, Any]]) -> Table | None:
    """The newest _MAX_ROWS starts of a worker group (step, world_size, node, started); None without starts."""
    if not attempts:
        return None
    ordered = sorted(attempts, key=lambda attempt: (str(attempt["started"]), int(attempt["step"])))
    rows = tuple(
        (str(a["started"]).replace("T", " ").removesuffix("Z"), f"{a['step']:,}", str(a["world_size"]), str(a["node"]))
        for a in ordered[-_MAX_ROWS:]
    )
    restarts = len(ordered) - 1
    count = f"Restarted {restarts} time{'s' if restarts > 1 else ''}." if restarts else "Never restarted."
    more = f" The table lists the newest {_MAX_ROWS} starts." if len(ordered) > _MAX_ROWS else ""
    note = f"{count}{more} A start resumes from the step of a checkpoint."
    return Table(f"Starts of {name}", ("Time (UTC)", "From step", "Workers", "First node"), rows, note=note)


def shard_table(name: str, shards: pa.Table) -> Table | None:
    """SHARD_METRICS by node, with stragglers and shards generated more than once; None without shards."""
    if not len(shards):
        return None
    pace = np.asarray(shards["seconds"]) / np.maximum(np.asarray(shards["rows"]), 1)
    slow = pace > SLOW * np.median(pace)
    nodes = np.asarray(shards["node"].to_pylist(), dtype=object)
    slowest_first = sorted(set(nodes.tolist()), key=lambda node: (-float(np.median(pace[nodes == node])), str(node)))
    rows = tuple(
        (
            str(node),
            f"{(nodes == node).sum():,}",
            _rate(float(np.median(pace[nodes == node]))),
            _rate(float(pace[nodes == node].max())),
            f"{slow[nodes == node].sum():,}",
        )
        for node in slowest_first[:_MAX_ROWS]
    )
    notes = list(_remarks(shards, pace, slow))
    if len(slowest_first) > _MAX_ROWS:
        notes.append(f"The table lists the slowest {_MAX_ROWS} of {len(slowest_first)} nodes.")
    columns = ("Node", "Shards", "Median, img/s", "Slowest, img/s", "Stragglers")
    return Table(f"Shards of {name}", columns, rows, note=" ".join(notes))


def _rate(seconds_per_image: float) -> str:
    return figures(1.0 / seconds_per_image) if seconds_per_image > 0 else NO_VALUE


def _remarks(shards: pa.Table, pace: "np.ndarray[Any, Any]", slow: "np.ndarray[Any, Any]") -> Iterator[str]:
    numbers = np.asarray(shards["shard"])
    worst = numbers[np.argsort(-pace)][: min(int(slow.sum()), _MAX_NAMED)].tolist()
    if worst:
        yield (
            f"{slow.sum():,} of {len(pace):,} shards took more than {SLOW:g} times the median; the slowest: "
            f"{', '.join(map(str, worst))}."
        )
    else:
        yield f"No shard took more than {SLOW:g} times the median."
    repeated = len(numbers) - len(set(numbers.tolist()))
    yield f"Repeated shards: {repeated:,}."
    pauses = _pauses(np.asarray(shards["started"]), np.asarray(shards["seconds"]))
    if pauses:
        yield f"{pauses} pause{'s' if pauses > 1 else ''}, as between two commands."


def _pauses(started: "np.ndarray[Any, Any]", seconds: "np.ndarray[Any, Any]") -> int:
    """Number of idle periods longer than a minute and than the longest shard."""
    least, end, count = max(60.0, float(seconds.max())), -np.inf, 0
    for index in np.argsort(started):
        count += bool(np.isfinite(end) and started[index] - end > least)
        end = max(end, started[index] + seconds[index])
    return count
