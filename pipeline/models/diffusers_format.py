"""Converts a U-Net and its diffusion settings to the four files of a diffusers DDPMPipeline folder, and back; no I/O.

    model_index.json                              class names
    unet/config.json                              constructor fields of UNet2DModel
    unet/diffusion_pytorch_model.safetensors      weights; both programs use the same names
    scheduler/scheduler_config.json               constructor fields of DDPMScheduler

diffusers loads these folders, and `from_files` reads folders of diffusers, with the attention names of 2022 too. A
field that this U-Net cannot vary must hold the one value that the U-Net implements, else the folder is refused.
`num_class_embeds` is num_classes + 1: the last row is "no label" (pipeline.models.unet), in every folder.
`_label_dropout` is the share of images that trained this last row; diffusers ignores fields with an underscore.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from pipeline.config.model import DiffusionConfig, ModelConfig
from pipeline.errors import ConfigError, DataError
from pipeline.models.diffusers_scheduler import (
    DIFFUSERS_VERSION,
    SCHEDULER_FILE,
    diffusion_config,
    scheduler_fields,
    validated,
)
from pipeline.models.unet import UNet

INDEX_FILE = "model_index.json"
UNET_FILE = "unet/config.json"
WEIGHTS_FILE = "unet/diffusion_pytorch_model.safetensors"

_INDEX = {
    "_class_name": "DDPMPipeline",
    "unet": ["diffusers", "UNet2DModel"],
    "scheduler": ["diffusers", "DDPMScheduler"],
}
# Field: (the only value that this U-Net implements, UNet2DModel's default for an absent field).
_FIXED: dict[str, tuple[Any, Any]] = {
    "center_input_sample": (False, False),
    "time_embedding_type": ("positional", "positional"),
    "time_embedding_dim": (None, None),
    "freq_shift": (1, 0),
    "flip_sin_to_cos": (False, True),
    "mid_block_type": ("UNetMidBlock2D", "UNetMidBlock2D"),
    "mid_block_scale_factor": (1, 1),
    "downsample_padding": (0, 1),
    "downsample_type": ("conv", "conv"),
    "upsample_type": ("conv", "conv"),
    "act_fn": ("silu", "silu"),
    "attention_head_dim": (None, 8),
    "attn_norm_num_groups": (None, None),
    "resnet_time_scale_shift": ("default", "default"),
    "add_attention": (True, True),
    "class_embed_type": (None, None),
}
_DROPOUT = "_label_dropout"
_LISTS: dict[str, type] = {"block_out_channels": int, "down_block_types": str, "up_block_types": str}
_OPTIONAL: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "layers_per_block": 2,
    "dropout": 0.0,
    "norm_num_groups": 32,
}
_OPTIONAL |= {"norm_eps": 1e-5, "num_class_embeds": None, "num_train_timesteps": None}

_OLD_NAME = re.compile(r"(attentions\.\d+)\.(query|key|value|proj_attn)\.(weight|bias)$")
_NEW_NAME = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


class DiffusersModel(NamedTuple):
    """Contents of a folder. `state` is float32 and fits UNet(model, in_channels, out_channels, sample_size)."""

    model: ModelConfig
    in_channels: int
    sample_size: int
    diffusion: DiffusionConfig
    state: dict[str, Tensor]
    label_dropout: float = 0.0

    @property
    def out_channels(self) -> int:
        return len(self.state["conv_out.bias"])

    def unet(self) -> UNet:
        """The network with these weights, in evaluation mode."""
        unet = UNet(self.model, self.in_channels, self.out_channels, self.sample_size)
        unet.load_state_dict(self.state)
        return unet.eval()


def model_files(
    unet: UNet, diffusion: DiffusionConfig, betas: Sequence[float] | None = None, label_dropout: float = 0.0
) -> dict[str, bytes]:
    """The four files by path inside the folder; equal inputs give equal bytes.

    betas: float64 [T], needed for a schedule that diffusers has no name for (sigmoid). label_dropout: share of training
    images without label. Raises ConfigError for settings that diffusers' scheduler cannot run.
    """
    dropout = {_DROPOUT: label_dropout} if label_dropout else {}
    weights = {name: value.detach().cpu().contiguous() for name, value in unet.state_dict().items()}
    return {
        INDEX_FILE: _json({**_INDEX, "_diffusers_version": DIFFUSERS_VERSION}),
        UNET_FILE: _json({**_unet_fields(unet), **dropout}),
        WEIGHTS_FILE: save(weights, metadata={"format": "pt"}),
        SCHEDULER_FILE: _json(scheduler_fields(diffusion, betas)),
    }


def from_files(files: Mapping[str, bytes]) -> DiffusersModel:
    """Read the four files. Raises DataError naming the file and the field or tensor that does not fit."""
    index = _object(files, INDEX_FILE)
    for field, wanted in (("unet", {"UNet2DModel"}), ("scheduler", {"DDPMScheduler", "DDIMScheduler"})):
        entry = index.get(field)
        if not isinstance(entry, list) or entry[-1:] == [] or str(entry[-1]) not in wanted:
            raise DataError(f"{INDEX_FILE}: {field} is {entry!r}, not one of {sorted(wanted)}")
    fields = _object(files, UNET_FILE)
    model = _model_config(fields)
    diffusion = diffusion_config(_object(files, SCHEDULER_FILE))
    in_channels, out_channels = _whole(fields, "in_channels"), _whole(fields, "out_channels")
    times = 2 if diffusion.variance in ("learned_range", "learned") else 1
    if out_channels != times * in_channels:
        raise DataError(
            f"{UNET_FILE}: out_channels is {out_channels}; {in_channels} in_channels and variance_type "
            f"'{diffusion.variance}' need {times * in_channels}"
        )
    sample_size = _whole(fields, "sample_size")
    try:
        with torch.device("meta"):
            expected = UNet(model, in_channels, out_channels, sample_size).state_dict()
    except ConfigError as error:
        raise DataError(f"{UNET_FILE}: {error}") from error
    dropout = fields.get(_DROPOUT, 0.0)
    if not isinstance(dropout, int | float) or not 0 <= dropout < 1:
        raise DataError(f"{UNET_FILE}: {_DROPOUT} is {dropout!r}, not a share in 0..1")
    return DiffusersModel(model, in_channels, sample_size, diffusion, _weights(files, expected), float(dropout))


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()


def _object(files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    if name not in files:
        raise DataError(f"{name} is missing: every diffusers folder of a DDPMPipeline has this file")
    try:
        value = json.loads(files[name])
    except ValueError as error:
        raise DataError(f"{name} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise DataError(f"{name} holds {type(value).__name__}, not an object")
    return value


def _unet_fields(unet: UNet) -> dict[str, Any]:
    config = unet.config
    attends = [level in config.attention_levels for level in range(len(config.block_out_channels))]
    return {
        "_class_name": "UNet2DModel",
        "_diffusers_version": DIFFUSERS_VERSION,
        **{name: value for name, (value, _) in _FIXED.items()},
        "sample_size": unet.sample_size,
        "in_channels": unet.in_channels,
        "out_channels": unet.out_channels,
        "block_out_channels": list(config.block_out_channels),
        "layers_per_block": config.layers_per_block,
        "down_block_types": ["AttnDownBlock2D" if attend else "DownBlock2D" for attend in attends],
        "up_block_types": ["AttnUpBlock2D" if attend else "UpBlock2D" for attend in reversed(attends)],
        "dropout": config.dropout,
        "norm_num_groups": config.norm_num_groups,
        "norm_eps": config.norm_eps,
        "num_class_embeds": None if config.num_classes is None else config.num_classes + 1,
    }


def _whole(fields: Mapping[str, Any], name: str) -> int:
    value = fields.get(name, _OPTIONAL.get(name))
    if isinstance(value, list) and len(value) == 2 and value[0] == value[1]:
        value = value[0]
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise DataError(f"{UNET_FILE}: {name} is {value!r}, not one positive whole number")
    return value


def _accepted(name: str, fields: Mapping[str, Any]) -> tuple[Any, ...]:
    """All spellings of the one value of a fixed field."""
    widths = fields["block_out_channels"]
    also: dict[str, Any] = {"act_fn": "swish", "time_embedding_dim": 4 * widths[0]}
    also["attn_norm_num_groups"] = fields.get("norm_num_groups", 32)
    # A head width equal to the channels of every level with attention means one head.
    levels = [w for w, kind in zip(widths, fields["down_block_types"], strict=False) if kind == "AttnDownBlock2D"]
    if len({*levels, widths[-1]}) == 1:
        also["attention_head_dim"] = widths[-1]
    return (_FIXED[name][0], also[name]) if name in also else (_FIXED[name][0],)


def _model_config(fields: dict[str, Any]) -> ModelConfig:
    for name, kind in _LISTS.items():
        value = fields.get(name)
        if not isinstance(value, list) or not value or not all(isinstance(entry, kind) for entry in value):
            raise DataError(f"{UNET_FILE}: {name} is {value!r}, not a list of {kind.__name__}")
    for name, (_, absent) in _FIXED.items():
        value, accepted = fields.get(name, absent), _accepted(name, fields)
        if value not in accepted:
            raise DataError(f"{UNET_FILE}: {name} is {value!r}; this network implements {accepted[0]!r} only")
    for name in fields.keys() - _FIXED.keys() - _OPTIONAL.keys() - _LISTS.keys() - {"sample_size"}:
        if fields[name] and not name.startswith("_"):
            raise DataError(f"{UNET_FILE}: {name} ({fields[name]!r}) is a field this network does not support")
    down, up = fields["down_block_types"], fields["up_block_types"]
    if set(down) - {"DownBlock2D", "AttnDownBlock2D"} or len(down) != len(fields["block_out_channels"]):
        raise DataError(
            f"{UNET_FILE}: down_block_types is {down!r}; every level needs a DownBlock2D or AttnDownBlock2D"
        )
    if up != [kind.replace("Down", "Up") for kind in reversed(down)]:
        raise DataError(f"{UNET_FILE}: up_block_types is {up!r}; it must mirror down_block_types")
    values = {name: fields.get(name, _OPTIONAL[name]) for name in ("layers_per_block", "dropout")}
    values |= {name: fields.get(name, _OPTIONAL[name]) for name in ("norm_num_groups", "norm_eps")}
    values |= {
        "block_out_channels": fields["block_out_channels"],
        "attention_levels": [level for level, kind in enumerate(down) if kind == "AttnDownBlock2D"],
        "num_classes": None if fields.get("num_class_embeds") is None else _whole(fields, "num_class_embeds") - 1,
    }
    return validated(ModelConfig, values, UNET_FILE)


def _weights(files: Mapping[str, bytes], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    if WEIGHTS_FILE not in files:
        raise DataError(f"{WEIGHTS_FILE} is missing: pickled weights (.bin) are not read, convert them first")
    try:
        stored = load(files[WEIGHTS_FILE])
    except SafetensorError as error:
        raise DataError(f"{WEIGHTS_FILE} cannot be read: {error}") from error
    state = {_OLD_NAME.sub(lambda m: f"{m[1]}.{_NEW_NAME[m[2]]}.{m[3]}", name): value for name, value in stored.items()}
    for name in sorted(expected.keys() | state.keys()):
        if name not in state or name not in expected:
            raise DataError(f"{WEIGHTS_FILE}: tensor '{name}' is {'missing' if name in expected else 'not expected'}")
        # Some files of 2022 store an attention projection as a 1x1 convolution.
        shape, value = expected[name].shape, state[name]
        if value.shape[: len(shape)] != shape or value.numel() != expected[name].numel():
            raise DataError(f"{WEIGHTS_FILE}: tensor '{name}' is {list(value.shape)}, not {list(shape)}")
        if not value.is_floating_point():
            raise DataError(f"{WEIGHTS_FILE}: tensor '{name}' is {value.dtype}, not floating point")
        state[name] = value.reshape(shape).float()
    return state
