"""Training metrics and shard timings as charts and rates: tables of `pipeline.schema.METRICS` in, content out."""

import math
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.report.render.content import Chart, Series, ThroughputRow
from pipeline.report.render.scales import figures

__all__ = ["generation_rates", "steady_rate", "training_charts", "training_rate"]

_MOST_MEANS: Final = 100
_MOST_CHANGES: Final = 6
_LEAST_SHARE: Final = 0.01
_ENOUGH_SHARDS: Final = 2
_MOMENTS: Final = (0, 1 / 8, 1 / 4, 1 / 2, 1)
"""Shares of a run between which its loss by timestep is averaged: learning slows, so each as long as all before."""

Float64 = NDArray[np.float64]


def training_charts(runs: Mapping[str, pa.Table]) -> tuple[Chart, ...]:
    """Loss, learning rate, gradient norm, speed and data wait over steps; several runs share each chart.

    A single run shows every step behind the means of equal stretches of steps; several show their means only. Loss by
    timestep and rank skew are there when a table has them: older runs have no such columns.
    """
    tables = {name: table.sort_by("step") for name, table in runs.items() if len(table)}
    if not tables:
        return ()

    def chart(title: str, unit: str, column: str, log: bool = False, note: str = "") -> Chart:
        alone = len(tables) == 1
        series = [s for name, table in tables.items() for s in _column_series(table, column, "" if alone else name)]
        return Chart(title, "step", unit, tuple(series), log, note)

    def rate(title: str, unit: str, top: str, scale: float = 1.0, note: str = "") -> Chart:
        series = [
            _ratio_series(table, top, scale, name if len(tables) > 1 else "mean") for name, table in tables.items()
        ]
        return Chart(title, "step", unit, tuple(series), note=note)

    lr = [Series(name if len(tables) > 1 else "learning rate", *_points(t, "lr")) for name, t in tables.items()]
    return (
        chart("Loss", "", "loss", log=True),
        Chart("Learning rate", "step", "", tuple(lr)),
        chart("Gradient norm", "", "grad_norm", log=True, note="Over the global batch, before clipping."),
        *_loss_by_timestep(tables),
        rate("Training speed", "img/s", "images", note=_of_each(tables, _world_size_changes)),
        rate("Time spent waiting for data", "%", "data_wait_seconds", scale=100.0),
        *_rank_skew(tables),
    )


def _of_each(tables: Mapping[str, pa.Table], say: Callable[[pa.Table], str]) -> str:
    """A sentence on every run that there is something to say of."""
    said = {name: text for name, table in tables.items() if (text := say(table))}
    return " ".join(text if len(tables) == 1 else f"{name}: {text}" for name, text in said.items())


def _world_size_changes(table: pa.Table) -> str:
    """At which steps a run went on with another number of workers; a restart with as many leaves no trace here."""
    steps, sizes = table["step"].to_pylist(), table["world_size"].to_pylist()
    changes = [
        f"{before} \N{RIGHTWARDS ARROW} {after} at step {step:,}"
        for step, (before, after) in zip(steps[1:], pairwise(sizes), strict=True)
        if before != after
    ]
    more = len(changes) - _MOST_CHANGES
    listed = ", ".join(changes[:_MOST_CHANGES]) + (f" and {more} more" if more > 0 else "")
    return f"World size {listed}." if changes else ""


def _loss_by_timestep(tables: Mapping[str, pa.Table]) -> Iterator[Chart]:
    """Profiles over the timesteps: a single run at _MOMENTS, the newest first; of several runs the last half each."""
    series: list[Series] = []
    for name, table in tables.items():
        steps, losses = _tenths(table)
        edges = [round(share * len(steps)) for share in _MOMENTS]
        moments = [slice(a, b) for a, b in pairwise(edges) if a < b][::-1]
        for moment in moments if len(tables) == 1 else moments[:1]:
            values = losses[moment]
            x = (np.arange(values.shape[1]) + 0.5) * (100 / values.shape[1])
            label = f"steps {steps[moment][0]:,.0f} to {steps[moment][-1]:,.0f}" if len(tables) == 1 else name
            series.append(Series(label, tuple(x.tolist()), tuple(_means_of_known(values).tolist())))
    if series:
        note = "Plain MSE of the images whose t fell into each tenth of the timesteps; 0 is the least noise."
        yield Chart("Loss by timestep", "t, % of T", "", tuple(series), log=True, note=note, ends=False)


