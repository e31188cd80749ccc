"""`ddpm sweep`: samplers x steps x weights -> a table and a page of quality against cost.

    open_sweep   check model, data and every point; writes nothing
    run_sweep    generate and evaluate each unfinished point on one cluster, then write the table and the page

Each point is an ordinary samples folder with an ordinary evaluation, so it is made exactly once, and rerunning an
interrupted sweep continues it. The caller passes the two stages `generate` and `evaluate`.
"""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from pipeline.analysis.sweep_grid import Point, make_points, shared_settings
from pipeline.analysis.sweep_page import best_row, sweep_lines, sweep_page
from pipeline.analysis.sweep_results import PAGE, POINTS, TABLE, SweepPlan, check_sweep, join_sweep, put_if_changed
from pipeline.cluster import cluster
from pipeline.config.root import Config
from pipeline.errors import ConfigError, DataError, NotFound
from pipeline.evaluation.context import EvaluationContext, num_scored
from pipeline.evaluation.results import Evaluation, read_evaluation
from pipeline.generation.commit import is_sealed, read_sealed
from pipeline.generation.shard_metrics import SHARD_METRICS_KEY
from pipeline.ingest.dataset import read_dataset
from pipeline.ingest.manifest import DatasetManifest
from pipeline.model_store.load_model import RAW_WEIGHTS, find_model
from pipeline.report.curves import steady_rate
from pipeline.report.render.page import render
from pipeline.schema import SWEEP
from pipeline.storage.files import parquet_bytes
from pipeline.storage.store import Store, resolve

logger = logging.getLogger("ddpm.analysis")

Stage = Callable[[Config, str, str], Mapping[str, Any]]
"""`generate` (settings, model, out) or `evaluate` (settings, samples, dataset)."""


@dataclass(frozen=True)
class Sweep:
    config: Config
    out: Store
    dataset: Store
    manifest: DatasetManifest
    plan: SweepPlan
    points: tuple[Point, ...]

    def evaluation(self, point: Point) -> Evaluation | None:
        """The evaluation of a point against the dataset of this sweep, None if unfinished."""
        if not is_sealed(point.store):
            return None
        plan, sealed = read_sealed(point.store)
        context = EvaluationContext(point.config, point.store, self.dataset, plan, sealed, self.manifest)
        return read_evaluation(point.store, context.digest) if plan.fingerprint == point.plan.fingerprint else None

    def missing(self) -> list[Point]:
        """The unfinished points."""
        return [point for point in self.points if self.evaluation(point) is None]

    @property
    def n(self) -> int:
        """Images evaluated per point, unless some samples fail."""
        wanted = self.config.evaluate.num_images
        return num_scored(self.config.generate.num_samples, self.manifest.rows("heldout"), wanted)


def open_sweep(config: Config, model: str, dataset: str, out: str) -> Sweep:
    """Check settings, model and dataset before anything starts.

    Raises one ConfigError that lists all errors of the grid, ConfigError when `out` holds another sweep, DataError for
    a missing model or dataset, or when their image shapes differ.
    """
    store, data = resolve(out, config.storage), resolve(dataset, config.storage)
    # Pin the checkpoint: a run may get newer ones during the sweep.
    found = find_model(model, RAW_WEIGHTS, config.storage, config.generate.null_label)
    points = make_points(config, found.uri, store)
    manifest = read_dataset(data)
    plan = SweepPlan(
        model_uri=found.uri,
        model_digest=found.digest,
        dataset_uri=data.uri,
        dataset_digest=manifest.digest(),
        generate=shared_settings(config.generate),
        evaluate=config.evaluate.model_dump(mode="json"),
    )
    sweep = Sweep(config, store, data, manifest, plan, points)
    if (found.image_size, found.channels) != (manifest.image_size, manifest.channels):
        raise DataError(
            f"{found.uri} makes images of {found.image_size}x{found.image_size}x{found.channels}, {data.uri} has "
            f"{manifest.image_size}x{manifest.image_size}x{manifest.channels}: give its training dataset"
        )
    if sweep.n < 2:
        raise ConfigError(f"scores need at least 2 images a side, not {sweep.n}: raise --num-samples")
    check_sweep(store, plan)
    return sweep


def describe_sweep(sweep: Sweep) -> dict[str, Any]:
    """The result of --dry-run."""
    missing, samples = sweep.missing(), sweep.config.generate.num_samples
    evaluations = samples * sum(point.evaluations for point in missing)
    lines = [
        f"would sweep {len(sweep.points)} points ({len(missing)} missing) of {samples:,} samples with seed "
        f"{sweep.config.generate.seed}, n = {sweep.n:,} of them evaluated, {evaluations:,} network evaluations in all "
        f"-> {sweep.out.uri}",
        *(f"  {point}: {point.evaluations} network evaluations per image" for point in missing),
    ]
    counts = {"points": len(sweep.points), "missing": len(missing), "evaluations": evaluations}
    return {**counts, "summary": "\n".join(lines)}


