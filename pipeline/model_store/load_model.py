"""Find and load the model of a `--model` URI: a run (its newest checkpoint), a checkpoint, a diffusers folder or an
alias such as REGISTRY@champion.

find_model   describes a model; reads the weights only of a diffusers folder, to hash them
load_unet    the network with its verified weights
"""

import hashlib
import re
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

from pydantic import ValidationError

from pipeline.config.base import digest_of
from pipeline.config.model import DiffusionConfig, ModelConfig
from pipeline.config.storage import StorageConfig
from pipeline.diffusion.objective import Objective
from pipeline.errors import ConfigError, DataError, NotFound, VerificationFailed
from pipeline.model_store.checkpoint import checkpoint_key, latest_checkpoint, read_checkpoint, read_tensors
from pipeline.model_store.manifest import CheckpointManifest
from pipeline.model_store.registry import named_version
from pipeline.models.diffusers_format import DiffusersModel, from_files
from pipeline.models.diffusers_layout import (
    FLAT_SCHEDULER_FILE,
    FLAT_UNET_FILE,
    INDEX_FILE,
    WEIGHTS_STEM,
    ModelFiles,
    find_files,
    shard_names,
)
from pipeline.models.unet import UNet
from pipeline.storage.store import Store, resolve

RAW_WEIGHTS = "raw"
"""The name of the optimizer's own weights in `generate.weights`; any other name is an EMA profile."""
RAW_GROUP = "model"
FOLDER_WEIGHTS = "folder"
"""The name of the weights of a diffusers folder that have no variant."""
_CHECKPOINT = re.compile(r"^(.+)/checkpoints/step-(\d+)$")


@dataclass(frozen=True)
class StoredModel:
    """A model at rest: `uri` of its checkpoint or folder, name of its weights, sha256 (hex) of the weights file.

    null_row: the row of a diffusers folder's class embedding that the user or the folder named as "no label".
    """

    uri: str
    weights: str
    sha256: str
    model: ModelConfig
    diffusion: DiffusionConfig
    image_size: int
    channels: int
    label_dropout: float = 0.0  # share of training images whose label was dropped
    null_row: int | None = None

    @property
    def digest(self) -> str:
        """sha256 (hex) of the weights and settings that decide the network's output."""
        values = {
            "weights": self.sha256,
            "model": self.model.model_dump(mode="json"),
            "diffusion": self.diffusion.model_dump(mode="json"),
            "image_size": self.image_size,
            "channels": self.channels,
        }
        return digest_of(values if self.null_row is None else {**values, "null_row": self.null_row})

    def empty_unet(self) -> UNet:
        """The network with random weights; under torch.device("meta") only names and shapes."""
        out_channels = Objective(self.diffusion, self.channels).out_channels
        return UNet(self.model, self.channels, out_channels, self.image_size)


class CheckpointUri(NamedTuple):
    """The parts of RUN/checkpoints/step-N."""

    run: Store
    step: int


def parse_checkpoint_uri(uri: str, config: StorageConfig) -> CheckpointUri | None:
    """Run and step when the URI has the form of a checkpoint's folder, else None. Opens nothing."""
    match = _CHECKPOINT.match(resolve(uri, config).uri)
    return CheckpointUri(resolve(match.group(1), config), int(match.group(2))) if match else None


def find_model(uri: str, weights: str, config: StorageConfig, null_label: int | None = None) -> StoredModel:
    """Describe the model at `uri`. Raises DataError when there is none, ConfigError when `weights` are unknown.

    weights: of a checkpoint; of a diffusers folder a variant, such as fp16. null_label: the row of the class embedding
    for "no label", in a diffusers folder that does not name one (`generate.null_label`).

    An alias (REGISTRY@champion) is resolved once, here: the result's `uri` is that of a version, which never changes.
    Raises VerificationFailed when the weights of a version differ from its manifest.
    """
    registered = named_version(uri, config)
    if registered is not None:
        registry, version = registered
        found = find_model(registry.folder(version.number).uri, weights, config, null_label)
        if found.sha256 != version.sha256:
            there, named = found.sha256[:16], version.sha256[:16]
            raise VerificationFailed(f"{found.uri} has weights {there}, but its manifest names {named}: restore it")
        return found
    store = resolve(uri, config)
    if _is_folder(store):
        return _read_folder(store, weights, null_label).stored
    run, manifest = _checkpoint(uri, config)
    if null_label is not None:
        raise ConfigError(f"generate.null_label {null_label} is for diffusers folders, and {run.uri} is a run")
    group = _group(manifest, weights, run)
    sha256 = next((file.sha256 for file in manifest.files if file.key == f"{group}.safetensors"), "")
    location = run.location(checkpoint_key(manifest.step))
    if not sha256:
        raise DataError(f"{location} holds no {group}.safetensors")
    try:
        model = ModelConfig.model_validate(manifest.config.get("model"))
        diffusion = DiffusionConfig.model_validate(manifest.config.get("diffusion"))
    except ValidationError as error:
        raise DataError(f"{location} holds a configuration that this release cannot read: {error}") from error
    dropout = float(manifest.config.get("train", {}).get("label_dropout", 0.0))
    return StoredModel(location, weights, sha256, model, diffusion, manifest.image_size, manifest.channels, dropout)


