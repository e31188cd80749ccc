"""Folders move both ways between this pipeline and diffusers, weights bit for bit, and misfits are named."""

import json
import warnings

import pytest
import torch
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel
from diffusers.utils import logging
from safetensors.torch import load, save

from pipeline.config.model import DiffusionConfig, ModelConfig
from pipeline.diffusion.schedule import make_schedule
from pipeline.errors import ConfigError, DataError
from pipeline.models import diffusers_format as fmt
from pipeline.models.diffusers_format import from_files, model_files
from pipeline.models.unet import UNet

pytestmark = pytest.mark.oracle

SMALL = ModelConfig(block_out_channels=(8, 16), norm_num_groups=4, attention_levels=(0, 1))


def random_unet(config=SMALL, times=1):
    unet = UNet(config, 3, 3 * times, 8)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in unet.parameters():
            p.uniform_(-0.3, 0.3, generator=generator)
    return unet.eval()


def write(folder, files):
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def read(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_same_state(a, b):
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def forwards(ours, other, labels=None):
    generator = torch.Generator().manual_seed(1)
    x, t = torch.randn(3, 3, 8, 8, generator=generator), torch.tensor([0, 10, 999])
    with torch.no_grad():
        return ours(x, t, labels), other(x, t, labels).sample


@pytest.fixture
def quiet_diffusers(caplog):
    """diffusers complains by its logger; a folder of ours must give it no reason to."""
    logging.enable_propagation()
    yield
    logging.disable_propagation()
    said = [record.getMessage() for record in caplog.get_records("call")]
    assert not [message for message in said if "config attributes" in message]


@pytest.mark.parametrize(
    ("config", "diffusion", "times"),
    [
        (SMALL, DiffusionConfig(), 1),
        (SMALL.model_copy(update={"num_classes": 4, "dropout": 0.1}), DiffusionConfig(prediction="v"), 1),
        (SMALL, DiffusionConfig(schedule="cosine", variance="learned_range", objective="hybrid"), 2),
    ],
    ids=["plain", "conditional, v", "learned range"],
)
def test_diffusers_loads_our_folder_and_writes_it_back(tmp_path, quiet_diffusers, config, diffusion, times):
    ours = random_unet(config, times)
    dropout = 0.1 if config.num_classes else 0.0
    files = model_files(ours, diffusion, label_dropout=dropout)
    assert from_files(files).label_dropout == dropout
    assert set(files) == {fmt.INDEX_FILE, fmt.UNET_FILE, fmt.WEIGHTS_FILE, fmt.SCHEDULER_FILE}
    assert files == model_files(ours, diffusion, label_dropout=dropout)
    write(tmp_path / "ours", files)
    pipeline = DDPMPipeline.from_pretrained(tmp_path / "ours")
    assert_same_state(pipeline.unet.state_dict(), ours.state_dict())
    labels = torch.tensor([0, 4, 1]) if config.num_classes else None
    got, expected = forwards(ours, pipeline.unet, labels)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)

    pipeline.save_pretrained(tmp_path / "theirs")
    back = from_files(read(tmp_path / "theirs"))
    assert back.model == config
    assert (back.in_channels, back.out_channels, back.sample_size) == (3, 3 * times, 8)
    assert back.diffusion == diffusion
    assert_same_state(back.state, ours.state_dict())
    assert torch.equal(forwards(back.unet(), pipeline.unet, labels)[0], got)