def run_sweep(sweep: Sweep, generate: Stage, evaluate: Stage) -> dict[str, Any]:
    """Finish every point, then write table and page. Raises the errors of both stages, except for failed samples:
    the evaluation skips them, and the table counts them."""
    began = time.monotonic()
    join_sweep(sweep.out, sweep.plan)
    missing = sweep.missing()
    if missing:
        with cluster(sweep.config.ray, sweep.config.ray.max_workers + 1):
            for number, point in enumerate(missing, start=len(sweep.points) - len(missing) + 1):
                logger.info("sweep: point %d of %d: %s", number, len(sweep.points), point)
                _generate(sweep, point, generate)
                evaluate(point.config, point.store.uri, sweep.dataset.uri)
    evaluations = [_finished(sweep, point) for point in sweep.points]
    rows = [_row(point, e) for point, e in zip(sweep.points, evaluations, strict=True)]
    table = pa.Table.from_pylist(rows, schema=_schema(rows))
    warnings = list(dict.fromkeys(line for e in evaluations for line in e.warnings))
    return {**_written(sweep, table, warnings, len(missing)), "seconds": round(time.monotonic() - began, 1)}


def _generate(sweep: Sweep, point: Point, generate: Stage) -> None:
    try:
        generate(point.config, sweep.plan.model_uri, point.store.uri)
    except DataError as error:
        if not is_sealed(point.store):
            raise
        logger.warning("sweep: %s", str(error).splitlines()[0])


def _finished(sweep: Sweep, point: Point) -> Evaluation:
    evaluation = sweep.evaluation(point)
    if evaluation is None:
        raise DataError(f"{sweep.dataset.uri} or {point.store.uri} changed during the sweep: rerun the same command")
    return evaluation


def _row(point: Point, evaluation: Evaluation) -> dict[str, Any]:
    """A row of SWEEP."""
    plan, metric = point.plan, evaluation.frechet_name
    measured = next(s for s in evaluation.scores if (s.metric, s.kind) == (metric, "samples"))
    kernel = next((s for s in evaluation.scores if s.kind == "samples" and s.spread is not None), None)
    img_s, actors = _rate(point.store) or (None, None)
    return {
        **plan.model_dump(include={"sampler", "steps", "eta", "guidance", "seed"}),
        "ema": plan.weights,
        "samples": plan.num_samples,
        "failed": evaluation.failed,
        "evaluations": point.evaluations,
        "metric": metric,
        "fd": measured.value,
        **{kind: evaluation.value(metric, kind) for kind in ("floor", "blurred", "noise")},
        "n": measured.n,
        "reference_n": measured.reference_n,
        "extractor": evaluation.extractor,
        "weights_sha256": evaluation.weights_sha256,
        "kernel_metric": kernel and kernel.metric,
        "kd": kernel and kernel.value,
        "kd_spread": kernel and kernel.spread,
        "img_s": img_s,
        "actors": actors,
        "actor_seconds": actors / img_s if actors and img_s else None,
        "point": f"{POINTS}/{point.name}",
        "plan": plan.fingerprint,
        "evaluation": evaluation.id,
    }


def _schema(rows: list[dict[str, Any]]) -> pa.Schema:
    """SWEEP; a dataset without held-out images has no floor, and only its table has a nullable column."""
    if all(row["floor"] is not None for row in rows):
        return SWEEP
    return SWEEP.set(SWEEP.get_field_index("floor"), SWEEP.field("floor").with_nullable(True))


def _rate(samples: Store) -> tuple[float, int] | None:
    """Images/s and number of actors from the shard metrics, None if these are missing or damaged."""
    try:
        return steady_rate(pq.read_table(pa.BufferReader(samples.read(SHARD_METRICS_KEY))))
    except (NotFound, pa.ArrowException, OSError):
        return None


def _written(sweep: Sweep, table: pa.Table, warnings: list[str], made: int) -> dict[str, Any]:
    names = {"Model": sweep.plan.model_uri, "Dataset": sweep.dataset.uri}
    config_yaml = "# shared by all points\n" + yaml.safe_dump(
        sweep.plan.model_dump(mode="json"), sort_keys=False, default_flow_style=None, width=100
    )
    page = render(sweep_page(table, names, warnings, config_yaml)).encode()
    files = {TABLE: parquet_bytes(table, len(table)), PAGE: page}
    changed = [put_if_changed(sweep.out, key, data) for key, data in files.items()]
    state = "swept" if made or any(changed) else "already done"
    best = best_row(table.to_pylist())
    floor = "no floor" if best["floor"] is None else f"floor {best['floor']:.4g}"
    lines = [
        *sweep_lines(table),
        f"{state}: {len(table)} points, {made} of them new; best {best['metric']} {best['fd']:.4g} at n = "
        f"{best['n']:,} ({best['sampler']}, {best['steps']} steps, {best['ema']}; {floor}) "
        f"-> {sweep.out.location(PAGE)}",
        *(f"warning: {line}" for line in warnings),
    ]
    return {
        "state": state,
        "uri": sweep.out.location(TABLE),
        "page": sweep.out.location(PAGE),
        "points": len(table),
        "made": made,
        "metric": best["metric"],
        "best": dict(best),
        "rows": table.to_pylist(),
        "warnings": warnings,
        "summary": "\n".join(lines),
    }
