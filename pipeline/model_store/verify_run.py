"""`ddpm verify` of a run or checkpoint: files match their sha256, tensors load, are finite and fit the network."""

import torch
from pydantic import ValidationError
from torch import Tensor

from pipeline.config.base import digest_of
from pipeline.config.model import DiffusionConfig, ModelConfig
from pipeline.config.root import NOT_IN_DIGEST
from pipeline.errors import DataError
from pipeline.model_store.checkpoint import (
    RUN,
    SUCCESS,
    checkpoint_key,
    committed_steps,
    read_checkpoint,
    read_success,
    read_tensors,
)
from pipeline.model_store.load_model import RAW_GROUP, StoredModel
from pipeline.model_store.manifest import CheckpointManifest, RunPlan
from pipeline.schema import METRICS
from pipeline.storage.documents import read_document
from pipeline.storage.findings import Findings
from pipeline.storage.store import Store

OPTIMIZER_GROUP = "optimizer"


def verify_run(run: Store, found: Findings) -> None:
    """Check every checkpoint of a run and its success record. Raises DataError before the first checkpoint."""
    steps = committed_steps(run)
    if not steps:
        raise DataError(f"{run.uri} has no checkpoint yet: there is nothing to verify")
    plan = found.attempt(lambda: read_document(run, RUN, RunPlan))
    for step in steps:
        with found.record_errors():
            verify_checkpoint(run, step, found)
            manifest = read_checkpoint(run, step)
            found.expect(
                plan is None or manifest.dataset_digest == plan.dataset_digest,
                f"{run.location(checkpoint_key(step))} was trained on another dataset than that of {RUN}",
            )
    with found.record_errors():
        _check_success(run, steps, found)


def _check_success(run: Store, steps: list[int], found: Findings) -> None:
    success, where = read_success(run), run.location(SUCCESS)
    if success is None:
        return
    if success.step not in steps or success.checkpoint != checkpoint_key(success.step):
        found.add(f"{where} names {success.checkpoint} at step {success.step}, which does not exist")
        return
    manifest = read_checkpoint(run, success.step)
    for name in ("images", "batch_digest", "config_digest"):
        final, committed = getattr(success, name), getattr(manifest, name)
        found.expect(final == committed, f"{where}: {name} is {final}, but {committed} in its checkpoint")


def verify_checkpoint(run: Store, step: int, found: Findings) -> None:
    """Check one checkpoint: manifest, tensors, metric files. Raises DataError when there is no such checkpoint."""
    manifest = read_checkpoint(run, step)
    folder = run.child(checkpoint_key(step))
    found.counts["checkpoints"] += 1
    found.expect(manifest.step == step, f"{folder.uri}: the manifest is of step {manifest.step}")
    settings = {name: value for name, value in manifest.config.items() if name not in NOT_IN_DIGEST}
    found.expect(digest_of(settings) == manifest.config_digest, f"{folder.uri}: config_digest is not that of `config`")
    _check_groups(run, folder, manifest, found)
    rows = 0
    for part in manifest.metric_parts:
        table = found.table(run, part, METRICS, allow_missing_nullable=True)
        rows += 0 if table is None else table.num_rows
    found.counts["metric rows"] = max(rows, found.counts["metric rows"])


def _check_groups(run: Store, folder: Store, manifest: CheckpointManifest, found: Findings) -> None:
    groups = {file.key.removesuffix(".safetensors"): file for file in manifest.files}
    required = (RAW_GROUP, *manifest.ema, OPTIMIZER_GROUP)
    for name in required:
        found.expect(name in groups, f"{folder.uri} has no {name}.safetensors")
    for name, file in groups.items():
        found.counts["files"] += 1
        found.counts["bytes"] += file.bytes
        where = folder.location(file.key)
        with found.record_errors():
            tensors = read_tensors(run, manifest, name)[name]
            for key, value in tensors.items():
                finite = not value.is_floating_point() or bool(value.isfinite().all())
                found.expect(finite, f"{where}: {key} holds NaN or infinity")
            if name in (RAW_GROUP, *manifest.ema):
                _check_shapes(where, manifest, tensors, found)


def _check_shapes(where: str, manifest: CheckpointManifest, tensors: dict[str, Tensor], found: Findings) -> None:
    """Names and shapes of the weights must be those of the network described by the manifest."""
    try:
        model = ModelConfig.model_validate(manifest.config.get("model"))
        diffusion = DiffusionConfig.model_validate(manifest.config.get("diffusion"))
    except ValidationError as error:
        found.add(f"{where}: the manifest describes no valid network: {error.errors()[0]['msg']}")
        return
    described = StoredModel(where, "", "", model, diffusion, manifest.image_size, manifest.channels)
    with torch.device("meta"):
        expected = {name: weight.shape for name, weight in described.empty_unet().state_dict().items()}
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    different = sorted(n for n in expected.keys() | shapes.keys() if expected.get(n) != shapes.get(n))
    found.expect(not different, f"{where} does not fit the network of its manifest: {', '.join(different[:3])}")
