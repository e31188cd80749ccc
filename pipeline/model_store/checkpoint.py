"""Checkpoints at rest: safetensors and JSON under `<run>/checkpoints/step-N/`, the manifest last.

A checkpoint without a manifest does not exist; there is no pointer to the latest that could be wrong. A committed one
is never written again. One that turns out damaged (its manifest does not parse, a file is missing, short or has
another sha256) is passed over: `usable_checkpoint` and `load_newest` go back to the one before and delete nothing.
Whoever trains on from there calls `rewind` to that step once it is loaded, so that steps done again find their place
free; readers that came earlier, such as a feed that was cut for the damaged step, must begin again.
"""

import logging
import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from itertools import islice

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from pipeline.config.base import FileEntry
from pipeline.errors import AlreadyExists, DataError, NotFound, VerificationFailed
from pipeline.model_store.manifest import CheckpointManifest, RunSuccess
from pipeline.storage.create_once import create_or_read_document
from pipeline.storage.documents import find_document, read_document
from pipeline.storage.files import put_file, read_verified
from pipeline.storage.store import Store

__all__ = [
    "RUN",
    "SUCCESS",
    "checkpoint_key",
    "committed_steps",
    "latest_checkpoint",
    "load_newest",
    "read_checkpoint",
    "read_success",
    "read_tensors",
    "remove_old_checkpoints",
    "rewind",
    "usable_checkpoint",
    "write_checkpoint",
    "write_tensors",
]

MANIFEST = "manifest.json"
RUN = "run.json"
SUCCESS = "_SUCCESS.json"
_FILE = re.compile(r"^checkpoints/step-(\d{9,})/(.+)$")

Tensors = dict[str, dict[str, Tensor]]

logger = logging.getLogger("ddpm.model_store")


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
    if create_or_read_document(run, key, manifest) != manifest:
        raise AlreadyExists(
            f"{run.location(key)} exists with other content: another process trains this run; stop it first"
        )


def committed_steps(run: Store) -> list[int]:
    """Steps of the run's checkpoints, ascending."""
    return [step for step, files in _folders(run).items() if MANIFEST in files]


def _folders(run: Store) -> dict[int, dict[str, int]]:
    """Size of every file by its name by the step of its folder, ascending; committed or not."""
    found: dict[int, dict[str, int]] = defaultdict(dict)
    for entry in run.list("checkpoints/"):
        match = _FILE.match(entry.key)
        if match:
            found[int(match.group(1))][match.group(2)] = entry.size
    return dict(sorted(found.items()))


def read_checkpoint(run: Store, step: int) -> CheckpointManifest:
    """Manifest of one checkpoint. Raises DataError when it does not exist."""
    key = f"{checkpoint_key(step)}/{MANIFEST}"
    try:
        return read_document(run, key, CheckpointManifest)
    except NotFound as error:
        raise DataError(
            f"{run.uri} has no checkpoint at step {step}: it has {committed_steps(run) or 'none'}"
        ) from error


def latest_checkpoint(run: Store) -> CheckpointManifest | None:
    """The newest checkpoint, or None before the first. Raises DataError when its manifest is damaged."""
    steps = committed_steps(run)
    return read_checkpoint(run, steps[-1]) if steps else None


def usable_checkpoint(run: Store) -> CheckpointManifest | None:
    """The newest checkpoint whose manifest parses and whose files have their sizes, or None before the first.

    Tells which it passed over and why; one listing and the manifests, no tensor is read. Raises DataError when there
    are checkpoints and none can be used: to begin anew is a person's decision.
    """
    manifest = next(_usable(run), None)
    if manifest is None:
        _refuse_to_begin_anew(run)
    return manifest


def load_newest(run: Store, *names: str) -> tuple[CheckpointManifest, Tensors] | None:
    """The newest checkpoint whose tensors (all, or the groups `names`) are as written, or None before the first.

    What fails is read once more, then passed over with a line that says so; nothing is deleted (see above: `rewind`).
    Raises DataError when there are checkpoints and none can be used, or one does not hold `names`.
    """
    for manifest in _usable(run):
        for last_try in (False, True):
            try:
                return manifest, read_tensors(run, manifest, *names)
            except VerificationFailed as error:
                what_next = "trying the one before" if last_try else "once more"
                logger.warning("checkpoint %d: %s; %s", manifest.step, error, what_next)
    _refuse_to_begin_anew(run)
    return None


def _usable(run: Store, level: int = logging.WARNING) -> Iterator[CheckpointManifest]:
    """Newest first."""
    for step, files in reversed(_folders(run).items()):
        if MANIFEST not in files:
            continue
        try:
            manifest = _whole(run, step, files)
        except DataError as error:
            logger.log(level, "checkpoint %d is passed over: %s", step, error)
        else:
            yield manifest


def _whole(run: Store, step: int, files: Mapping[str, int]) -> CheckpointManifest:
    """The manifest, if `files` (sizes by name) are those that it names. Raises DataError."""
    manifest = read_checkpoint(run, step)
    bad = [entry.key for entry in manifest.files if files.get(entry.key) != entry.bytes]
    if bad:
        raise DataError(f"{run.location(checkpoint_key(step))} has not all of {', '.join(bad)}")
    return manifest


def _refuse_to_begin_anew(run: Store) -> None:
    steps = committed_steps(run)
    if steps:
        raise DataError(
            f"{run.uri} has checkpoints at {steps} and each is damaged: restore one from a backup, or begin anew in "
            "another run"
        )


def read_tensors(run: Store, manifest: CheckpointManifest, *names: str) -> Tensors:
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


def remove_old_checkpoints(run: Store, keep: int, keep_every: int | None = None, keep_best: int = 0) -> None:
    """Delete all but the newest `keep`, multiples of `keep_every` and the `keep_best` of lowest loss.

    Damaged checkpoints do not count among the newest or best, yet one that is among the newest by its step stays, as
    the damage may be passing. Folders that were never committed and are older than the newest checkpoint go as well.
    """
    folders = _folders(run)
    committed = [step for step, files in folders.items() if MANIFEST in files]
    if not committed or (len(committed) <= keep and len(folders) == len(committed)):
        return
    usable = list(islice(_usable(run, logging.DEBUG), None if keep_best else keep))
    with_loss = [found for found in usable if found.loss is not None and math.isfinite(found.loss)]
    best = sorted(with_loss, key=lambda found: (found.loss, -found.step))[:keep_best]
    kept = {*committed[-keep:], *(found.step for found in (*usable[:keep], *best))}
    kept |= {step for step in committed if keep_every is not None and step % keep_every == 0}
    for step, files in folders.items():
        if step not in kept and step < committed[-1]:
            _remove(run, step, files)


def rewind(run: Store, step: int) -> CheckpointManifest:
    """Make `step` the newest checkpoint: the record of success goes first, then later checkpoints, newest first.

    Interrupted anywhere, it leaves an earlier state of the run and may be repeated. Raises DataError, and deletes
    nothing, when there is no such checkpoint or it is damaged.
    """
    folders = _folders(run)
    manifest = _whole(run, step, folders.get(step, {}))
    run.delete(SUCCESS)
    for later, files in reversed(folders.items()):
        if later > step:
            _remove(run, later, files)
    return manifest


def _remove(run: Store, step: int, files: Mapping[str, int]) -> None:
    """Manifest first, so that no manifest ever names a missing file."""
    for name in sorted(files, key=lambda name: name != MANIFEST):
        run.delete(f"{checkpoint_key(step)}/{name}")


def read_success(run: Store) -> RunSuccess | None:
    """The finished run's record, or None."""
    return find_document(run, SUCCESS, RunSuccess)