def weight_names(uri: str, config: StorageConfig) -> tuple[str, ...]:
    """Valid values of `generate.weights`: the EMA profiles, then RAW_WEIGHTS. A diffusers folder has only 'ema'.

    Raises DataError when there is no model.
    """
    if _is_folder(resolve(uri, config)):
        return ("ema",)
    return (*_checkpoint(uri, config)[1].ema, RAW_WEIGHTS)


def load_unet(found: StoredModel, config: StorageConfig) -> UNet:
    """The network on the CPU, in evaluation mode. Raises VerificationFailed when the weights changed since `found`."""
    checkpoint = parse_checkpoint_uri(found.uri, config)
    if checkpoint is None:
        folder = _read_folder(resolve(found.uri, config), found.weights, found.null_row)
        if folder.stored.sha256 != found.sha256:
            now, was = folder.stored.sha256, found.sha256
            raise VerificationFailed(f"{found.uri}: the weights changed: sha256 {now}, was {was}")
        return folder.content.unet()
    manifest = read_checkpoint(checkpoint.run, checkpoint.step)
    group = _group(manifest, found.weights, checkpoint.run)
    state = read_tensors(checkpoint.run, manifest, group)[group]
    unet = found.empty_unet()
    try:
        unet.load_state_dict(state)
    except RuntimeError as error:
        raise VerificationFailed(f"{found.uri}: {group}.safetensors does not fit its own model: {error}") from error
    return unet.requires_grad_(False).eval()


def _checkpoint(uri: str, config: StorageConfig) -> tuple[Store, CheckpointManifest]:
    checkpoint = parse_checkpoint_uri(uri, config)
    if checkpoint is not None:
        return checkpoint.run, read_checkpoint(checkpoint.run, checkpoint.step)
    run = resolve(uri, config)
    manifest = latest_checkpoint(run)
    if manifest is None:
        raise DataError(
            f"no model at {run.uri}: it is neither a run with a checkpoint, nor a checkpoint, nor a diffusers folder"
        )
    return run, manifest


def _group(manifest: CheckpointManifest, weights: str, run: Store) -> str:
    if weights == RAW_WEIGHTS:
        return RAW_GROUP
    if weights not in manifest.ema:
        choices = ", ".join([*manifest.ema, RAW_WEIGHTS])
        raise ConfigError(f"generate.weights: {run.uri} has no weights {weights!r}; it has {choices}")
    return weights


def _is_folder(store: Store) -> bool:
    """Whether this is a diffusers folder: a flat one may lack the index, a nested one without it is incomplete."""
    return store.exists(INDEX_FILE) or store.exists(FLAT_UNET_FILE)


class _Folder(NamedTuple):
    stored: StoredModel
    content: DiffusersModel


def _read_folder(store: Store, weights: str, null_label: int | None) -> _Folder:
    try:
        names = _names(store)
        layout = find_files(names, weights)
        files = {name: store.read(name) for name in (INDEX_FILE, layout.unet, layout.scheduler) if name in names}
        read = _read_weights(store, layout)
        content = from_files(files | read, layout, null_label)
    except (ConfigError, DataError) as error:
        raise type(error)(f"{store.uri}: {error}") from error
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in read.items()}
    stored = StoredModel(
        uri=store.uri,
        weights=layout.variant or FOLDER_WEIGHTS,
        sha256=digest_of(hashes) if layout.sharded else hashes[layout.weights],
        model=content.model,
        diffusion=content.diffusion,
        image_size=content.sample_size,
        channels=content.in_channels,
        label_dropout=content.label_dropout,
        null_row=content.null_row,
    )
    return _Folder(stored, content)


def _names(store: Store) -> set[str]:
    """The files of a model; other files of a flat folder are left out."""
    listed = {entry.key for prefix in ("unet/", "scheduler/", WEIGHTS_STEM) for entry in store.list(prefix)}
    return listed | {name for name in (INDEX_FILE, FLAT_UNET_FILE, FLAT_SCHEDULER_FILE) if store.exists(name)}


def _read_weights(store: Store, layout: ModelFiles) -> dict[str, bytes]:
    """The weights file, or the index and all its shards. A missing shard is left out, for from_files to name."""
    read = {layout.weights: store.read(layout.weights)}
    for name in shard_names(read[layout.weights], layout.weights) if layout.sharded else ():
        with suppress(NotFound):
            read[name] = store.read(name)
    return read