def _tenths(table: pa.Table) -> tuple[Float64, Float64]:
    """Steps [N] that have `loss_by_t` and its values [N, 10], NaN where no image fell."""
    if "loss_by_t" not in table.column_names:
        return np.empty(0), np.empty((0, 0))
    table = table.filter(pc.is_valid(table["loss_by_t"]))
    values = pc.list_flatten(table["loss_by_t"]).to_numpy().astype(np.float64)
    return _floats(table, "step"), values.reshape(len(table), -1) if len(table) else np.empty((0, 0))


def _means_of_known(values: Float64) -> Float64:
    """Column means [M] of values [N, M] that are no NaN; NaN for a column of nothing else."""
    known = ~np.isnan(values)
    counts = known.sum(axis=0)
    means: Float64 = np.where(counts > 0, np.where(known, values, 0.0).sum(axis=0) / np.maximum(counts, 1), np.nan)
    return means


def _rank_skew(tables: Mapping[str, pa.Table]) -> Iterator[Chart]:
    """How long the fastest rank waits for the slowest, over the steps that had several ranks."""
    skewed = {
        name: several
        for name, table in tables.items()
        if "skew_seconds" in table.column_names
        and len(several := table.filter((pc.field("world_size") > 1) & pc.field("skew_seconds").is_valid()))
    }
    if skewed:
        series = [
            s for name, t in skewed.items() for s in _column_series(t, "skew_seconds", "" if len(tables) == 1 else name)
        ]
        note = f"Longest less shortest own work of the ranks in a step. {_of_each(skewed, _slowest)}"
        yield Chart("Rank skew", "step", "s", tuple(series), note=note)


def _slowest(table: pa.Table) -> str:
    share = _floats(table, "skew_seconds").sum() / _floats(table, "step_seconds").sum()
    ranks, counts = np.unique(table["slowest_rank"].drop_null().to_numpy(), return_counts=True)
    often = (
        f"; rank {ranks[counts.argmax()]} is the slowest in {counts.max() / len(table):.0%} of them"
        if len(ranks)
        else ""
    )
    return f"{share:.1%} of the time of these steps{often}."


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
    workers = list(dict.fromkeys(table["world_size"].to_pylist()))
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


def steady_rate(shards: pa.Table) -> tuple[float, int] | None:
    """(images a second of all actors together, how many actors) while as many were at work as ever were at once.

    From columns started, seconds and img_s. Start-up, the end of the last shards and the time between invocations are
    no part of it; nor, where there are shards enough, is each actor's first one, which warms up. None without shards.
    """
    found = _together(shards)
    if found is None:
        return None
    warm = shards.sort_by("started").slice(found[1])
    again = _together(warm) if len(warm) >= _ENOUGH_SHARDS * found[1] else None
    return again if again is not None and again[1] == found[1] else found


def _together(shards: pa.Table) -> tuple[float, int] | None:
    """As `steady_rate`, first shards included. Overlaps of less than _LEAST_SHARE of the time are clocks' errors."""
    starts, rates = _floats(shards, "started"), _floats(shards, "img_s")
    moments = np.concatenate([starts, starts + _floats(shards, "seconds")])
    order = np.argsort(moments, kind="stable")
    spans = np.diff(moments[order])
    at_work = np.cumsum(np.repeat([1, -1], len(starts))[order])[:-1]
    rate = np.cumsum(np.concatenate([rates, -rates])[order])[:-1]
    seconds = np.bincount(at_work, weights=spans)[1:] if len(spans) else np.empty(0)
    if not seconds.sum() > 0:
        return None
    actors = int(np.flatnonzero(seconds >= _LEAST_SHARE * seconds.sum())[-1]) + 1
    full = at_work == actors
    return float((rate * spans)[full].sum() / spans[full].sum()), actors


def _covered_seconds(started: Float64, seconds: Float64) -> float:
    """Length of the union of the intervals [started, started + seconds]."""
    covered, end = 0.0, -math.inf
    for index in np.argsort(started):
        stop = started[index] + seconds[index]
        covered += max(0.0, stop - max(started[index], end))
        end = max(end, stop)
    return covered
