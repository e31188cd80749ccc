"""Report section of a run: curves, sample grids, restarts and settings."""

import re
from collections.abc import Iterator
from functools import cache
from typing import Any, Final

import pyarrow as pa

from pipeline.config.layers import RECIPES, recipe_layer
from pipeline.config.layers import resolve as resolve_config
from pipeline.config.root import Config
from pipeline.errors import DataError, PipelineError
from pipeline.model_store.checkpoint import RUN, latest_checkpoint, read_success
from pipeline.model_store.manifest import CheckpointManifest, RunPlan
from pipeline.report.curves import training_rate
from pipeline.report.image_sheets import within
from pipeline.report.render.content import Fact, Picture
from pipeline.report.run_history import starts_table, training_work
from pipeline.report.section import ReportSection, as_yaml
from pipeline.report.settings import changed_settings
from pipeline.storage.documents import read_document
from pipeline.storage.store import Store, resolve
from pipeline.training.metrics_table import read_metrics

MOST_GRIDS: Final = 24
GRID_SIDE, GRID_BYTES = 768, 8 * 2**20  # pixels of the longer side of a grid, and bytes of all grids of a run
_GRID: Final = re.compile(r"^grids/step-(\d+)\.png$")


def read_run(store: Store) -> tuple[CheckpointManifest, pa.Table]:
    """The newest checkpoint of a run and its METRICS. Raises DataError without a checkpoint."""
    checkpoint = latest_checkpoint(store)
    if checkpoint is None:
        raise DataError(f"{store.uri} has no checkpoint yet: curves are available after the first checkpoint")
    return checkpoint, read_metrics(store, checkpoint)


def run_section(store: Store, name: str) -> ReportSection:
    """Raises DataError before the first checkpoint."""
    checkpoint, curves = read_run(store)
    state = "" if read_success(store) else f" of {checkpoint.config['train']['steps']:,}, unfinished"
    rate = training_rate(name, curves)
    facts = (
        Fact("Training", f"{checkpoint.step:,} steps{state}; {checkpoint.images:,} images"),
        Fact("Images", f"{checkpoint.image_size} x {checkpoint.image_size} x {checkpoint.channels}"),
        Fact("Workers", str(checkpoint.world_size)),
        Fact("Dataset digest", checkpoint.dataset_digest[:16]),
        Fact("Configuration digest", checkpoint.config_digest[:16]),
    )
    return ReportSection(
        name=name,
        kind="run",
        facts=facts,
        grids=tuple(_grids(store, name)),
        throughput=(rate,) if rate else (),
        running=(starts_table(name, _starts(store)),),
        works=(training_work(name, curves),),
        curves=curves,
        settings=(changed_settings(name, checkpoint.config, Config().model_dump(mode="json"), _recipes()),),
        config_yaml=as_yaml(f"run {name}", checkpoint.config),
    )


@cache
def _recipes() -> dict[str, dict[str, Any]]:
    names = sorted(path.stem for path in RECIPES.glob("*.yaml"))
    return {name: resolve_config([recipe_layer(name)]).model_dump(mode="json") for name in names}


def _starts(store: Store) -> list[dict[str, Any]]:
    return [store.read_json(entry.key) for entry in store.list("attempts/")]


def trained_on(run: Store) -> Store | None:
    """The dataset of a run; None when the run does not record a readable URI."""
    try:
        uri = read_document(run, RUN, RunPlan).dataset_uri
        return resolve(uri, run.config)
    except PipelineError:
        return None


def _grid_keys(store: Store) -> dict[int, str]:
    """Keys of the sample grids by step, ascending."""
    found = {int(match[1]): entry.key for entry in store.list("grids/") if (match := _GRID.match(entry.key))}
    return dict(sorted(found.items()))


def _grids(store: Store, name: str) -> Iterator[Picture]:
    """Sample grids over training; first, last and evenly spaced ones when there are too many for the page."""
    keys = _grid_keys(store)
    steps = list(keys)
    if not steps:
        return
    most = max(2, min(MOST_GRIDS, GRID_BYTES // len(within(store.read(keys[steps[-1]]), GRID_SIDE))))
    if len(steps) > most:
        steps = [steps[round(i * (len(steps) - 1) / (most - 1))] for i in range(most)]
    for step in steps:
        alt = f"Samples of {name} after {step:,} steps, from the same noise"
        yield Picture(f"Step {step:,}", alt, within(store.read(keys[step]), GRID_SIDE))


def last_grid(store: Store, name: str) -> Picture | None:
    """The newest sample grid of a run."""
    keys = _grid_keys(store)
    if not keys:
        return None
    step = max(keys)
    return Picture(f"{name}, step {step:,}", f"Samples of {name}", within(store.read(keys[step]), GRID_SIDE))
