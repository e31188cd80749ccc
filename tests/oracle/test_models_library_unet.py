"""Other networks of diffusers' UNet2DModel: same outputs and gradients for every option, and folders both ways."""

import json

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

from pipeline.config.base import ALL_FIELDS
from pipeline.config.model import DiffusionConfig, ModelConfig
from pipeline.errors import ConfigError, DataError
from pipeline.models.diffusers_format import UNET_FILE, from_files, model_files
from pipeline.models.dropout import DropoutKey
from pipeline.models.unet import UNet

pytestmark = pytest.mark.oracle

SIZE, CHANNELS = 8, 3
BASE = {
    "sample_size": SIZE,
    "block_out_channels": (16, 32),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "norm_num_groups": 8,
}
THREE = {
    "block_out_channels": (16, 16, 32),
    "down_block_types": ("AttnDownBlock2D", "ResnetDownsampleBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "ResnetUpsampleBlock2D", "AttnUpBlock2D"),
}
SHIFT = {"resnet_time_scale_shift": "scale_shift"}
CASES = {
    "library defaults": ({}, {"attention_head_dim": 8, "downsample_padding": 1, "flip_sin_to_cos": True}),
    "cosines first": ({"flip_sin_to_cos": True}, {"flip_sin_to_cos": True}),
    "sines first, shift 1": ({"flip_sin_to_cos": False, "freq_shift": 1}, {"freq_shift": 1, "flip_sin_to_cos": False}),
    "padding right and bottom": ({"downsample_padding": 0}, {"downsample_padding": 0}),
    "another eps": ({"norm_eps": 1e-3}, {"norm_eps": 1e-3}),
    "four heads": ({"attention_head_dim": 8}, {"attention_head_dim": 8}),
    "one head, by width": ({"attention_head_dim": 32}, {"attention_head_dim": None}),
    "one head": ({"attention_head_dim": None}, {"attention_head_dim": None}),
    "head of one channel": ({"attention_head_dim": 1}, {"attention_head_dim": 1}),
    "no attention in the middle": ({"add_attention": False}, {"add_attention": False}),
    "groups of the middle's norm": ({"attn_norm_num_groups": 4}, {"attn_norm_num_groups": 4}),
    "scale and shift, no norm in the middle": (SHIFT, {**SHIFT, "attn_norm_num_groups": 0}),
    "scale and shift": ({**SHIFT, "attn_norm_num_groups": 8}, {**SHIFT, "attn_norm_num_groups": None}),
    "scale and shift, other groups": ({**SHIFT, "attn_norm_num_groups": 4}, {**SHIFT, "attn_norm_num_groups": 4}),
    "scale and shift without attention": (
        {**SHIFT, "add_attention": False},
        {**SHIFT, "add_attention": False, "attn_norm_num_groups": None},
    ),
    "resampling by residual blocks": (THREE, {"resnet_downsample_levels": (1,), "resnet_upsample_levels": (1,)}),
    "downsample type of levels with attention": (
        {**THREE, "downsample_type": "resnet"},
        {"resnet_downsample_levels": (0, 1), "resnet_upsample_levels": (1,)},
    ),
    "upsample type of levels with attention": (
        {"upsample_type": "resnet", "downsample_type": "resnet"},
        {"resnet_downsample_levels": (), "resnet_upsample_levels": (1,)},
    ),
    "all of it": (
        {**THREE, **SHIFT, "downsample_type": "resnet", "attention_head_dim": 4, "num_class_embeds": 3},
        {"attention_head_dim": 4, "num_classes": 3, "null_class": False, "resnet_downsample_levels": (0, 1)},
    ),
}


def library(**fields):
    """diffusers' network without zero weights, and a folder of it as `save_pretrained` writes it."""
    unet = UNet2DModel(**(BASE | fields))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in unet.parameters():
            weight.uniform_(-1.7, 1.7, generator=generator).mul_(1 / max(weight[0].numel(), 4) ** 0.5)
    return unet.train()


def saved(unet, folder):
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(folder)
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def inputs(rows):
    generator = torch.Generator().manual_seed(1)
    x, dy = torch.randn(2, 4, CHANNELS, SIZE, SIZE, generator=generator)
    labels = None if rows is None else torch.arange(4) % rows
    return x, torch.tensor([0, 7, 500, 999]), labels, dy


def gradients(unet, x, t, labels, dy):
    unet.zero_grad()
    x = x.clone().requires_grad_()
    out = unet(x, t, labels)
    out = out if isinstance(out, torch.Tensor) else out.sample
    (out * dy).sum().backward()
    return out.detach(), {"x": x.grad} | {name: p.grad for name, p in unet.named_parameters()}


@pytest.mark.parametrize("name", CASES)
def test_outputs_gradients_and_folders_are_those_of_diffusers(tmp_path, name):
    fields, expected = CASES[name]
    theirs = library(**fields)
    found = from_files(saved(theirs, tmp_path / "theirs"))
    settings = found.model.model_dump()
    assert {key: settings[key] for key in expected} == expected
    ours = found.unet()
    batch = inputs(fields.get("num_class_embeds"))
    wanted, wanted_grads = gradients(theirs, *batch)
    got, grads = gradients(ours, *batch)
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-5 * max(1.0, float(wanted.abs().max())))
    assert grads.keys() == wanted_grads.keys()
    largest = max(float(grad.abs().max()) for grad in wanted_grads.values())
    for key, grad in wanted_grads.items():
        atol = 1e-5 * max(float(grad.abs().max()), 0.1 * largest)
        torch.testing.assert_close(grads[key], grad, rtol=0, atol=atol, msg=lambda text, key=key: f"{key}: {text}")

    files = model_files(ours, found.diffusion)
    for path, content in files.items():
        (tmp_path / "ours" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "ours" / path).write_bytes(content)
    exported = DDPMPipeline.from_pretrained(tmp_path / "ours").unet
    with torch.no_grad():
        assert torch.equal(exported(*batch[:3]).sample, theirs.eval()(*batch[:3]).sample)
    again = from_files(files)
    assert again.model == found.model
    assert again.state.keys() == found.state.keys()
    assert all(torch.equal(again.state[key], value) for key, value in found.state.items())


