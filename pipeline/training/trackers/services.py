"""Weights & Biases and MLflow. Their packages are imported on use and read credentials from the environment.

Both identify a run by `tracker_id`. After a restart W&B itself ignores steps up to its last one, and for MLflow the
last step is read from a tag, so repeated steps add no second point.
"""

import hashlib
import io
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from pipeline.errors import NotFound
from pipeline.model_store.checkpoint import RUN
from pipeline.model_store.manifest import RunPlan
from pipeline.storage.documents import read_document
from pipeline.storage.store import Store
from pipeline.training.metrics_table import Row, charts

PROJECT = "ddpm"
"""W&B project and MLflow experiment, unless WANDB_PROJECT or MLFLOW_EXPERIMENT_NAME is set."""
MLFLOW_BATCH = 1000
"""Limit of MLflow's server for metrics in one request."""
TAG_ID, TAG_STEP = "ddpm.run", "ddpm.step"


def tracker_id(run: Store) -> str:
    """Id of the run in other systems: a hash of its URI, so equal after every restart."""
    return hashlib.sha256(run.uri.encode()).hexdigest()[:16]


def _title(run: Store) -> str:
    return run.uri.rstrip("/").rpartition("/")[2]


def _settings(run: Store) -> dict[str, Any]:
    """The settings that decide the weights, without storage settings."""
    try:
        config = read_document(run, RUN, RunPlan).config
    except NotFound:
        return {}
    return {name: config[name] for name in ("model", "diffusion", "train") if name in config}


class WandB:
    """One W&B run. W&B accepts steps only in ascending order, so an image waits for the metrics of its step."""

    def __init__(self, run: Store) -> None:
        import wandb

        self._wandb = wandb
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=tracker_id(run),
            resume="allow",
            name=_title(run),
            config=_settings(run),
            allow_val_change=True,
            settings=wandb.Settings(console="off"),
        )
        self._last = 0
        self._waiting: dict[int, dict[str, bytes]] = {}

    def scalars(self, rows: Sequence[Row]) -> None:
        for step, values in charts(rows):
            self._run.log({**values, **self._images(self._waiting.pop(step, {}))}, step=step)
            self._last = step

    def image(self, name: str, png: bytes, step: int) -> None:
        if step > self._last:
            self._waiting.setdefault(step, {})[name] = png
        else:
            self._run.log(self._images({name: png}), step=step)

    def close(self) -> None:
        self._run.finish()

    def _images(self, pngs: dict[str, bytes]) -> dict[str, Any]:
        return {name: self._wandb.Image(Image.open(io.BytesIO(png))) for name, png in pngs.items()}


class MLflow:
    """One MLflow run, found by the tag `ddpm.run`."""

    def __init__(self, run: Store) -> None:
        from mlflow.entities import Metric, Param
        from mlflow.tracking import MlflowClient

        self._metric, self._client = Metric, MlflowClient()
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        experiment = self._client.get_experiment_by_name(name)
        where = self._client.create_experiment(name) if experiment is None else experiment.experiment_id
        found = self._client.search_runs([where], f"tags.`{TAG_ID}` = '{tracker_id(run)}'", max_results=1)
        if found:
            self._id, self._last = found[0].info.run_id, int(found[0].data.tags.get(TAG_STEP, 0))
            self._client.update_run(self._id, status="RUNNING")
            return
        made = self._client.create_run(where, tags={TAG_ID: tracker_id(run)}, run_name=_title(run))
        self._id, self._last = made.info.run_id, 0
        params = [
            Param(f"{section}.{key}", str(value))
            for section, values in _settings(run).items()
            for key, value in values.items()
        ]
        self._client.log_batch(self._id, params=params)

    def scalars(self, rows: Sequence[Row]) -> None:
        now = int(time.time() * 1000)
        metrics = [
            self._metric(name, value, now, step)
            for step, values in charts(rows)
            if step > self._last
            for name, value in values.items()
        ]
        for start in range(0, len(metrics), MLFLOW_BATCH):
            self._client.log_batch(self._id, metrics=metrics[start : start + MLFLOW_BATCH])
        self._last = max(self._last, int(rows[-1]["step"]))
        self._client.set_tag(self._id, TAG_STEP, self._last)

    def image(self, name: str, png: bytes, step: int) -> None:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / f"step-{step:09d}.png"
            file.write_bytes(png)
            self._client.log_artifact(self._id, str(file), name)

    def close(self) -> None:
        self._client.set_terminated(self._id)
