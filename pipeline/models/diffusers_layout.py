"""Finds the files of a diffusers model: nested or flat folders, weights whole or in shards, with a variant or without.

    nested   unet/config.json, unet/diffusion_pytorch_model.safetensors, scheduler/scheduler_config.json
             and model_index.json
    flat     the same files in one folder, as google/ddpm-cifar10-32 has; model_index.json may be missing
    variant  diffusion_pytorch_model.VARIANT.safetensors, such as fp16
    shards   diffusion_pytorch_model-00001-of-00004.safetensors and so on, with an index that names the shard of each
             tensor: diffusion_pytorch_model.safetensors.index.json

Works on names alone; reads nothing.
"""

import json
import re
from collections.abc import Collection
from typing import NamedTuple

from pipeline.errors import DataError
from pipeline.models.diffusers_scheduler import SCHEDULER_FILE

INDEX_FILE = "model_index.json"
FLAT_UNET_FILE = "config.json"
FLAT_SCHEDULER_FILE = "scheduler_config.json"
WEIGHTS_STEM = "diffusion_pytorch_model"
_WEIGHTS = re.compile(rf"{WEIGHTS_STEM}(?:\.(?P<variant>[^/]+))?\.safetensors")
_SHARD = re.compile(r"-\d{5}-of-\d{5}$")
_SHARD_INDEX = re.compile(rf"{WEIGHTS_STEM}\.safetensors\.index(?:\.(?P<variant>[^/]+))?\.json")
_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


class ModelFiles(NamedTuple):
    """Names inside the folder. weights: a safetensors file, or the JSON index of its shards."""

    unet: str
    scheduler: str
    weights: str
    variant: str = ""

    @property
    def sharded(self) -> bool:
        return self.weights.endswith(".json")


EXPORTED = ModelFiles("unet/config.json", SCHEDULER_FILE, f"unet/{WEIGHTS_STEM}.safetensors")
"""The files that `ddpm export` writes, beside INDEX_FILE."""


def find_files(names: Collection[str], weights: str) -> ModelFiles:
    """The model's files among `names`. Raises DataError when there are no weights, or several and no choice.

    weights: the variant to take. Without such a variant: the weights without a variant, or the only ones.
    """
    flat = FLAT_UNET_FILE in names and EXPORTED.unet not in names
    folder = "" if flat else "unet/"
    found = _variants([name.removeprefix(folder) for name in names if name.startswith(folder)])
    if not found:
        raise DataError(_no_weights(names, folder))
    variant = weights if weights in found else "" if "" in found else min(found)
    if variant not in (weights, "") and len(found) > 1:
        raise DataError(
            f"{folder}{WEIGHTS_STEM} has the variants {', '.join(sorted(found))}: choose one as generate.weights"
        )
    unet, scheduler = (FLAT_UNET_FILE, FLAT_SCHEDULER_FILE) if flat else (EXPORTED.unet, EXPORTED.scheduler)
    return ModelFiles(unet, scheduler, folder + found[variant], variant)


def _variants(names: Collection[str]) -> dict[str, str]:
    """Variant ("" for none) -> its file. An index of shards wins over a file, as in diffusers."""
    found: dict[str, str] = {}
    for name in names:
        match = _WEIGHTS.fullmatch(name)
        if match and not _SHARD.search(match["variant"] or ""):
            found.setdefault(match["variant"] or "", name)
        elif match := _SHARD_INDEX.fullmatch(name):
            found[match["variant"] or ""] = name
    return found


def _no_weights(names: Collection[str], folder: str) -> str:
    """The message for a folder without weights: what is there instead, and the remedy."""
    missing = f"{folder}{WEIGHTS_STEM}.safetensors is missing"
    here = sorted(name for name in names if name.startswith(folder))
    if pickled := [name for name in here if name.endswith(_PICKLED)]:
        return (
            f"{missing}: {pickled[0]} is pickled, which is not read; load the folder in diffusers and save it again: "
            "save_pretrained writes safetensors"
        )
    if shards := [name for name in here if _SHARD.search(name.removesuffix(".safetensors"))]:
        index = f"{folder}{WEIGHTS_STEM}.safetensors.index.json"
        return f"{index} is missing: it lists the tensors of {shards[0]} and the other shards"
    other = next((name for name in here if name.endswith(".safetensors")), None)
    return missing + (f"; {other} has a name that diffusers does not use" if other else "")


def shard_names(index: bytes, file: str) -> list[str]:
    """The files of the shards. Raises DataError for an invalid index, or one that names files outside its folder."""
    try:
        named = set(json.loads(index)["weight_map"].values())
        shards = sorted(named)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{file} is not an index of shards: {error!r}") from error
    folder = file.rpartition("/")[0]
    for name in shards:
        if not isinstance(name, str) or not re.fullmatch(r"[^/\\]+\.safetensors", name):
            raise DataError(f"{file}: weight_map names {name!r}, not a safetensors file of the same folder")
    return [f"{folder}/{name}" if folder else name for name in shards]
