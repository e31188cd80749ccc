"""Converts the settings of a U-Net to and from the constructor fields of diffusers' UNet2DModel.

A field that this U-Net cannot vary must hold the one value that the U-Net implements, else the folder is refused.
"""

from collections.abc import Mapping
from typing import Any

from pipeline.config.model import ModelConfig
from pipeline.errors import ConfigError, DataError
from pipeline.models.diffusers_scheduler import DIFFUSERS_VERSION, validated
from pipeline.models.unet import UNet

# Field: (the only value that this U-Net implements, UNet2DModel's default for an absent field).
_FIXED: dict[str, tuple[Any, Any]] = {
    "center_input_sample": (False, False),
    "time_embedding_type": ("positional", "positional"),
    "time_embedding_dim": (None, None),
    "mid_block_type": ("UNetMidBlock2D", "UNetMidBlock2D"),
    "mid_block_scale_factor": (1, 1),
    "act_fn": ("silu", "silu"),
    "class_embed_type": (None, None),
}
_LISTS: dict[str, type] = {"block_out_channels": int, "down_block_types": str, "up_block_types": str}
_SAME: dict[str, Any] = {
    "layers_per_block": 2,
    "dropout": 0.0,
    "norm_num_groups": 32,
    "norm_eps": 1e-5,
    "freq_shift": 0,
    "flip_sin_to_cos": True,
    "downsample_padding": 1,
    "resnet_time_scale_shift": "default",
    "add_attention": True,
}
"""Fields with the name and the meaning of ModelConfig's, and UNet2DModel's default for an absent one."""
_OPTIONAL: dict[str, Any] = {
    **_SAME,
    "in_channels": 3,
    "out_channels": 3,
    "attention_head_dim": 8,
    "attn_norm_num_groups": None,
    "downsample_type": "conv",
    "upsample_type": "conv",
    "num_class_embeds": None,
    "num_train_timesteps": None,
}
_DOWN = {"DownBlock2D": (False, False), "AttnDownBlock2D": (True, False), "ResnetDownsampleBlock2D": (False, True)}
"""Block type: (has attention, resamples by a residual block). For the second type, `downsample_type` decides that."""
_UP = {"UpBlock2D": (False, False), "AttnUpBlock2D": (True, False), "ResnetUpsampleBlock2D": (False, True)}


def unet_fields(unet: UNet) -> dict[str, Any]:
    """UNet2DModel's constructor fields. Raises ConfigError for a network that UNet2DModel cannot build."""
    config = unet.config
    last = len(config.block_out_channels) - 1
    down, downsample_type = _block_types(config, config.resnet_downsample_levels, {last}, _DOWN)
    up, upsample_type = _block_types(config, config.resnet_upsample_levels, {0}, _UP)
    rows = None if config.num_classes is None else config.num_classes + config.null_class
    return {
        "_class_name": "UNet2DModel",
        "_diffusers_version": DIFFUSERS_VERSION,
        **{name: value for name, (value, _) in _FIXED.items()},
        **{name: getattr(config, name) for name in _SAME},
        "sample_size": unet.sample_size,
        "in_channels": unet.in_channels,
        "out_channels": unet.out_channels,
        "block_out_channels": list(config.block_out_channels),
        "down_block_types": down,
        "up_block_types": up[::-1],
        "downsample_type": downsample_type,
        "upsample_type": upsample_type,
        "attention_head_dim": config.attention_head_dim,
        "attn_norm_num_groups": _norm_groups(config),
        "num_class_embeds": rows,
    }


def _block_types(
    config: ModelConfig, resnet_levels: tuple[int, ...], whole: set[int], types: Mapping[str, tuple[bool, bool]]
) -> tuple[list[str], str]:
    """Block type of each level, and the resampling of the levels with attention. whole: levels without resampling."""
    plain, attention, resnet = types
    levels = range(len(config.block_out_channels))
    kinds = [attention if i in config.attention_levels else resnet if i in resnet_levels else plain for i in levels]
    by_resnet = {level in resnet_levels for level in {*config.attention_levels} - whole}
    if len(by_resnet) > 1:
        raise ConfigError(
            f"model.attention_levels {config.attention_levels}: diffusers resamples all levels with attention in one "
            f"way, and only some of them are in {resnet_levels}"
        )
    return kinds, "resnet" if True in by_resnet else "conv"


def _norm_groups(config: ModelConfig) -> int | None:
    """`attn_norm_num_groups`: an unset one means norm_num_groups, but no norm with "scale_shift"."""
    groups = config.attn_norm_num_groups
    if config.resnet_time_scale_shift == "default":
        if groups == 0:
            raise ConfigError("model.attn_norm_num_groups 0: diffusers needs resnet_time_scale_shift 'scale_shift'")
        return groups
    if groups is None and config.add_attention:
        return config.norm_num_groups
    return groups or None


