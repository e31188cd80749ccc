"""`ddpm explore`: one figure or analysis of Ho et al. 2020, written as PNG, Parquet and HTML. Needs no Ray."""

from typing import Any, Literal, cast

import numpy as np
import pyarrow as pa
import torch

from pipeline.analysis.explore_page import preview_page, rate_page, sheet_page
from pipeline.analysis.figures import Explorer, ExploreResult, Picture
from pipeline.analysis.preview_quality import measure_preview_quality
from pipeline.analysis.rate_distortion import measure_rate_distortion
from pipeline.config.generation import ExploreConfig
from pipeline.config.root import Config
from pipeline.errors import ConfigError
from pipeline.generation.make_plan import make_plan
from pipeline.generation.manifest import SamplePlan
from pipeline.images.convert import grid
from pipeline.images.png import encode_png
from pipeline.model_store.load_model import StoredModel, find_model, load_unet
from pipeline.report.render.content import Fact, Report
from pipeline.report.render.page import render
from pipeline.schema import EXPLORED
from pipeline.storage.files import parquet_bytes, viewer_rows
from pipeline.storage.store import Store, resolve

CELL_PIXELS, GAP = 64, 2
ANALYSES = ("rate-distortion", "frechet")
"""Modes that read images of the dataset."""


def explore(config: Config, model: str, out: str, dataset: str | None = None, dry_run: bool = False) -> dict[str, Any]:
    """Write `<mode>.png`, `<mode>.parquet` (EXPLORED, RATE_DISTORTION or PREVIEWS) and `<mode>.html` under `out`.

    Equal settings give equal pictures. dataset: its held-out images serve the modes in ANALYSES. Raises ConfigError
    for settings that the sampler or the model does not support, DataError for a missing model or too few images.
    """
    settings = config.explore
    data = _data(config, dataset)
    generate, target = config.generate, resolve(out, config.storage)
    found = find_model(model, generate.weights, config.storage, generate.null_label)
    most = max(config.generate.num_samples, *settings.ids, settings.num_images if data else 1) + 1
    plan = make_plan(config.generate.model_copy(update={"num_samples": most}), found)
    if dry_run:
        of = f"{settings.num_images:,} images" if data else f"samples {settings.ids}"
        return {"summary": f"would write {settings.mode}.png, .parquet and .html of {of} to {target.uri}"}
    device = torch.device("cuda" if config.ray.use_gpu else "cpu")
    unet = load_unet(found, config.storage)
    if data is None:
        pictures = _pictures(Explorer(unet, plan, device), settings)
        cells, columns = np.stack([p.pixels for p in pictures]), 1 + max(p.column for p in pictures)
        result = ExploreResult(_table(pictures), cells, columns)
    elif settings.mode == "frechet":
        result = measure_preview_quality(Explorer(unet, plan, device), data, plan, settings)
    else:
        result = measure_rate_distortion(unet, plan, data, settings, device)
    return _write(target, settings.mode, result, plan, found)


def _data(config: Config, dataset: str | None) -> Store | None:
    """The dataset of a mode in ANALYSES, None for other modes."""
    mode = config.explore.mode
    if mode not in ANALYSES:
        if dataset is not None:
            raise ConfigError(f"--dataset: mode {mode!r} uses no dataset")
        return None
    if dataset is None:
        raise ConfigError(f"mode {mode!r} needs --dataset: give the model's training dataset")
    return resolve(dataset, config.storage)


def _pictures(explorer: Explorer, settings: ExploreConfig) -> list[Picture]:
    match cast(Literal["progressive", "interpolate", "shared"], settings.mode):
        case "progressive":
            return explorer.progressive(settings.ids, settings.columns)
        case "interpolate":
            return explorer.interpolate(settings.ids[0], settings.ids[1], settings.columns, settings.rows)
        case "shared":
            return explorer.shared(settings.ids[0], settings.columns, settings.rows)


def _table(pictures: list[Picture]) -> pa.Table:
    rows = [{**vars(p), "image": {"bytes": encode_png(p.pixels), "path": None}} for p in pictures]
    return pa.Table.from_pylist(rows, schema=EXPLORED)


def _write(target: Store, mode: str, result: ExploreResult, plan: SamplePlan, model: StoredModel) -> dict[str, Any]:
    scale = max(1, CELL_PIXELS // plan.image_size)
    png = encode_png(grid(result.cells, result.columns, scale, GAP))
    rows = viewer_rows(result.table) if "image" in result.table.column_names else max(len(result.table), 1)
    target.put(f"{mode}.png", png)
    target.put(f"{mode}.parquet", parquet_bytes(result.table, rows))
    target.put(f"{mode}.html", render(_page(mode, result, png, plan, model)).encode())
    return {
        "uri": target.location(f"{mode}.png"),
        "page": target.location(f"{mode}.html"),
        "pictures": len(result.cells),
        "rows": len(result.table),
        "model_digest": plan.model_digest,
        "summary": f"{mode}: {len(result.cells)} pictures -> {target.location(f'{mode}.html')}",
    }


def _page(mode: str, result: ExploreResult, png: bytes, plan: SamplePlan, model: StoredModel) -> Report:
    facts = [
        Fact("Model", model.uri.rsplit("/runs/", 1)[-1]),
        Fact("Model digest", plan.model_digest[:16]),
        Fact("Weights", plan.weights),
        Fact("Seed", str(plan.seed)),
    ]
    if mode == "rate-distortion":
        return rate_page(result.table, png, facts, result.chosen)
    facts.append(Fact("Sampler", f"{plan.sampler}, {plan.steps:,} steps"))
    if mode == "frechet":
        return preview_page(result.table, png, facts, result.feature_dim)
    return sheet_page(mode, png, facts)
