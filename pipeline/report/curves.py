"""Charts and rates from training metrics (`pipeline.schema.METRICS`) and generation shard logs (SHARD_METRICS)."""

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

_MAX_MEANS: Final = 100
_MAX_CHANGES: Final = 6
_MIN_SHARE: Final = 0.01
_SHARDS_PER_ACTOR: Final = 2
_PHASES: Final = (0, 1 / 8, 1 / 4, 1 / 2, 1)
"""Shares of a run that bound the phases of loss by timestep. Learning slows down, so each phase doubles the steps."""

Float64 = NDArray[np.float64]


def training_charts(runs: Mapping[str, pa.Table]) -> tuple[Chart, ...]:
    """Charts over steps: loss, learning rate, gradient norm, speed and data wait; several runs share each chart.

    A single run shows every step in the background and interval means in front; several runs show only their means.
    Loss by timestep and rank skew appear when a table has the columns, which metrics of older runs lack.
    """
    tables = {name: table.sort_by("step") for name, table in runs.items() if len(table)}
    if not tables:
        return ()
    lr = [Series(_label(tables, name, "learning rate"), *_points(t, "lr")) for name, t in tables.items()]
    speed = [_ratio_series(t, _images_per_step(t), _label(tables, name, "mean")) for name, t in tables.items()]
    wait = [
        _ratio_series(t, _floats(t, "data_wait_seconds"), _label(tables, name, "mean"), 100.0)
        for name, t in tables.items()
    ]
    norm_note = "Over the global batch, before clipping."
    return (
        Chart("Loss", "step", "", _column_series(tables, "loss"), log=True),
        Chart("Learning rate", "step", "", tuple(lr)),
        Chart("Gradient norm", "step", "", _column_series(tables, "grad_norm"), log=True, note=norm_note),
        *_loss_by_timestep(tables),
        Chart("Training speed", "step", "img/s", tuple(speed), note=_remarks(tables, _world_size_changes)),
        Chart("Time spent waiting for data", "step", "%", tuple(wait)),
        *_rank_skew(tables),
    )


def _label(tables: Mapping[str, pa.Table], name: str, alone: str) -> str:
    """Label of a series: the run's name, or `alone` on a page with a single run."""
    return name if len(tables) > 1 else alone


def _remarks(tables: Mapping[str, pa.Table], remark: Callable[[pa.Table], str]) -> str:
    """The remarks on all runs as one text; names the run when there are several runs."""
    texts = {name: text for name, table in tables.items() if (text := remark(table))}
    return " ".join(text if len(tables) == 1 else f"{name}: {text}" for name, text in texts.items())


def _world_size_changes(table: pa.Table) -> str:
    """Steps at which the number of workers changed. METRICS do not show a restart with the same number."""
    steps, sizes = table["step"].to_pylist(), table["world_size"].to_pylist()
    changes = [
        f"{before} \N{RIGHTWARDS ARROW} {after} at step {step:,}"
        for step, (before, after) in zip(steps[1:], pairwise(sizes), strict=True)
        if before != after
    ]
    more = len(changes) - _MAX_CHANGES
    listed = ", ".join(changes[:_MAX_CHANGES]) + (f" and {more} more" if more > 0 else "")
    return f"World size {listed}." if changes else ""


def _loss_by_timestep(tables: Mapping[str, pa.Table]) -> Iterator[Chart]:
    """Loss over the timesteps t: of a single run in each phase, newest first; of several runs in the last phase."""
    series: list[Series] = []
    for name, table in tables.items():
        steps, losses = _tenths(table)
        edges = [round(share * len(steps)) for share in _PHASES]
        phases = [slice(a, b) for a, b in pairwise(edges) if a < b][::-1]
        for phase in phases if len(tables) == 1 else phases[:1]:
            values = losses[phase]
            x = (np.arange(values.shape[1]) + 0.5) * (100 / values.shape[1])
            label = _label(tables, name, f"steps {steps[phase][0]:,.0f} to {steps[phase][-1]:,.0f}")
            series.append(Series(label, tuple(x.tolist()), tuple(_nan_means(values).tolist())))
    if series:
        note = "Unweighted MSE by tenth of the timesteps; t = 0 has the least noise."
        yield Chart("Loss by timestep", "t, % of T", "", tuple(series), log=True, note=note, ends=False)


