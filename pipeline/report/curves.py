"""Training metrics and shard timings as charts and rates: tables of `pipeline.schema.METRICS` in, content out."""

import math
from collections.abc import Mapping
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.report.content import Chart, Series, ThroughputRow
from pipeline.report.scales import figures

__all__ = ["generation_rates", "training_charts", "training_rate"]

_MOST_MEANS: Final = 100

Float64 = NDArray[np.float64]


def training_charts(runs: Mapping[str, pa.Table]) -> tuple[Chart, ...]:
    """Loss, learning rate, gradient norm, speed and data wait over steps; several runs share each chart.

    A single run shows every step behind the means of equal stretches of steps; several show their means only.
    """
    tables = {name: table.sort_by("step") for name, table in runs.items() if len(table)}
    if not tables:
        return ()

    def chart(title: str, unit: str, column: str, log: bool = False, note: str = "") -> Chart:
        alone = len(tables) == 1
        series = [s for name, table in tables.items() for s in _column_series(table, column, "" if alone else name)]
        return Chart(title, "step", unit, tuple(series), log, note)

    def rate(title: str, unit: str, top: str, scale: float = 1.0) -> Chart:
        series = [
            _ratio_series(table, top, scale, name if len(tables) > 1 else "mean") for name, table in tables.items()
        ]
        return Chart(title, "step", unit, tuple(series))

    lr = [Series(name if len(tables) > 1 else "learning rate", *_points(t, "lr")) for name, t in tables.items()]
    return (
        chart("Loss", "", "loss", log=True),
        Chart("Learning rate", "step", "", tuple(lr)),
        chart("Gradient norm", "", "grad_norm", log=True, note="Over the global batch, before clipping."),
        rate("Training speed", "img/s", "images"),
        rate("Time spent waiting for data", "%", "data_wait_seconds", scale=100.0),
    )


def _floats(table: pa.Table, column: str) -> Float64:
    values: Float64 = table[column].to_numpy().astype(np.float64)
    return values


def _points(table: pa.Table, column: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    return tuple(_floats(table, "step").tolist()), tuple(_floats(table, column).tolist())


def _stretches(num_rows: int) -> list[slice]:
    """At most _MOST_MEANS stretches of equal length (the last may be shorter)."""
    length = math.ceil(num_rows / _MOST_MEANS)
    return [slice(start, start + length) for start in range(0, num_rows, length)]


def _column_series(table: pa.Table, column: str, name: str) -> list[Series]:
    """Means of stretches at their last steps; for a run on its own (no name) with every step behind them."""
    steps, values = _floats(table, "step"), _floats(table, column)
    stretches = _stretches(len(steps))
    if len(stretches) == len(steps):
        return [Series(name or "every step", *_points(table, column))]
    x = tuple(float(steps[s][-1]) for s in stretches)
    y = tuple(float(values[s].mean()) for s in stretches)
    length = stretches[0].stop
    means = Series(name or f"mean of {length} steps", x, y)
    return [means] if name else [Series("every step", *_points(table, column), muted=True), means]


def _ratio_series(table: pa.Table, top: str, scale: float, name: str) -> Series:
    """Sum of `top` per second of the steps of each stretch, times `scale`."""
    steps, seconds = _floats(table, "step"), _floats(table, "step_seconds")
    amounts = _images_a_step(table) if top == "images" else _floats(table, top)
    stretches = _stretches(len(steps))
    y = [scale * amounts[s].sum() / seconds[s].sum() if seconds[s].sum() > 0 else math.nan for s in stretches]
    return Series(name, tuple(float(steps[s][-1]) for s in stretches), tuple(map(float, y)))


def _images_a_step(table: pa.Table) -> Float64:
    """METRICS counts images since the run began, and a run's global batch never changes."""
    return _floats(table, "images") / _floats(table, "step")


def training_rate(name: str, table: pa.Table) -> ThroughputRow | None:
    """Images a second over the run's steps, but the first, which waits for everything to start."""
    table = table.sort_by("step").slice(1)
    seconds = float(_floats(table, "step_seconds").sum()) if len(table) else 0.0
    if seconds <= 0:
        return None
    waited = float(_floats(table, "data_wait_seconds").sum()) / seconds
    workers = sorted(set(table["world_size"].to_pylist()))
    note = f"{' then '.join(map(str, workers))} worker{'s' if workers != [1] else ''}, {waited:.1%} waiting for data"
    return ThroughputRow(f"Training of {name}", float(_images_a_step(table).sum()) / seconds, "img/s", note)


def generation_rates(name: str, shards: pa.Table) -> tuple[ThroughputRow, ...]:
    """The rate of all actors together while any of them worked, and that of the slowest shard.

    From columns shard, rows, started, seconds, img_s and node; time between invocations is no part of the rate.
    """
    busy = _covered_seconds(_floats(shards, "started"), _floats(shards, "seconds"))
    if busy <= 0:
        return ()
    rates, nodes = _floats(shards, "img_s"), len(set(shards["node"].to_pylist()))
    an_actor = _floats(shards, "rows").sum() / _floats(shards, "seconds").sum()
    where = f"{len(shards):,} shards on {nodes} node{'s' if nodes > 1 else ''}, one actor {figures(an_actor)} img/s"
    slowest = shards["shard"][int(rates.argmin())].as_py()
    return (
        ThroughputRow(f"Generation of {name}", float(_floats(shards, "rows").sum()) / busy, "img/s", where),
        ThroughputRow(f"Slowest shard of {name}", float(rates.min()), "img/s", f"shard {slowest}, one actor"),
    )


def _covered_seconds(started: Float64, seconds: Float64) -> float:
    """Length of the union of the intervals [started, started + seconds]."""
    covered, end = 0.0, -math.inf
    for index in np.argsort(started):
        stop = started[index] + seconds[index]
        covered += max(0.0, stop - max(started[index], end))
        end = max(end, stop)
    return covered