def test_an_absent_field_has_the_librarys_default(tmp_path):
    files = saved(library(), tmp_path)
    fields = json.loads(files[UNET_FILE])
    short = {name: fields[name] for name in BASE}
    assert fields.keys() > short.keys()
    assert from_files(files | {UNET_FILE: json.dumps(short).encode()}).model == from_files(files).model


def test_heads_and_modulation_keep_gradient_checkpointing_and_dropout():
    config = ModelConfig(
        block_out_channels=(16, 32),
        norm_num_groups=8,
        dropout=0.3,
        attention_head_dim=8,
        resnet_time_scale_shift="scale_shift",
        resnet_downsample_levels=(0,),
        resnet_upsample_levels=(1,),
    )
    plain = UNet(config, CHANNELS, CHANNELS, SIZE).train()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in plain.parameters():
            weight.uniform_(-0.3, 0.3, generator=generator)
    less_memory = UNet(config.model_copy(update={"gradient_checkpointing": True}), CHANNELS, CHANNELS, SIZE).train()
    less_memory.load_state_dict(plain.state_dict())
    x, t, _, dy = inputs(None)
    key = DropoutKey(torch.arange(4), (1, 2), 3)
    found = []
    for unet in (plain, less_memory):
        out = unet(x, t, dropout=key)
        (out * dy).sum().backward()
        found.append([out.detach(), *(p.grad for p in unet.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert not torch.equal(found[0][0], plain.eval()(x, t))
    # The two resampling blocks have dropout masks of their own.
    assert plain.num_layers == 2 * 2 + 2 + 2 * 3 + 2


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"time_embedding_type": "fourier"}, "time_embedding_type is 'fourier'"),
        ({"center_input_sample": True}, "center_input_sample is True"),
        ({"mid_block_scale_factor": 2}, "mid_block_scale_factor is 2"),
        ({"act_fn": "mish"}, "act_fn is 'mish'"),
        ({"time_embedding_dim": 32}, "time_embedding_dim is 32"),
        ({"class_embed_type": "timestep"}, "class_embed_type is 'timestep'"),
        ({"mid_block_type": None}, "mid_block_type is None"),
        ({"resnet_time_scale_shift": "spatial"}, "resnet_time_scale_shift"),
        ({"downsample_type": "fir"}, "downsample_type is 'fir'"),
        ({"attention_head_dim": 5}, "attention_head_dim 5"),
        ({"downsample_padding": 2}, "downsample_padding"),
        ({"up_block_types": ["UpBlock2D", "UpBlock2D"]}, "up_block_types"),
        ({"down_block_types": ["SkipDownBlock2D", "AttnDownBlock2D"]}, "down_block_types"),
        ({"num_class_embeds": 0}, "num_class_embeds is 0"),
    ],
)
def test_a_network_that_is_not_supported_is_refused_by_field(tmp_path, fields, message):
    files = saved(library(), tmp_path)
    with pytest.raises(DataError, match=message):
        from_files(files | {UNET_FILE: json.dumps(json.loads(files[UNET_FILE]) | fields).encode()})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"attn_norm_num_groups": 0}, "attn_norm_num_groups 0"),
        ({"attention_levels": (0, 1), "resnet_downsample_levels": (0,)}, None),
        (
            {"block_out_channels": (8, 8, 8), "attention_levels": (0, 1), "resnet_downsample_levels": (0,)},
            "attention_levels",
        ),
    ],
)
def test_a_network_that_diffusers_cannot_build_is_not_exported(settings, message):
    config = ModelConfig(**({"block_out_channels": (8, 16), "norm_num_groups": 4} | settings))
    unet = UNet(config, CHANNELS, CHANNELS, SIZE)
    if message is None:
        assert from_files(model_files(unet, DiffusionConfig())).model == config
        return
    with pytest.raises(ConfigError, match=message):
        model_files(unet, DiffusionConfig())