@pytest.mark.parametrize("scheduler", [DDPMScheduler, DDIMScheduler])
def test_we_load_a_folder_diffusers_made(tmp_path, scheduler):
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=16,
        in_channels=1,
        out_channels=1,
        block_out_channels=(16, 8),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=8,
        norm_num_groups=8,
        flip_sin_to_cos=False,
        freq_shift=1,
        downsample_padding=0,
    )
    DDPMPipeline(
        unet, scheduler(num_train_timesteps=50, beta_schedule="scaled_linear", prediction_type="sample")
    ).save_pretrained(tmp_path)
    found = from_files(read(tmp_path))
    assert found.model == ModelConfig(
        block_out_channels=(16, 8), layers_per_block=1, attention_levels=(1,), norm_num_groups=8, norm_eps=1e-5
    )
    assert found.diffusion == DiffusionConfig(
        num_timesteps=50, schedule="quadratic", prediction="x_0", variance="fixed_small"
    )
    assert_same_state(found.state, unet.state_dict())
    x, t = torch.randn(2, 1, 16, 16), torch.tensor([3, 49])
    with torch.no_grad():
        torch.testing.assert_close(found.unet()(x, t), unet.eval()(x, t).sample, rtol=0, atol=1e-5)


@pytest.mark.parametrize("schedule", ["linear", "quadratic", "cosine", "sigmoid"])
@pytest.mark.parametrize("zero_snr", [False, True])
def test_the_scheduler_means_the_same_process(schedule, zero_snr):
    diffusion = DiffusionConfig(
        num_timesteps=100, schedule=schedule, beta_end=0.1, zero_terminal_snr=zero_snr, prediction="v", min_snr_gamma=5
    )
    tables = make_schedule(diffusion)
    files = model_files(random_unet(), diffusion, tables.betas.tolist())
    with warnings.catch_warnings(action="error"):
        scheduler = DDPMScheduler.from_config(json.loads(files[fmt.SCHEDULER_FILE]))
    torch.testing.assert_close(scheduler.alphas_cumprod.double(), tables.alpha_bars, rtol=2e-5, atol=1e-6)
    assert scheduler.config.prediction_type == "v_prediction"
    assert scheduler.config.variance_type == "fixed_large"
    assert from_files(files).diffusion == diffusion


@pytest.mark.parametrize("conv_shaped", [False, True])
def test_attention_names_and_shapes_of_2022(conv_shaped):
    unet = random_unet()
    files = model_files(unet, DiffusionConfig())
    old = {}
    for name, value in load(files[fmt.WEIGHTS_FILE]).items():
        for new_part, old_part in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
            if f".{new_part}." in name:
                name = name.replace(new_part, old_part)
                value = value[..., None, None] if conv_shaped and value.dim() == 2 else value
        old[name] = value.contiguous()
    assert sum("proj_attn" in name for name in old) == 2 * (2 * 2 + 1 + 2 * 3)
    assert_same_state(from_files(files | {fmt.WEIGHTS_FILE: save(old)}).state, unet.state_dict())


