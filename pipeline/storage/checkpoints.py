"""Checkpoints at rest: safetensors and JSON under `<run>/checkpoints/step-N/`, the manifest last.

A checkpoint without a valid manifest does not exist; there is no pointer to the latest that could be wrong.
"""

import re
from collections.abc import Mapping

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from pipeline.errors import AlreadyExists, DataError, NotFound, VerificationFailed
from pipeline.manifests import CheckpointManifest, FileEntry, RunSuccess, parse
from pipeline.storage.shards import document, put_file, read_verified
from pipeline.storage.store import Store

__all__ = [
    "checkpoint_key",
    "committed_steps",
    "latest_checkpoint",
    "read_checkpoint",
    "read_success",
    "read_tensors",
    "remove_old_checkpoints",
    "write_checkpoint",
    "write_tensors",
]

MANIFEST = "manifest.json"
RUN = "run.json"
SUCCESS = "_SUCCESS.json"
_FOLDER = re.compile(r"^checkpoints/step-(\d{9})/manifest\.json$")


def checkpoint_key(step: int) -> str:
    """Folder of a checkpoint, relative to its run."""
    return f"checkpoints/step-{step:09d}"


def write_tensors(run: Store, step: int, tensors: Mapping[str, Mapping[str, Tensor]]) -> tuple[FileEntry, ...]:
    """Store each group of tensors as `<name>.safetensors`; keys are relative to the checkpoint.

    Raises AlreadyExists for a checkpoint that is committed: its files are never written again.
    """
    folder = run.child(checkpoint_key(step))
    if folder.exists(MANIFEST):
        raise AlreadyExists(f"{folder.uri} is committed: another process trains this run; stop it first")
    return tuple(
        put_file(folder, f"{name}.safetensors", save({k: v.detach().cpu().contiguous() for k, v in group.items()}))
        for name, group in tensors.items()
    )


def write_checkpoint(run: Store, manifest: CheckpointManifest) -> None:
    """Make a checkpoint exist. One that is there already with other content is an error, with equal content is not."""
    key = f"{checkpoint_key(manifest.step)}/{MANIFEST}"
    try:
        run.create_once(key, document(manifest))
    except AlreadyExists:
        if parse(CheckpointManifest, run.read(key), run.location(key)) != manifest:
            raise AlreadyExists(
                f"{run.location(key)} exists with other content: another process trains this run; stop it first"
            ) from None


def committed_steps(run: Store) -> list[int]:
    """Steps of the run's checkpoints, ascending."""
    found = (_FOLDER.match(entry.key) for entry in run.list("checkpoints/"))
    return sorted(int(match.group(1)) for match in found if match)


def read_checkpoint(run: Store, step: int) -> CheckpointManifest:
    """Manifest of one checkpoint. Raises DataError when it does not exist."""
    key = f"{checkpoint_key(step)}/{MANIFEST}"
    try:
        return parse(CheckpointManifest, run.read(key), run.location(key))
    except NotFound as error:
        raise DataError(
            f"{run.uri} has no checkpoint at step {step}: it has {committed_steps(run) or 'none'}"
        ) from error


def latest_checkpoint(run: Store) -> CheckpointManifest | None:
    """The newest checkpoint, or None before the first."""
    steps = committed_steps(run)
    return read_checkpoint(run, steps[-1]) if steps else None


def read_tensors(run: Store, manifest: CheckpointManifest, *names: str) -> dict[str, dict[str, Tensor]]:
    """Verified tensors of a checkpoint, on the CPU. Raises VerificationFailed when a file is not what was written."""
    folder = run.child(checkpoint_key(manifest.step))
    files = {entry.key.removesuffix(".safetensors"): entry for entry in manifest.files}
    missing = [name for name in names if name not in files]
    if missing:
        raise DataError(f"{folder.uri} holds no {' or '.join(missing)}: it holds {', '.join(sorted(files))}")
    return {name: _load(folder, files[name]) for name in names or files}


def _load(folder: Store, entry: FileEntry) -> dict[str, Tensor]:
    try:
        return load(read_verified(folder, entry))
    except (SafetensorError, ValueError) as error:
        raise VerificationFailed(f"{folder.location(entry.key)} is not a safetensors file: {error}") from error


def remove_old_checkpoints(run: Store, keep: int) -> None:
    """Delete all but the newest `keep`, manifest first, so that no manifest ever names a missing file."""
    for step in committed_steps(run)[:-keep]:
        manifest = read_checkpoint(run, step)
        run.delete(f"{checkpoint_key(step)}/{MANIFEST}")
        for entry in manifest.files:
            run.delete(f"{checkpoint_key(step)}/{entry.key}")


def read_success(run: Store) -> RunSuccess | None:
    """The finished run's record, or None."""
    try:
        return parse(RunSuccess, run.read(SUCCESS), run.location(SUCCESS))
    except NotFound:
        return None
