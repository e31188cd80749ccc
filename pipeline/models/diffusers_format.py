"""Converts a U-Net and its diffusion settings to the four files of a diffusers DDPMPipeline folder, and back; no I/O.

    model_index.json                              class names
    unet/config.json                              constructor fields of UNet2DModel
    unet/diffusion_pytorch_model.safetensors      weights; both programs use the same names
    scheduler/scheduler_config.json               constructor fields of DDPMScheduler

diffusers loads these folders, and `from_files` reads folders of diffusers, with the attention names of 2022 too, and in
the other layouts of pipeline.models.diffusers_layout.

Keys with an underscore are ours; diffusers ignores and keeps them. `_label_dropout` is the share of images that trained
the row "no label" of the class embedding. `_null_label` is this row, null for none. Without the key it is the last row
in a folder of this program (with `_label_dropout`, or `_diffusion` in the scheduler), and no row in other folders.
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
from pipeline.models.diffusers_layout import EXPORTED, INDEX_FILE, ModelFiles, shard_names
from pipeline.models.diffusers_scheduler import DIFFUSERS_VERSION, SCHEDULER_FILE, diffusion_config, scheduler_fields
from pipeline.models.diffusers_unet import model_config, unet_fields, whole_number
from pipeline.models.unet import UNet

UNET_FILE, WEIGHTS_FILE = EXPORTED.unet, EXPORTED.weights

_INDEX = {
    "_class_name": "DDPMPipeline",
    "unet": ["diffusers", "UNet2DModel"],
    "scheduler": ["diffusers", "DDPMScheduler"],
}
_DROPOUT = "_label_dropout"
_NULL = "_null_label"
_EMBEDDING = "class_embedding.weight"
_OLD_NAME = re.compile(r"(attentions\.\d+)\.(query|key|value|proj_attn)\.(weight|bias)$")
_NEW_NAME = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


class DiffusersModel(NamedTuple):
    """Contents of a folder. `state` is float32 and fits UNet(model, in_channels, out_channels, sample_size).

    null_row: the row of the folder's class embedding that `_null_label` or the reader named as "no label". In `state`
    this row is the last one.
    """

    model: ModelConfig
    in_channels: int
    sample_size: int
    diffusion: DiffusionConfig
    state: dict[str, Tensor]
    label_dropout: float = 0.0
    null_row: int | None = None

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
    images without label. Raises ConfigError for settings that diffusers cannot express.
    """
    ours: dict[str, Any] = {_DROPOUT: label_dropout} if label_dropout else {}
    if not unet.config.null_class:
        ours[_NULL] = None
    weights = {name: value.detach().cpu().contiguous() for name, value in unet.state_dict().items()}
    return {
        INDEX_FILE: _json({**_INDEX, "_diffusers_version": DIFFUSERS_VERSION}),
        UNET_FILE: _json({**unet_fields(unet), **ours}),
        WEIGHTS_FILE: save(weights, metadata={"format": "pt"}),
        SCHEDULER_FILE: _json(scheduler_fields(diffusion, betas)),
    }


def from_files(
    files: Mapping[str, bytes], names: ModelFiles = EXPORTED, null_label: int | None = None
) -> DiffusersModel:
    """Read the files of a model; INDEX_FILE may be missing unless `names` is EXPORTED.

    null_label: the row of the class embedding that means "no label", for a folder that does not name one. Raises
    DataError naming the file and the field or tensor that does not fit, ConfigError for an impossible `null_label`.
    """
    fields = _object(files, names.unet)
    _check_classes(files, fields, names)
    scheduler = _object(files, names.scheduler)
    null_row = _null_row(fields, "_diffusion" in scheduler, null_label, names.unet)
    model = model_config(fields, null_row is not None, names.unet)
    diffusion = diffusion_config(scheduler, names.scheduler)
    in_channels, out_channels = (whole_number(fields, name, names.unet) for name in ("in_channels", "out_channels"))
    times = 2 if diffusion.variance in ("learned_range", "learned") else 1
    if out_channels != times * in_channels:
        raise DataError(
            f"{names.unet}: out_channels is {out_channels}; {in_channels} in_channels and variance_type "
            f"'{diffusion.variance}' need {times * in_channels}"
        )
    sample_size = whole_number(fields, "sample_size", names.unet)
    try:
        with torch.device("meta"):
            expected = UNet(model, in_channels, out_channels, sample_size).state_dict()
    except ConfigError as error:
        raise DataError(f"{names.unet}: {error}") from error
    dropout = fields.get(_DROPOUT, 0.0)
    if not isinstance(dropout, int | float) or not 0 <= dropout < 1:
        raise DataError(f"{names.unet}: {_DROPOUT} is {dropout!r}, not a share in 0..1")
    state = _weights(files, names, expected)
    if null_row is not None:
        rows = state[_EMBEDDING]
        state[_EMBEDDING] = torch.cat([rows[:null_row], rows[null_row + 1 :], rows[null_row : null_row + 1]])
    named = null_row if null_label is not None or _NULL in fields else None
    return DiffusersModel(model, in_channels, sample_size, diffusion, state, float(dropout), named)


