"""Weights of a checkpoint -> a diffusers folder; no Ray: one process reads one file and writes four.

The index goes last and every file once, so a folder that an interrupted export left is no model to anybody, and the
same command completes it.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

from pipeline.config.root import Config, StorageConfig
from pipeline.diffusion.schedule import make_schedule
from pipeline.errors import ConfigError, NotFound
from pipeline.model_store.checkpoint import checkpoint_key
from pipeline.model_store.load_model import StoredModel, find_model, load_unet, parse_checkpoint_uri
from pipeline.models.diffusers_format import INDEX_FILE, WEIGHTS_FILE, model_files
from pipeline.storage.create_once import try_create
from pipeline.storage.store import Store, resolve

__all__ = ["export"]


def export(config: Config, run: str, out: str, step: int | None = None, dry_run: bool = False) -> dict[str, Any]:
    """Write the weights that `generate.weights` names, of a run's newest checkpoint, of one `step`, or of a checkpoint.

    Raises DataError when there is no such checkpoint, ConfigError for weights it does not have, a diffusion that
    diffusers cannot express and a folder of other content, VerificationFailed for a file that is not as written.
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
    """The weights to export and the step that they are of."""
    place = parse_checkpoint_uri(uri, config.storage)
    if place is not None and step not in (None, place[1]):
        raise ConfigError(f"--step {step}: {uri} is the checkpoint of step {place[1]}; give its run instead")
    if place is None and step is not None:
        uri = resolve(uri, config.storage).location(checkpoint_key(step))
    found = find_model(uri, config.generate.weights, config.storage)
    place = parse_checkpoint_uri(found.uri, config.storage)
    if place is None:
        raise ConfigError(f"{found.uri} is a diffusers folder already: --run takes a run or a checkpoint")
    return found, place[1]


def _missing(folder: Store, files: Mapping[str, bytes]) -> list[str]:
    """The files that are not there yet. Raises ConfigError for other content, before anything is written."""
    missing = [name for name in files if not _is_there(folder, name, files[name])]
    if INDEX_FILE in missing:
        # An index would turn a run or a dataset into a model folder; whoever has one may keep other things beside it.
        foreign = next((entry.key for entry in folder.list() if entry.key not in files), None)
        if foreign is not None:
            raise ConfigError(
                f"{folder.uri} holds {foreign}, which is no part of a model: choose a new folder as --out"
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
        _is_there(folder, name, data)  # another export of the same weights is no conflict


def _exported(folder: Store, config: StorageConfig) -> StoredModel:
    """What `generate --model` finds: the folder is read back before anybody is told that it is there."""
    return find_model(folder.uri, "", config)