def whole_number(fields: Mapping[str, Any], name: str, file: str) -> int:
    """A field that is one positive whole number, or a list of two equal ones. Raises DataError."""
    value = fields.get(name, _OPTIONAL.get(name))
    if isinstance(value, list) and len(value) == 2 and value[0] == value[1]:
        value = value[0]
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise DataError(f"{file}: {name} is {value!r}, not one positive whole number")
    return value


def model_config(fields: dict[str, Any], null_class: bool, file: str) -> ModelConfig:
    """The settings of a UNet2DModel. Raises DataError naming `file` and the field that this network does not support.

    null_class: one row of the class embedding means "no label".
    """
    _check_fields(fields, file)
    down, up = fields["down_block_types"], fields["up_block_types"][::-1]
    attention = [level for level, kind in enumerate(down) if _DOWN[kind][0]]
    if attention != [level for level, kind in enumerate(up) if _UP[kind][0]]:
        raise DataError(f"{file}: up_block_types is {up[::-1]!r}; its attention must mirror down_block_types")
    halved = _by_resnet([_DOWN[kind] for kind in down], fields.get("downsample_type"))
    doubled = _by_resnet([_UP[kind] for kind in up], fields.get("upsample_type"))
    values = {name: fields.get(name, absent) for name, absent in _SAME.items()}
    values |= {
        "block_out_channels": fields["block_out_channels"],
        "attention_levels": attention,
        "resnet_downsample_levels": [level for level in halved if level < len(down) - 1],
        "resnet_upsample_levels": [level for level in doubled if level > 0],
    }
    if fields.get("num_class_embeds") is not None:
        values["num_classes"] = whole_number(fields, "num_class_embeds", file) - null_class
        values["null_class"] = null_class
    return validated(ModelConfig, values | _attention(fields, values), file)


def _check_fields(fields: dict[str, Any], file: str) -> None:
    for name, kind in _LISTS.items():
        value = fields.get(name)
        if not isinstance(value, list) or not value or not all(isinstance(entry, kind) for entry in value):
            raise DataError(f"{file}: {name} is {value!r}, not a list of {kind.__name__}")
    also = {"act_fn": "swish", "time_embedding_dim": 4 * fields["block_out_channels"][0]}
    for name, (wanted, absent) in _FIXED.items():
        if (value := fields.get(name, absent)) not in (wanted, also.get(name, wanted)):
            raise DataError(f"{file}: {name} is {value!r}; this network implements {wanted!r} only")
    for name in fields.keys() - _FIXED.keys() - _OPTIONAL.keys() - _LISTS.keys() - {"sample_size"}:
        if fields[name] and not name.startswith("_"):
            raise DataError(f"{file}: {name} ({fields[name]!r}) is a field this network does not support")
    for name, types in (("down_block_types", _DOWN), ("up_block_types", _UP)):
        value = fields[name]
        if set(value) - types.keys() or len(value) != len(fields["block_out_channels"]):
            raise DataError(f"{file}: {name} is {value!r}; every level needs one of {', '.join(types)}")
    for name in ("downsample_type", "upsample_type"):
        if (value := fields.get(name)) not in (None, "conv", "resnet"):
            raise DataError(f"{file}: {name} is {value!r}; this network implements 'conv' and 'resnet'")


def _by_resnet(kinds: list[tuple[bool, bool]], resampling: str | None) -> list[int]:
    """Levels that a residual block resamples. resampling: of the levels with attention."""
    return [i for i, (attends, resnet) in enumerate(kinds) if resnet or (attends and resampling == "resnet")]


def _attention(fields: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """ModelConfig's attention fields. A value that means the same as an unset one is left out, so digests agree."""
    widths, middle = fields["block_out_channels"], fields.get("add_attention", True)
    found: dict[str, Any] = {}
    head_dim = fields.get("attention_head_dim", _OPTIONAL["attention_head_dim"])
    if {widths[level] for level in values["attention_levels"]} | ({widths[-1]} if middle else set()) != {head_dim}:
        found["attention_head_dim"] = head_dim
    groups = fields.get("attn_norm_num_groups")
    if middle and groups is None and values["resnet_time_scale_shift"] != "default":
        found["attn_norm_num_groups"] = 0  # UNetMidBlock2D has no norm then
    elif middle and groups is not None and groups != values["norm_num_groups"]:
        found["attn_norm_num_groups"] = groups
    return found
