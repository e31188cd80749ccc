"""What `--model` may name: a run (its latest checkpoint), one checkpoint, a diffusers folder, or REGISTRY@champion.

find_model   reads what a model is, without its weights where a manifest has their hash
load_unet    the network with its weights, verified
"""

import hashlib
import re
from dataclasses import dataclass

from pydantic import ValidationError

from pipeline.config.base import digest_of
from pipeline.config.root import DiffusionConfig, ModelConfig, StorageConfig
from pipeline.diffusion.objective import Objective
from pipeline.errors import ConfigError, DataError, NotFound, VerificationFailed
from pipeline.model_store.checkpoint import checkpoint_key, latest_checkpoint, read_checkpoint, read_tensors
from pipeline.model_store.manifest import CheckpointManifest
from pipeline.model_store.registry import named_version
from pipeline.models.diffusers_format import INDEX_FILE, UNET_FILE, WEIGHTS_FILE, DiffusersModel, from_files
from pipeline.models.diffusers_scheduler import SCHEDULER_FILE
from pipeline.models.unet import UNet
from pipeline.storage.store import Store, resolve

__all__ = ["RAW_WEIGHTS", "StoredModel", "find_model", "load_unet", "parse_checkpoint_uri", "weight_names"]

RAW_WEIGHTS = "raw"
"""What `generate.weights` calls the optimiser's own weights; any other name is that of an average."""
RAW_GROUP = "model"
FOLDER_WEIGHTS = "folder"
"""The weights of a diffusers folder, which holds only one set."""
_CHECKPOINT = re.compile(r"^(.+)/checkpoints/step-(\d+)$")


@dataclass(frozen=True)
class StoredModel:
    """A model at rest: `uri` of its checkpoint or folder, the name of its weights, the sha256 (hex) of their file."""

    uri: str
    weights: str
    sha256: str
    model: ModelConfig
    diffusion: DiffusionConfig
    image_size: int
    channels: int
    label_dropout: float = 0.0  # share of images that it was trained on without their label

    @property
    def digest(self) -> str:
        """sha256 (hex) of all that decides what the network computes."""
        return digest_of(
            {
                "weights": self.sha256,
                "model": self.model.model_dump(mode="json"),
                "diffusion": self.diffusion.model_dump(mode="json"),
                "image_size": self.image_size,
                "channels": self.channels,
            }
        )

    def empty_unet(self) -> UNet:
        """The network without meaningful weights; under torch.device("meta") only its names and shapes."""
        out_channels = Objective(self.diffusion, self.channels).out_channels
        return UNet(self.model, self.channels, out_channels, self.image_size)


def parse_checkpoint_uri(uri: str, config: StorageConfig) -> tuple[Store, int] | None:
    """(run, step) when the URI is that of a checkpoint's folder, else None."""
    match = _CHECKPOINT.match(resolve(uri, config).uri)
    return (resolve(match.group(1), config), int(match.group(2))) if match else None


def find_model(uri: str, weights: str, config: StorageConfig) -> StoredModel:
    """Raises DataError when there is no model, ConfigError when it has no such weights.

    An alias (REGISTRY@champion) is looked up here, once: `uri` of what is found is that of a version, which never
    changes. Raises VerificationFailed when a version's weights are not those that its manifest names.
    """
    registered = named_version(uri, config)
    if registered is not None:
        registry, version = registered
        found = find_model(registry.folder(version.number).uri, weights, config)
        if found.sha256 != version.sha256:
            there, named = found.sha256[:16], version.sha256[:16]
            raise VerificationFailed(f"{found.uri} has weights {there}, and its manifest names {named}: restore it")
        return found
    store = resolve(uri, config)
    if store.exists(INDEX_FILE):
        folder, sha256 = _read_folder(store)
        size, channels = folder.sample_size, folder.in_channels
        return StoredModel(
            store.uri, FOLDER_WEIGHTS, sha256, folder.model, folder.diffusion, size, channels, folder.label_dropout
        )
    run, manifest = _checkpoint(uri, config)
    group = _group(manifest, weights, run)
    sha256 = next((file.sha256 for file in manifest.files if file.key == f"{group}.safetensors"), "")
    location = run.location(checkpoint_key(manifest.step))
    if not sha256:
        raise DataError(f"{location} holds no {group}.safetensors")
    try:
        model = ModelConfig.model_validate(manifest.config.get("model"))
        diffusion = DiffusionConfig.model_validate(manifest.config.get("diffusion"))
    except ValidationError as error:
        raise DataError(f"{location} holds a configuration of another version: {error}") from error
    dropout = float(manifest.config.get("train", {}).get("label_dropout", 0.0))
    return StoredModel(location, weights, sha256, model, diffusion, manifest.image_size, manifest.channels, dropout)


def weight_names(uri: str, config: StorageConfig) -> tuple[str, ...]:
    """What `generate.weights` may name: averages, then RAW_WEIGHTS; of a diffusers folder, which has one set, 'ema'.

    Raises DataError when there is no model.
    """
    if resolve(uri, config).exists(INDEX_FILE):
        return ("ema",)
    return (*_checkpoint(uri, config)[1].ema, RAW_WEIGHTS)


def load_unet(found: StoredModel, config: StorageConfig) -> UNet:
    """The network on the CPU, in evaluation mode. Raises VerificationFailed when the file is not the one found."""
    place = parse_checkpoint_uri(found.uri, config)
    if place is None:
        folder, sha256 = _read_folder(resolve(found.uri, config))
        if sha256 != found.sha256:
            raise VerificationFailed(f"{found.uri} has other weights than before: {sha256}, not {found.sha256}")
        return folder.unet()
    run, step = place
    manifest = read_checkpoint(run, step)
    group = _group(manifest, found.weights, run)
    state = read_tensors(run, manifest, group)[group]
    unet = found.empty_unet()
    try:
        unet.load_state_dict(state)
    except RuntimeError as error:
        raise VerificationFailed(f"{found.uri}: {group}.safetensors does not fit its own model: {error}") from error
    return unet.requires_grad_(False).eval()


def _checkpoint(uri: str, config: StorageConfig) -> tuple[Store, CheckpointManifest]:
    place = parse_checkpoint_uri(uri, config)
    if place is not None:
        return place[0], read_checkpoint(*place)
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


def _read_folder(store: Store) -> tuple[DiffusersModel, str]:
    files: dict[str, bytes] = {}
    for name in (INDEX_FILE, UNET_FILE, SCHEDULER_FILE, WEIGHTS_FILE):
        try:
            files[name] = store.read(name)
        except NotFound:
            continue  # from_files says which one is missing and what to do
    try:
        folder = from_files(files)
    except DataError as error:
        raise DataError(f"{store.uri}: {error}") from error
    return folder, hashlib.sha256(files[WEIGHTS_FILE]).hexdigest()
