"""HTML page and terminal table of a sweep, made from a table of `pipeline.schema.SWEEP`."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import pyarrow as pa

from pipeline.metrics.feature_stats import Score
from pipeline.metrics.reference_images import BLUR_NAME, NOISE_NAME
from pipeline.report.render.content import QUIET, Chart, Fact, Report, Series, Table, Verdict
from pipeline.report.render.scales import figures
from pipeline.report.render.svg import COLOURS
from pipeline.report.scores import FLOOR_NAME, verdict

Row = Mapping[str, Any]
NOTHING: Final = "\N{EN DASH}"
UNBEATEN: Final = "\N{CHECK MARK}"
_LOG_RATIO: Final = 10.0
"""Distances with a larger ratio use a logarithmic scale."""


def sweep_page(
    table: pa.Table, names: Mapping[str, str], warnings: Sequence[str] = (), config_yaml: str = ""
) -> Report:
    """The page of SWEEP rows (at least one). names: label -> URI of the model and the dataset."""
    rows = table.to_pylist()
    best = best_row(rows)
    if len({row["n"] for row in rows}) > 1:
        warnings = [*warnings, "the points have different n, and distances decrease with n"]
    result = verdict(_scores(best), warnings)
    return Report(
        title="Sampler sweep",
        subtitle=f"{len(rows)} points, {best['samples']:,} samples each",
        verdict=result and Verdict(result.kind, f"Best: {_point(best)}. {result.text}"),
        facts=tuple(_facts(rows, names)),
        charts=tuple(_charts(rows)),
        charts_title="Quality against cost",
        tables=(_table(rows),),
        config_yaml=config_yaml,
    )


def best_row(rows: Sequence[Row]) -> Row:
    """The point of lowest distance; of equal ones the one with the fewest network evaluations."""
    return min(rows, key=lambda row: (row["fd"], row["evaluations"]))


def _common_noise(row: Row) -> str:
    """Why points are comparable: the note of chart and table."""
    return (
        f"Every point makes the same sample ids, 0 to {row['samples'] - 1:,}, from the same noise (seed {row['seed']}"
        "), so differences between points have little sampling noise."
    )


def sweep_lines(table: pa.Table) -> list[str]:
    """The table for a terminal."""
    rows = table.to_pylist()
    cells = [("sampler", "steps", "weights", "evaluations", rows[0]["metric"], "img/s")]
    for row in rows:
        point = row["sampler"], str(row["steps"]), row["ema"], str(row["evaluations"])
        cells.append((*point, figures(row["fd"]), _or(row["img_s"])))
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    words = (0, 2)
    return [
        "  ".join(c.ljust(w) if i in words else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in cells
    ]


def _scores(row: Row) -> list[Score]:
    kinds = {"samples": "fd", "floor": "floor", "blurred": "blurred", "noise": "noise"}
    shared = {"metric": row["metric"], "n": row["n"], "reference_n": row["reference_n"]}
    values = {kind: row[column] for kind, column in kinds.items() if row[column] is not None}
    return [Score.model_validate({"kind": kind, "value": value, **shared}) for kind, value in values.items()]


def _point(row: Row) -> str:
    return f"{row['sampler']}, {row['steps']} steps, {row['ema']}, {row['evaluations']} network evaluations an image"


def _or(value: float | None) -> str:
    return NOTHING if value is None else figures(value)


def _listed(rows: Sequence[Row], name: str) -> str:
    """The distinct values of a column."""
    values = (row[name] for row in rows)
    return ", ".join(dict.fromkeys(_or(v) if v is None or isinstance(v, float | int) else str(v) for v in values))


def _facts(rows: Sequence[Row], names: Mapping[str, str]) -> Iterator[Fact]:
    first = rows[0]
    yield from (Fact(name, value) for name, value in names.items())
    yield Fact("Samples per point", f"{first['samples']:,}, seed {first['seed']}")
    yield Fact("Evaluated per point", f"n = {_listed(rows, 'n')} against {first['reference_n']:,} training images")
    yield Fact("Extractor", f"{first['extractor']} {first['weights_sha256'][:8]}")
    yield Fact(f"Floor: {FLOOR_NAME}", _listed(rows, "floor"))
    yield Fact(f"Ceiling: {BLUR_NAME}", _listed(rows, "blurred"))
    yield Fact(f"Ceiling: {NOISE_NAME}", _listed(rows, "noise"))
    if any(row["actors"] for row in rows):
        yield Fact("Actors at work", _listed([row for row in rows if row["actors"]], "actors"))
    if first["guidance"] is not None:
        yield Fact("Guidance", figures(first["guidance"]))


def _charts(rows: Sequence[Row]) -> Iterator[Chart]:
    yield _chart(rows, "network evaluations an image", "evaluations", _common_noise(rows[0]))
    timed = [row for row in rows if row["actor_seconds"]]
    if timed:
        note = "Seconds of one actor per image while all actors were busy; other load on the machine is included."
        yield _chart(timed, "actor-seconds an image", "actor_seconds", note)


def _chart(rows: Sequence[Row], x_label: str, column: str, note: str) -> Chart:
    """One line per sampler and weights, along its steps. Colour shows the sampler, dashes the weights."""
    samplers, weights = (list(dict.fromkeys(row[name] for row in rows)) for name in ("sampler", "ema"))
    lines: dict[tuple[str, str], list[Row]] = {}
    for row in sorted(rows, key=lambda row: row["evaluations"]):
        lines.setdefault((row["sampler"], row["ema"]), []).append(row)
    series = [
        Series(
            f"{sampler}, {ema}" if len(weights) > 1 else sampler,
            tuple(float(row[column]) for row in lines[sampler, ema]),
            tuple(row["fd"] for row in lines[sampler, ema]),
            look=samplers.index(sampler) + COLOURS * weights.index(ema),
        )
        for sampler in samplers
        for ema in weights
        if (sampler, ema) in lines
    ]
    floor = min((row["floor"] for row in rows if row["floor"] is not None), default=None)
    chart = distance_chart(f"{rows[0]['metric']} by {x_label}", x_label, series, floor, note)
    return replace(chart, ends=False, log_x=True)


def distance_chart(title: str, x_label: str, series: Sequence[Series], floor: float | None, note: str) -> Chart:
    """Distances as dots and their floor, if any, as a level; the y axis is logarithmic beyond a ratio of _LOG_RATIO."""
    xs = [x for line in series for x in line.x]
    level = [] if floor is None else [(floor, floor)]
    series = [*series, *(Series(f"{FLOOR_NAME} (floor)", (min(xs), max(xs)), y, True, look=QUIET) for y in level)]
    ys = [y for line in series for y in line.y]
    log = min(ys) > 0 and max(ys) / min(ys) > _LOG_RATIO
    return Chart(title, x_label, "", tuple(series), log, note, dots=True)


def _unbeaten(row: Row, rows: Sequence[Row]) -> bool:
    """Whether the point is on the Pareto front of distance and evaluations."""
    mine = (row["fd"], row["evaluations"])
    theirs = [(other["fd"], other["evaluations"]) for other in rows if other is not row]
    return not any(fd <= mine[0] and cost <= mine[1] and (fd, cost) != mine for fd, cost in theirs)


def _kernel(row: Row) -> str:
    """Rounded to its spread."""
    return NOTHING if row["kd"] is None else f"{row['kd']:.2g} \N{PLUS-MINUS SIGN} {row['kd_spread']:.1g}"


def _table(rows: Sequence[Row]) -> Table:
    kernel = next((row["kernel_metric"] for row in rows if row["kernel_metric"]), None)
    failed = any(row["failed"] for row in rows)
    columns = ["Sampler", "Weights", "Steps", "Evaluations", rows[0]["metric"]]
    columns += [f"{kernel} \N{PLUS-MINUS SIGN} sd"] if kernel else []
    columns += ["n", *(["Failed"] if failed else []), "img/s", "Actors", "Actor-s", "Unbeaten"]
    texts = []
    for row in rows:
        cells = [row["sampler"], row["ema"], str(row["steps"]), str(row["evaluations"]), figures(row["fd"])]
        cells += [_kernel(row)] if kernel else []
        cells += [f"{row['n']:,}", *([f"{row['failed']:,}"] if failed else [])]
        cells += [_or(row["img_s"]), _or(row["actors"]), _or(row["actor_seconds"])]
        texts.append((*cells, UNBEATEN if _unbeaten(row, rows) else ""))
    note = (
        f"{_common_noise(rows[0])} Distances are to the training split, lower is better, and compare at equal n only. "
        "Evaluations: of the network, per image. img/s: all actors together while all were busy; Actor-s: seconds of "
        "one actor per image. Unbeaten: no other point is as good with as few evaluations."
    )
    return Table("Points", tuple(columns), tuple(texts), words=2, note=note)
