"""Page that compares several runs: curves on shared axes, final results, and the settings that differ."""

from collections.abc import Mapping, Sequence

from pipeline.errors import DataError
from pipeline.evaluation.results import Evaluation, read_evaluations
from pipeline.generation.commit import read_sealed
from pipeline.report.collect import short_names
from pipeline.report.comparison import ComparedRun, compared_verdict, final_figures
from pipeline.report.curves import training_charts
from pipeline.report.render.content import Report
from pipeline.report.run_section import last_grid, read_run
from pipeline.report.settings import different_settings
from pipeline.storage.store import Store


def compare_page(stores: Sequence[Store], samples: Sequence[Store]) -> Report:
    """The page. samples: samples folders, whose scores are shown for the run that produced the model.

    Raises DataError for a missing checkpoint or seal, and for scores with different protocols.
    """
    names = short_names([store.uri for store in stores])
    scored = _scored(dict(zip(names, stores, strict=True)), samples)
    runs = {}
    for store, name in zip(stores, names, strict=True):
        checkpoint, curves = read_run(store)
        scores = scored[name].scores if name in scored else ()
        runs[name] = ComparedRun(curves, checkpoint.config, checkpoint.dataset_digest, scores)
    grids = [last_grid(store, name) for store, name in zip(stores, names, strict=True)]
    return Report(
        title=f"{len(names)} runs compared",
        subtitle=" · ".join(names),
        verdict=compared_verdict(runs),
        leading=(final_figures(runs), different_settings({name: run.config for name, run in runs.items()})),
        charts=training_charts({name: run.curves for name, run in runs.items()}),
        grids=tuple(grid for grid in grids if grid is not None),
    )


def _scored(runs: Mapping[str, Store], samples: Sequence[Store]) -> dict[str, Evaluation]:
    """Evaluations by name of the run. Raises DataError with the difference when two protocols differ."""
    evaluated = [found for folder in samples if (found := _evaluated(folder))]
    scored = {}
    for name, run in runs.items():
        if evaluation := next((e for uri, e in evaluated if uri.startswith(f"{run.uri}/")), None):
            scored[name] = evaluation
    first, *others = scored or [""]
    for name in others:
        try:
            scored[first].require_comparable(scored[name])
        except DataError as error:
            raise DataError(
                f"{first} and {name}: {error}; omit the samples of one run, or evaluate both with the same settings"
            ) from error
    return scored


def _evaluated(folder: Store) -> tuple[str, Evaluation] | None:
    """URI of the samples' model and the evaluation with the largest n; None without an evaluation."""
    plan, sealed = read_sealed(folder)
    found = [e for e in read_evaluations(folder) if e.samples_plan == sealed.plan]
    return (plan.model_uri, max(found, key=lambda e: e.scores[0].n)) if found else None