def _tenths(table: pa.Table) -> tuple[Float64, Float64]:
    """Steps [N] that have `loss_by_t`, and its values [N, 10]; NaN where a step had no image in that tenth."""
    if "loss_by_t" not in table.column_names:
        return np.empty(0), np.empty((0, 0))
    table = table.filter(pc.is_valid(table["loss_by_t"]))
    values = pc.list_flatten(table["loss_by_t"]).to_numpy().astype(np.float64)
    return _floats(table, "step"), values.reshape(len(table), -1) if len(table) else np.empty((0, 0))


def _nan_means(values: Float64) -> Float64:
    """Column means [M] of values [N, M] without NaN; NaN for a column of NaN only."""
    known = ~np.isnan(values)
    counts = known.sum(axis=0)
    means: Float64 = np.where(counts > 0, np.where(known, values, 0.0).sum(axis=0) / np.maximum(counts, 1), np.nan)
    return means


def _rank_skew(tables: Mapping[str, pa.Table]) -> Iterator[Chart]:
    """Difference between the slowest and the fastest rank, over the steps with several ranks."""
    skewed = {
        name: several
        for name, table in tables.items()
        if "skew_seconds" in table.column_names
        and len(several := table.filter((pc.field("world_size") > 1) & pc.field("skew_seconds").is_valid()))
    }
    if skewed:
        note = f"Step time of the slowest rank minus that of the fastest, without waiting. {_remarks(skewed, _slowest)}"
        yield Chart("Rank skew", "step", "s", _column_series(skewed, "skew_seconds", len(tables) == 1), note=note)


def _slowest(table: pa.Table) -> str:
    share = _floats(table, "skew_seconds").sum() / _floats(table, "step_seconds").sum()
    ranks, counts = np.unique(table["slowest_rank"].drop_null().to_numpy(), return_counts=True)
    text = f"The skew is {share:.1%} of the time of these steps"
    if len(ranks):
        text += f"; rank {ranks[counts.argmax()]} is the slowest in {counts.max() / len(table):.0%} of them"
    return f"{text}."


def _floats(table: pa.Table, column: str) -> Float64:
    values: Float64 = table[column].to_numpy().astype(np.float64)
    return values


