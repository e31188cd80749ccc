"""Model -> a sheet of the paper's kind, as PNG and as Parquet; no Ray."""

from typing import Any

import numpy as np
import pyarrow as pa
import torch

from pipeline.config import Config, ExploreConfig
from pipeline.engine.exploration import Explorer, Picture
from pipeline.engine.images import encode_png, grid
from pipeline.schema import EXPLORED, IMAGE
from pipeline.stages.job_plan import make_plan
from pipeline.storage.models import find_model, load_unet
from pipeline.storage.shards import parquet_bytes, viewer_rows
from pipeline.storage.store import resolve

__all__ = ["explore"]

CELL_PIXELS, GAP = 64, 2


def explore(config: Config, model: str, out: str, dry_run: bool = False) -> dict[str, Any]:
    """Write `<mode>.png` and `<mode>.parquet` (EXPLORED) under `out`; equal settings give equal pictures.

    Raises ConfigError for settings that the sampler or the model cannot follow, DataError when there is no model.
    """
    settings = config.explore
    found, target = find_model(model, config.generate.weights, config.storage), resolve(out, config.storage)
    generate = config.generate.model_copy(
        update={"num_samples": max(config.generate.num_samples, *settings.ids, 1) + 1}
    )
    plan = make_plan(generate, found)
    if dry_run:
        return {"summary": f"would write {settings.mode}.png and .parquet of samples {settings.ids} to {target.uri}"}
    device = torch.device("cuda" if config.ray.use_gpu else "cpu")
    pictures = _pictures(Explorer(load_unet(found, config.storage), plan, device), settings)
    columns = 1 + max(picture.column for picture in pictures)
    sheet = grid(np.stack([p.pixels for p in pictures]), columns, max(1, CELL_PIXELS // plan.image_size), GAP)
    table = _table(pictures)
    target.put(f"{settings.mode}.png", encode_png(sheet))
    target.put(f"{settings.mode}.parquet", parquet_bytes(table, viewer_rows(table)))
    return {
        "uri": target.location(f"{settings.mode}.png"),
        "pictures": len(pictures),
        "model_digest": plan.model_digest,
        "summary": f"{settings.mode}: {len(pictures)} pictures -> {target.location(f'{settings.mode}.png')}",
    }


def _pictures(explorer: Explorer, settings: ExploreConfig) -> list[Picture]:
    match settings.mode:
        case "progressive":
            return explorer.progressive(settings.ids, settings.columns)
        case "interpolate":
            return explorer.interpolate(settings.ids[0], settings.ids[1], settings.columns, settings.rows)
        case "shared":
            return explorer.shared(settings.ids[0], settings.columns, settings.rows)


def _table(pictures: list[Picture]) -> pa.Table:
    names = [name for name in EXPLORED.names if name != "image"]
    columns: dict[str, Any] = {name: [getattr(picture, name) for picture in pictures] for name in names}
    columns["image"] = pa.array([{"bytes": encode_png(p.pixels), "path": None} for p in pictures], IMAGE)
    return pa.table({name: columns[name] for name in EXPLORED.names}, schema=EXPLORED)
