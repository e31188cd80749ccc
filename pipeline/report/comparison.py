"""Final results of several runs: a table, and a verdict on the lowest loss. Pure functions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa

from pipeline.metrics.feature_stats import Score
from pipeline.report.curves import training_rate
from pipeline.report.render.content import Table, Verdict
from pipeline.report.render.scales import NO_VALUE, figures
from pipeline.report.run_history import training_work

LAST_SHARE: Final = 0.1
"""The final loss of a run is the mean over this last share of its steps."""
_DECIDING: Final = ("objective", "prediction", "min_snr_gamma", "schedule", "num_timesteps", "beta_start", "beta_end")
"""Settings of `diffusion` that define the loss: losses compare only when these are equal."""


@dataclass(frozen=True)
class ComparedRun:
    """One run of a comparison. curves: METRICS; scores: of samples from this run's model, if any."""

    curves: pa.Table
    config: Mapping[str, Any]
    dataset_digest: str
    scores: Sequence[Score] = ()


def final_loss(curves: pa.Table) -> float:
    """Mean loss over the last LAST_SHARE of the steps; NaN without steps."""
    table = curves.sort_by("step")
    last = table.slice(len(table) - max(1, round(LAST_SHARE * len(table)))) if len(table) else table
    return float(np.asarray(last["loss"]).mean()) if len(last) else float("nan")


def compared_verdict(runs: Mapping[str, ComparedRun]) -> Verdict | None:
    """The run with the lowest final loss, or a warning when losses are not comparable. None for fewer than two runs."""
    losses = {name: final_loss(run.curves) for name, run in runs.items() if len(run.curves)}
    if len(losses) < 2:
        return None
    unlike = _unlike(list(runs.values()))
    if unlike:
        return Verdict("warning", f"The losses are not comparable: the runs differ in {', '.join(unlike)}.")
    best, *others = sorted(losses, key=lambda name: losses[name])
    ranking = f"{best} has the lowest final loss, {figures(losses[best])}; next is {others[0]} with "
    steps = {int(np.asarray(run.curves["step"]).max()) for run in runs.values() if len(run.curves)}
    uneven = "" if len(steps) == 1 else " The runs have different numbers of steps."
    return Verdict("warning" if uneven else "good", f"{ranking}{figures(losses[others[0]])}.{uneven}")


def _unlike(runs: Sequence[ComparedRun]) -> list[str]:
    names = [f"diffusion.{n}" for n in _DECIDING if len({str(run.config["diffusion"].get(n)) for run in runs}) > 1]
    return [*(["dataset"] if len({run.dataset_digest for run in runs}) > 1 else []), *names]


def final_figures(runs: Mapping[str, ComparedRun]) -> Table:
    """Final results, one row per run."""
    metrics = list(dict.fromkeys(s.metric for run in runs.values() for s in run.scores if s.kind == "samples"))[:2]
    columns = ("Run", "Steps", "Images", "Loss", "Lowest", "Gradient norm", "img/s", "Worker-hours", *metrics)
    rows = tuple((name, *_figures(name, run), *_scores(run, metrics)) for name, run in runs.items())
    note = f"Loss and gradient norm: means of the last {LAST_SHARE:.0%} of the steps. Lowest: the smallest such mean."
    return Table("Final figures", columns, rows, note=note + (" Compare scores only at equal n." if metrics else ""))


def _figures(name: str, run: ComparedRun) -> tuple[str, ...]:
    table = run.curves.sort_by("step")
    if not len(table):
        return (NO_VALUE,) * 7
    length = max(1, round(LAST_SHARE * len(table)))
    losses, norms = np.asarray(table["loss"]), np.asarray(table["grad_norm"])
    intervals = [losses[start : start + length].mean() for start in range(0, len(losses) - length + 1, length)]
    rate = training_rate(name, table)
    return (
        f"{table['step'][-1].as_py():,}",
        f"{table['images'][-1].as_py():,}",
        figures(final_loss(table)),
        figures(float(min(*intervals, final_loss(table)))),
        figures(float(norms[-length:].mean())),
        NO_VALUE if rate is None else figures(rate.value),
        figures(training_work(name, table).hours),
    )


def _scores(run: ComparedRun, metrics: Sequence[str]) -> list[str]:
    found = {score.metric: score for score in run.scores if score.kind == "samples"}
    return [f"{figures(found[m].value)} (n = {found[m].n:,})" if m in found else NO_VALUE for m in metrics]
