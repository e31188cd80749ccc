"""How the work went: who was slow, what was started again, what it cost. Pure: tables at rest in, tables out."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa

from pipeline.report.render.content import Table
from pipeline.report.render.scales import figures

__all__ = ["Work", "cost_table", "generation_work", "shard_table", "starts_table", "training_work"]

SLOW: Final = 1.5
"""A straggler takes this many times the median seconds an image."""
_MOST_ROWS: Final = 12
_MOST_NAMED: Final = 5


class Work(NamedTuple):
    """What was worked: `hours` of one worker or actor, and the images that came of it."""

    name: str
    hours: float
    images: int


def training_work(name: str, curves: pa.Table) -> Work:
    """Of METRICS: every step takes all workers of its world."""
    seconds = np.asarray(curves["step_seconds"]) * np.asarray(curves["world_size"])
    images = int(np.asarray(curves["images"]).max()) if len(curves) else 0
    return Work(f"Training, {name}", float(seconds.sum()) / 3600.0, images)


def generation_work(name: str, shards: pa.Table) -> Work:
    """Of SHARD_LOG: what actors spent in network and sampler."""
    rows = int(np.asarray(shards["rows"]).sum())
    return Work(f"Generation, {name}", float(np.asarray(shards["seconds"]).sum()) / 3600.0, rows)


def cost_table(works: Sequence[Work], price: float | None) -> Table | None:
    """Worker-hours, with a price of one also the cost; None when nothing was measured."""
    known = [work for work in works if work.hours > 0 and work.images > 0]
    if not known:
        return None
    columns = ("What", "Images", "Hours", "s an image", *(("Cost",) if price is not None else ()))
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
    note = "Hours of one worker or actor at work; start-up and idle time come on top. " + (
        "generate.price_per_hour gives the cost." if price is None else f"At {figures(price)} an hour of one."
    )
    return Table("Cost", columns, rows, note=note)


def starts_table(name: str, attempts: Sequence[Mapping[str, Any]]) -> Table | None:
    """Each start of workers (step, world_size, node, started), the newest _MOST_ROWS of them; None without any."""
    if not attempts:
        return None
    ordered = sorted(attempts, key=lambda attempt: (str(attempt["started"]), int(attempt["step"])))
    rows = tuple(
        (str(a["started"]).replace("T", " ").removesuffix("Z"), f"{a['step']:,}", str(a["world_size"]), str(a["node"]))
        for a in ordered[-_MOST_ROWS:]
    )
    again = len(ordered) - 1
    said = "Never started again." if not again else f"Started again {again} time{'s' if again > 1 else ''}."
    more = f" The newest {_MOST_ROWS} are listed." if len(ordered) > _MOST_ROWS else ""
    note = f"{said}{more} A start goes on from the step of a checkpoint."
    return Table(f"Starts of {name}", ("Time (UTC)", "From step", "Workers", "First node"), rows, note=note)


def shard_table(name: str, shards: pa.Table) -> Table | None:
    """SHARD_LOG by node, with the stragglers and what was made again; None without a shard."""
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
        for node in slowest_first[:_MOST_ROWS]
    )
    note = " ".join(_remarks(shards, pace, slow))
    more = f" The slowest {_MOST_ROWS} of {len(slowest_first)} nodes." if len(slowest_first) > _MOST_ROWS else ""
    columns = ("Node", "Shards", "Median, img/s", "Slowest, img/s", "Stragglers")
    return Table(f"Shards of {name}", columns, rows, note=note + more)


def _rate(seconds_an_image: float) -> str:
    return figures(1.0 / seconds_an_image) if seconds_an_image > 0 else "\N{EN DASH}"


def _remarks(shards: pa.Table, pace: "np.ndarray[Any, Any]", slow: "np.ndarray[Any, Any]") -> Iterator[str]:
    numbers = np.asarray(shards["shard"])
    worst = numbers[np.argsort(-pace)][: min(int(slow.sum()), _MOST_NAMED)].tolist()
    if worst:
        yield (
            f"{slow.sum():,} of {len(pace):,} shards took more than {SLOW:g} times the median, slowest "
            f"{', '.join(map(str, worst))}."
        )
    else:
        yield f"No shard took more than {SLOW:g} times the median."
    again = len(numbers) - len(set(numbers.tolist()))
    yield f"{again:,} were made again." if again else "None was made again."
    pauses = _pauses(np.asarray(shards["started"]), np.asarray(shards["seconds"]))
    if pauses:
        yield f"The work rested {pauses} time{'s' if pauses > 1 else ''}, as it does between two commands."


def _pauses(started: "np.ndarray[Any, Any]", seconds: "np.ndarray[Any, Any]") -> int:
    """Stretches without any shard at work that are longer than a minute and than the longest shard."""
    least, end, count = max(60.0, float(seconds.max())), -np.inf, 0
    for index in np.argsort(started):
        count += bool(np.isfinite(end) and started[index] - end > least)
        end = max(end, started[index] + seconds[index])
    return count
