"""Checkpoints at rest: safetensors and JSON under `<run>/checkpoints/step-N/`, the manifest last.

A checkpoint without a manifest does not exist, and a committed checkpoint is never written again. The newest checkpoint
is the one of the highest step; no separate pointer to the newest exists that could be wrong.

A checkpoint is damaged when its manifest does not parse, or a file is missing, short or has another sha256.
`usable_checkpoint` and `load_newest` skip damaged checkpoints, return the one before, and delete nothing. A trainer
that resumes from an earlier checkpoint calls `rewind` after loading, so that the keys of later steps are free again.
Data readers that started for the damaged step must restart.
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

MANIFEST = "manifest.json"
RUN = "run.json"
SUCCESS = "_SUCCESS.json"
_FILE = re.compile(r"^checkpoints/step-(\d{9,})/(.+)$")

Tensors = dict[str, dict[str, Tensor]]

logger = logging.getLogger("ddpm.model_store")


def checkpoint_key(step: int) -> str:
    """The folder of a checkpoint, relative to its run."""
    return f"checkpoints/step-{step:09d}"


def write_tensors(run: Store, step: int, tensors: Mapping[str, Mapping[str, Tensor]]) -> tuple[FileEntry, ...]:
    """Store each group of tensors as `<name>.safetensors`; the entries' keys are relative to the checkpoint.

    Raises AlreadyExists when the checkpoint is committed.
    """
    folder = run.child(checkpoint_key(step))
    if folder.exists(MANIFEST):
        raise AlreadyExists(f"{folder.uri} is committed: another process trains this run; stop it first")
    return tuple(
        put_file(folder, f"{name}.safetensors", save({k: v.detach().cpu().contiguous() for k, v in group.items()}))
        for name, group in tensors.items()
    )


def write_checkpoint(run: Store, manifest: CheckpointManifest) -> None:
    """Commit a checkpoint by its manifest. An equal manifest is joined. Raises AlreadyExists for a different one."""
    key = f"{checkpoint_key(manifest.step)}/{MANIFEST}"
    if create_or_read_document(run, key, manifest) != manifest:
        raise AlreadyExists(
            f"{run.location(key)} exists with other content: another process trains this run; stop it first"
        )


def committed_steps(run: Store) -> list[int]:
    """Steps of the run's checkpoints, ascending."""
    return [step for step, files in _folders(run).items() if MANIFEST in files]


def _folders(run: Store) -> dict[int, dict[str, int]]:
    """{step: {file name: bytes}} of every checkpoint folder, committed or not, by ascending step."""
    found: dict[int, dict[str, int]] = defaultdict(dict)
    for entry in run.list("checkpoints/"):
        match = _FILE.match(entry.key)
        if match:
            found[int(match.group(1))][match.group(2)] = entry.size
    return dict(sorted(found.items()))


def read_checkpoint(run: Store, step: int) -> CheckpointManifest:
    """The manifest of one checkpoint. Raises DataError when there is no such checkpoint."""
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
    """The newest checkpoint whose manifest parses and whose files have the right sizes, or None before the first.

    Logs a warning for each damaged checkpoint. Reads one listing and the manifests, no tensors. Raises DataError when
    all checkpoints are damaged: the user decides whether to start another run.
    """
    manifest = next(_usable_checkpoints(run), None)
    if manifest is None:
        _raise_if_all_damaged(run)
    return manifest


def load_newest(run: Store, *names: str) -> tuple[CheckpointManifest, Tensors] | None:
    """The newest checkpoint whose tensors (all, or the groups `names`) verify, or None before the first.

    A checkpoint that fails is read a second time, then skipped with a warning. Deletes nothing (see `rewind`). Raises
    DataError when all checkpoints are damaged, or a checkpoint lacks one of `names`.
    """
    for manifest in _usable_checkpoints(run):
        for last_try in (False, True):
            try:
                return manifest, read_tensors(run, manifest, *names)
            except VerificationFailed as error:
                remedy = "trying the checkpoint before" if last_try else "reading it once more"
                logger.warning("checkpoint %d: %s; %s", manifest.step, error, remedy)
    _raise_if_all_damaged(run)
    return None


def _usable_checkpoints(run: Store, level: int = logging.WARNING) -> Iterator[CheckpointManifest]:
    """Manifests of checkpoints whose files have the right sizes, newest first."""
    for step, files in reversed(_folders(run).items()):
        if MANIFEST not in files:
            continue
        try:
            manifest = _complete_manifest(run, step, files)
        except DataError as error:
            logger.log(level, "checkpoint %d is skipped: %s", step, error)
        else:
            yield manifest


def _complete_manifest(run: Store, step: int, files: Mapping[str, int]) -> CheckpointManifest:
    """The manifest of a checkpoint whose `files` (sizes by name) match it. Raises DataError."""
    manifest = read_checkpoint(run, step)
    bad = [entry.key for entry in manifest.files if files.get(entry.key) != entry.bytes]
    if bad:
        raise DataError(f"{run.location(checkpoint_key(step))}: {', '.join(bad)} missing or of another size")
    return manifest


def _raise_if_all_damaged(run: Store) -> None:
    steps = committed_steps(run)
    if steps:
        raise DataError(
            f"{run.uri} has checkpoints at {steps} and each is damaged: restore one from a backup, or start another run"
        )


def read_tensors(run: Store, manifest: CheckpointManifest, *names: str) -> Tensors:
    """Tensors of a checkpoint on the CPU, verified: all groups, or `names`.

    Raises VerificationFailed when a file differs from its entry, DataError when a group is missing.
    """
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

    Damaged checkpoints do not count towards `keep` and `keep_best`. A damaged checkpoint among the newest `keep` steps
    stays, since a read error may be temporary. Uncommitted folders older than the newest checkpoint are deleted too.
    """
    folders = _folders(run)
    committed = [step for step, files in folders.items() if MANIFEST in files]
    if not committed or (len(committed) <= keep and len(folders) == len(committed)):
        return
    usable = list(islice(_usable_checkpoints(run, logging.DEBUG), None if keep_best else keep))
    with_loss = [found for found in usable if found.loss is not None and math.isfinite(found.loss)]
    best = sorted(with_loss, key=lambda found: (found.loss, -found.step))[:keep_best]
    kept = {*committed[-keep:], *(found.step for found in (*usable[:keep], *best))}
    kept |= {step for step in committed if keep_every is not None and step % keep_every == 0}
    for step, files in folders.items():
        if step not in kept and step < committed[-1]:
            _remove(run, step, files)


def rewind(run: Store, step: int) -> CheckpointManifest:
    """Make `step` the newest checkpoint: delete the success record, then later checkpoints, newest first.

    An interrupted call leaves a valid earlier state of the run and may be repeated. Raises DataError, and deletes
    nothing, when the checkpoint does not exist or is damaged.
    """
    folders = _folders(run)
    manifest = _complete_manifest(run, step, folders.get(step, {}))
    run.delete(SUCCESS)
    for later, files in reversed(folders.items()):
        if later > step:
            _remove(run, later, files)
    return manifest


def _remove(run: Store, step: int, files: Mapping[str, int]) -> None:
    """Delete the manifest first, so that no manifest ever names a missing file."""
    for name in sorted(files, key=lambda name: name != MANIFEST):
        run.delete(f"{checkpoint_key(step)}/{name}")


def read_success(run: Store) -> RunSuccess | None:
    """The success record of a finished run, or None."""
    return find_document(run, SUCCESS, RunSuccess)