def _check_classes(files: Mapping[str, bytes], fields: Mapping[str, Any], names: ModelFiles) -> None:
    """Raises DataError when a class is not one that this program implements."""
    if names != EXPORTED and INDEX_FILE not in files:
        if fields.get("_class_name") != "UNet2DModel":
            raise DataError(f"{names.unet}: _class_name is {fields.get('_class_name')!r}, not 'UNet2DModel'")
        return
    index = _object(files, INDEX_FILE)
    for field, wanted in (("unet", {"UNet2DModel"}), ("scheduler", {"DDPMScheduler", "DDIMScheduler"})):
        entry = index.get(field)
        if not isinstance(entry, list) or entry[-1:] == [] or str(entry[-1]) not in wanted:
            raise DataError(f"{INDEX_FILE}: {field} is {entry!r}, not one of {sorted(wanted)}")


def _null_row(fields: Mapping[str, Any], ours: bool, asked: int | None, file: str) -> int | None:
    """The row of the class embedding that means "no label". ours: this program wrote the scheduler."""
    if fields.get("num_class_embeds") is None:
        if asked is not None:
            raise ConfigError(f"generate.null_label {asked}: the model has no classes")
        return None
    rows = whole_number(fields, "num_class_embeds", file)
    if asked is not None and asked >= rows:
        raise ConfigError(f"generate.null_label {asked}: the class embedding has rows 0..{rows - 1}")
    if _NULL not in fields and _DROPOUT not in fields and not ours:
        return asked
    row = fields.get(_NULL, rows - 1)
    if row is not None and (isinstance(row, bool) or not isinstance(row, int) or not 0 <= row < rows):
        raise DataError(f"{file}: {_NULL} is {row!r}, not a row of the class embedding, 0..{rows - 1}")
    if asked not in (None, row):
        known = "there is none" if row is None else f"it is row {row}"
        raise ConfigError(f"generate.null_label {asked}: the model names its row for 'no label': {known}")
    return row


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


def _weights(files: Mapping[str, bytes], names: ModelFiles, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    stored = _stored(files, names)
    state = {_OLD_NAME.sub(lambda m: f"{m[1]}.{_NEW_NAME[m[2]]}.{m[3]}", name): value for name, value in stored.items()}
    for name in sorted(expected.keys() | state.keys()):
        if name not in state or name not in expected:
            raise DataError(f"{names.weights}: tensor '{name}' is {'missing' if name in expected else 'not expected'}")
        # Some files of 2022 store an attention projection as a 1x1 convolution.
        shape, value = expected[name].shape, state[name]
        if value.shape[: len(shape)] != shape or value.numel() != expected[name].numel():
            raise DataError(f"{names.weights}: tensor '{name}' is {list(value.shape)}, not {list(shape)}")
        if not value.is_floating_point():
            raise DataError(f"{names.weights}: tensor '{name}' is {value.dtype}, not floating point")
        state[name] = value.reshape(shape).float()
    return state


def _stored(files: Mapping[str, bytes], names: ModelFiles) -> dict[str, Tensor]:
    """Every tensor of the weights file, or of all its shards."""
    if names.weights not in files:
        raise DataError(f"{names.weights} is missing")
    stored: dict[str, Tensor] = {}
    for name in shard_names(files[names.weights], names.weights) if names.sharded else [names.weights]:
        if name not in files:
            raise DataError(f"{name} is missing, a shard that {names.weights} names")
        try:
            stored |= load(files[name])
        except SafetensorError as error:
            raise DataError(f"{name} cannot be read: {error}") from error
    return stored