def _points(table: pa.Table, column: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    return tuple(_floats(table, "step").tolist()), tuple(_floats(table, column).tolist())


def _intervals(num_rows: int) -> list[slice]:
    """At most _MAX_MEANS intervals of equal length (the last may be shorter)."""
    length = math.ceil(num_rows / _MAX_MEANS)
    return [slice(start, start + length) for start in range(0, num_rows, length)]


def _column_series(tables: Mapping[str, pa.Table], column: str, alone: bool | None = None) -> tuple[Series, ...]:
    """Interval means at the last step of each interval; for a run on its own also every step, in the background."""
    alone = len(tables) == 1 if alone is None else alone
    series = []
    for name, table in tables.items():
        steps, values = _floats(table, "step"), _floats(table, column)
        intervals = _intervals(len(steps))
        if len(intervals) == len(steps):
            series.append(Series("every step" if alone else name, *_points(table, column)))
            continue
        if alone:
            series.append(Series("every step", *_points(table, column), muted=True))
        means = tuple(float(values[i].mean()) for i in intervals)
        label = f"mean of {intervals[0].stop} steps" if alone else name
        series.append(Series(label, tuple(float(steps[i][-1]) for i in intervals), means))
    return tuple(series)


def _ratio_series(table: pa.Table, amounts: Float64, label: str, scale: float = 1.0) -> Series:
    """Sum of `amounts` [steps] per second of each interval of steps, times `scale`."""
    steps, seconds = _floats(table, "step"), _floats(table, "step_seconds")
    intervals = _intervals(len(steps))
    rates = [scale * amounts[i].sum() / seconds[i].sum() if seconds[i].sum() > 0 else math.nan for i in intervals]
    return Series(label, tuple(float(steps[i][-1]) for i in intervals), tuple(map(float, rates)))


def _images_per_step(table: pa.Table) -> Float64:
    """METRICS count images from the start of the run, and the global batch of a run is constant."""
    return _floats(table, "images") / _floats(table, "step")


def training_rate(name: str, table: pa.Table) -> ThroughputRow | None:
    """Images per second over all steps of a run except the first, which includes start-up."""
    table = table.sort_by("step").slice(1)
    seconds = float(_floats(table, "step_seconds").sum()) if len(table) else 0.0
    if seconds <= 0:
        return None
    waiting = float(_floats(table, "data_wait_seconds").sum()) / seconds
    workers = list(dict.fromkeys(table["world_size"].to_pylist()))
    note = f"{' then '.join(map(str, workers))} worker{'s' if workers != [1] else ''}, {waiting:.1%} waiting for data"
    return ThroughputRow(f"Training of {name}", float(_images_per_step(table).sum()) / seconds, "img/s", note)


def generation_rates(name: str, shards: pa.Table) -> tuple[ThroughputRow, ...]:
    """The total rate of all actors while at least one was working, and the rate of the slowest shard.

    Uses columns shard, rows, started, seconds, img_s and node; the time between two commands does not count.
    """
    busy = _covered_seconds(_floats(shards, "started"), _floats(shards, "seconds"))
    if busy <= 0:
        return ()
    rates, nodes = _floats(shards, "img_s"), len(set(shards["node"].to_pylist()))
    per_actor = _floats(shards, "rows").sum() / _floats(shards, "seconds").sum()
    where = f"{len(shards):,} shards on {nodes} node{'s' if nodes > 1 else ''}, one actor {figures(per_actor)} img/s"
    slowest = shards["shard"][int(rates.argmin())].as_py()
    return (
        ThroughputRow(f"Generation of {name}", float(_floats(shards, "rows").sum()) / busy, "img/s", where),
        ThroughputRow(f"Slowest shard of {name}", float(rates.min()), "img/s", f"shard {slowest}, one actor"),
    )


def steady_rate(shards: pa.Table) -> tuple[float, int] | None:
    """(images per second of all actors, number of actors) during peak concurrency. None without shards.

    Uses columns started, seconds and img_s. Excludes start-up, the last shards and the time between two commands, and,
    with enough shards, the first (warm-up) shard of each actor.
    """
    found = _peak_rate(shards)
    if found is None:
        return None
    warm = shards.sort_by("started").slice(found[1])
    again = _peak_rate(warm) if len(warm) >= _SHARDS_PER_ACTOR * found[1] else None
    return again if again is not None and again[1] == found[1] else found


def _peak_rate(shards: pa.Table) -> tuple[float, int] | None:
    """`steady_rate` with warm-up shards. Overlaps shorter than _MIN_SHARE of the total time are clock errors."""
    starts, rates = _floats(shards, "started"), _floats(shards, "img_s")
    times = np.concatenate([starts, starts + _floats(shards, "seconds")])
    order = np.argsort(times, kind="stable")
    spans = np.diff(times[order])
    active = np.cumsum(np.repeat([1, -1], len(starts))[order])[:-1]
    rate = np.cumsum(np.concatenate([rates, -rates])[order])[:-1]
    seconds = np.bincount(active, weights=spans)[1:] if len(spans) else np.empty(0)
    if not seconds.sum() > 0:
        return None
    actors = int(np.flatnonzero(seconds >= _MIN_SHARE * seconds.sum())[-1]) + 1
    full = active == actors
    return float((rate * spans)[full].sum() / spans[full].sum()), actors


def _covered_seconds(started: Float64, seconds: Float64) -> float:
    """Length of the union of the intervals [started, started + seconds]."""
    covered, end = 0.0, -math.inf
    for index in np.argsort(started):
        stop = started[index] + seconds[index]
        covered += max(0.0, stop - max(started[index], end))
        end = max(end, stop)
    return covered