def edited(files, name, **changes):
    fields = json.loads(files[name])
    for field, value in changes.items():
        if value is None:
            fields.pop(field)
        else:
            fields[field] = value
    return files | {name: json.dumps(fields).encode()}


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("INDEX_FILE", {"unet": ["diffusers", "UNet2DConditionModel"]}, "unet is"),
        ("INDEX_FILE", {"scheduler": None}, "scheduler is None"),
        ("UNET_FILE", {"act_fn": "gelu"}, "act_fn"),
        ("UNET_FILE", {"attention_head_dim": 3}, "attention_head_dim 3 must divide"),
        ("UNET_FILE", {"downsample_padding": 2}, "downsample_padding"),
        ("UNET_FILE", {"resnet_time_scale_shift": "spatial"}, "resnet_time_scale_shift"),
        ("UNET_FILE", {"resnet_time_scale_shift": "scale_shift"}, r"time_emb_proj.bias' is \[8\], not \[16\]"),
        ("UNET_FILE", {"brand_new": 1}, r"brand_new \(1\)"),
        ("UNET_FILE", {"up_block_types": ["UpBlock2D", "AttnUpBlock2D"]}, "mirror down_block_types"),
        ("UNET_FILE", {"down_block_types": ["SkipDownBlock2D", "DownBlock2D"]}, "down_block_types"),
        ("UNET_FILE", {"block_out_channels": "no"}, "block_out_channels is 'no'"),
        ("UNET_FILE", {"block_out_channels": [8, 32]}, r"tensor 'down_blocks\.1.* is \[16"),
        ("UNET_FILE", {"norm_num_groups": 3}, "norm_num_groups"),
        ("UNET_FILE", {"layers_per_block": 1}, r"tensor 'down_blocks\.0\.attentions\.1\.\S+' is not expected"),
        ("UNET_FILE", {"num_class_embeds": 5}, r"tensor 'class_embedding\.weight' is missing"),
        ("UNET_FILE", {"sample_size": [8, 16]}, "sample_size"),
        ("UNET_FILE", {"sample_size": 9}, "9x9"),
        ("UNET_FILE", {"out_channels": 6}, "out_channels is 6"),
        ("SCHEDULER_FILE", {"beta_end": 0.03}, "beta_end is 0.03, but _diffusion says 0.02"),
        ("SCHEDULER_FILE", {"_diffusion": {"prediction": "mean"}}, "no such prediction"),
        ("SCHEDULER_FILE", {"_diffusion": {"schedule": "cubic"}}, "_diffusion: schedule"),
        ("SCHEDULER_FILE", {"_diffusion": None, "beta_schedule": "laplace"}, "beta_schedule is 'laplace'"),
        ("SCHEDULER_FILE", {"_diffusion": None, "variance_type": "learned"}, "variance_type is 'learned'"),
        ("SCHEDULER_FILE", {"_diffusion": None, "trained_betas": [0.1]}, "trained_betas"),
        ("SCHEDULER_FILE", {"_diffusion": None, "num_train_timesteps": 1}, "num_timesteps"),
    ],
)
def test_a_config_that_does_not_fit_is_refused_by_field(file, changes, message):
    files = model_files(random_unet(), DiffusionConfig())
    assert from_files(files).model == SMALL
    with pytest.raises(DataError, match=message):
        from_files(edited(files, getattr(fmt, file), **changes))


def test_files_and_tensors_that_do_not_fit_are_named():
    files = model_files(random_unet(), DiffusionConfig())
    for name in files:
        with pytest.raises(DataError, match=f"{name} is missing"):
            from_files({key: value for key, value in files.items() if key != name})
        with pytest.raises(DataError, match=name):
            from_files(files | {name: b"\x00not it"})
    state = load(files[fmt.WEIGHTS_FILE])
    for change, message in (
        ({"conv_in.bias": torch.zeros(9)}, r"'conv_in\.bias' is \[9\], not \[8\]"),
        ({"conv_in.bias": torch.zeros(8, dtype=torch.int32)}, r"'conv_in\.bias' is torch\.int32"),
        ({"ema.decay": torch.zeros(1)}, r"'ema\.decay' is not expected"),
        # Same number of elements, other meaning.
        ({"conv_in.weight": state["conv_in.weight"].reshape(3, 8, 3, 3)}, r"'conv_in\.weight' is \[3, 8, 3, 3\]"),
    ):
        with pytest.raises(DataError, match=message):
            from_files(files | {fmt.WEIGHTS_FILE: save(state | change)})


def test_half_precision_weights_are_read_as_float32():
    files = model_files(random_unet(), DiffusionConfig())
    half = {name: value.half() for name, value in load(files[fmt.WEIGHTS_FILE]).items()}
    found = from_files(files | {fmt.WEIGHTS_FILE: save(half)})
    assert_same_state(found.state, {name: value.float() for name, value in half.items()})


@pytest.mark.parametrize(
    ("diffusion", "message"),
    [
        (DiffusionConfig(prediction="mean", objective="bound"), "no such prediction"),
        (DiffusionConfig(variance="learned", objective="bound"), "only learns 'learned_range'"),
        (DiffusionConfig(schedule="sigmoid"), "pass its betas"),
    ],
)
def test_what_diffusers_cannot_run_is_not_written(diffusion, message):
    with pytest.raises(ConfigError, match=message):
        model_files(random_unet(), diffusion)