CONDITIONAL = {"num_class_embeds": 5}


def test_no_row_of_another_programs_classes_is_taken_for_no_label(tmp_path):
    found = from_files(saved(library(**CONDITIONAL), tmp_path))
    assert (found.model.num_classes, found.model.null_class, found.null_row) == (5, False, None)
    assert found.unet().null_label is None


@pytest.mark.parametrize("row", [0, 2, 4])
def test_the_reader_names_the_row_for_no_label(tmp_path, row):
    theirs = library(**CONDITIONAL).eval()
    found = from_files(saved(theirs, tmp_path), null_label=row)
    assert (found.model.num_classes, found.model.null_class, found.null_row) == (4, True, row)
    unet, (x, t, _, _) = found.unet(), inputs(None)
    rows = [r for r in range(5) if r != row] + [row]  # the classes in order, then "no label"
    assert unet.null_label == 4
    for label, stored in enumerate(rows):
        with torch.no_grad():
            got, wanted = unet(x, t, torch.tensor([label])), theirs(x, t, torch.full((4,), stored)).sample
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-5)


def test_a_folder_names_its_row_and_the_reader_may_not_contradict(tmp_path):
    files = saved(library(**CONDITIONAL), tmp_path)
    fields = json.loads(files[UNET_FILE])
    stated = files | {UNET_FILE: json.dumps(fields | {"_null_label": 1}).encode()}
    assert from_files(stated).null_row == 1
    assert from_files(stated, null_label=1).model.num_classes == 4
    for given, row, message in (
        (stated, 2, "it is row 1"),
        (files, 5, r"rows 0\.\.4"),
        (files | {UNET_FILE: json.dumps(fields | {"_null_label": None}).encode()}, 4, "there is none"),
        (saved(library(), tmp_path / "plain"), 0, "no classes"),
    ):
        with pytest.raises(ConfigError, match=message):
            from_files(given, null_label=row)
    for wrong in (5, -1, True, "4"):
        with pytest.raises(DataError, match="_null_label"):
            from_files(files | {UNET_FILE: json.dumps(fields | {"_null_label": wrong}).encode()})


def test_a_folder_of_this_program_keeps_its_row():
    config = ModelConfig(block_out_channels=(8,), norm_num_groups=4, attention_levels=(), num_classes=3)
    files = model_files(UNet(config, CHANNELS, CHANNELS, SIZE), DiffusionConfig())
    assert "_null_label" not in json.loads(files[UNET_FILE])
    found = from_files(files)
    assert (found.model, found.null_row) == (config, None)


def test_settings_at_their_default_leave_documents_as_they_were():
    earlier = {
        "block_out_channels": [128, 256, 256, 256],
        "layers_per_block": 2,
        "attention_levels": [1],
        "norm_num_groups": 32,
        "norm_eps": 1e-6,
        "dropout": 0.0,
        "num_classes": None,
        "gradient_checkpointing": False,
    }
    assert ModelConfig().model_dump(mode="json") == earlier
    assert ModelConfig.model_validate(earlier) == ModelConfig()
    every = ModelConfig().model_dump(mode="json", context=ALL_FIELDS)
    assert every.keys() == ModelConfig.model_fields.keys()
    changed = ModelConfig(attention_head_dim=64, freq_shift=0)
    assert changed.model_dump(mode="json") == earlier | {"attention_head_dim": 64, "freq_shift": 0}
