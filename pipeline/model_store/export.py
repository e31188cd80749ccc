"""`ddpm export`: weights of a checkpoint -> a diffusers folder. One process reads one file and writes four; no Ray.

Each file is created once and the index last. An interrupted export leaves a folder without an index, which no reader
takes for a model; the same command completes the folder.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

from pipeline.config.root import Config
from pipeline.config.storage import StorageConfig
from pipeline.diffusion.schedule import make_schedule
from pipeline.errors import ConfigError, NotFound
from pipeline.model_store.checkpoint import checkpoint_key
from pipeline.model_store.load_model import StoredModel, find_model, load_unet, parse_checkpoint_uri
from pipeline.models.diffusers_format import WEIGHTS_FILE, model_files
from pipeline.models.diffusers_layout import INDEX_FILE
from pipeline.storage.create_once import try_create
from pipeline.storage.store import Store, resolve


def export(config: Config, run: str, out: str, step: int | None = None, dry_run: bool = False) -> dict[str, Any]:
    """Write the weights named by `generate.weights` to `out`.

    run: URI of a run (its newest checkpoint, or that of `step`) or of a checkpoint. Raises DataError when there is no
    such checkpoint; ConfigError for unknown weights, a diffusion that diffusers cannot express, or an `out` with other
    content; VerificationFailed for a damaged checkpoint.
    """
    found, taken = _checkpoint(config, run, step)
    unet = load_unet(found, config.storage)
    betas = make_schedule(found.diffusion).betas.tolist()
    files = model_files(unet, found.diffusion, betas, found.label_dropout)
    folder = resolve(out, config.storage)
    missing = _missing(folder, files)
    sha256 = hashlib.sha256(files[WEIGHTS_FILE]).hexdigest()
    what = f"weights {found.weights!r} of step {taken:,}"
    if dry_run:
        size = sum(len(files[name]) for name in missing)
        return {"summary": f"would write {what} to {folder.uri}: {len(missing)} files, {size:,} bytes"}
    for name in sorted(missing, key=lambda name: name == INDEX_FILE):
        _write(folder, name, files[name])
    return {
        "state": "written" if missing else "already done",
        "uri": folder.uri,
        "checkpoint": found.uri,
        "step": taken,
        "weights": found.weights,
        "sha256": sha256,
        "digest": _exported(folder, config.storage).digest,
        "summary": f"{'exported' if missing else 'already done'}: {what} at {folder.uri}, sha256 {sha256[:16]}",
    }


def _checkpoint(config: Config, uri: str, step: int | None) -> tuple[StoredModel, int]:
    """The weights to export, and their step."""
    checkpoint = parse_checkpoint_uri(uri, config.storage)
    if checkpoint is not None and step not in (None, checkpoint.step):
        raise ConfigError(f"--step {step}: {uri} is the checkpoint of step {checkpoint.step}; give its run instead")
    if checkpoint is None and step is not None:
        uri = resolve(uri, config.storage).location(checkpoint_key(step))
    found = find_model(uri, config.generate.weights, config.storage)
    checkpoint = parse_checkpoint_uri(found.uri, config.storage)
    if checkpoint is None:
        raise ConfigError(f"{found.uri} is a diffusers folder already: --run takes a run or a checkpoint")
    return found, checkpoint.step


def _missing(folder: Store, files: Mapping[str, bytes]) -> list[str]:
    """The files still to write. Raises ConfigError for other content, before anything is written."""
    missing = [name for name in files if not _is_there(folder, name, files[name])]
    if INDEX_FILE in missing:
        # An index would turn a run or a dataset into a model folder. A folder that has an index may hold other files.
        foreign = next((entry.key for entry in folder.list() if entry.key not in files), None)
        if foreign is not None:
            raise ConfigError(
                f"{folder.uri} holds {foreign}, which is not part of a model: choose a new folder as --out"
            )
    return missing


def _is_there(folder: Store, name: str, data: bytes) -> bool:
    try:
        present = folder.read(name)
    except NotFound:
        return False
    if present != data:
        raise ConfigError(f"{folder.location(name)} has other content: choose another --out, or remove that folder")
    return True


def _write(folder: Store, name: str, data: bytes) -> None:
    if not try_create(folder, name, data):
        _is_there(folder, name, data)  # raises, unless another export of the same weights was faster


def _exported(folder: Store, config: StorageConfig) -> StoredModel:
    """The model as `generate --model` finds it: read the folder back before reporting success."""
    return find_model(folder.uri, "", config)
