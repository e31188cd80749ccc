"""A sample depends only on the plan and its id, not on batch, neighbours or earlier attempts."""

import hashlib

import numpy as np
import pytest
import torch
from datasets import Dataset, Image

from pipeline.config.generation import GenerateConfig
from pipeline.config.model import DiffusionConfig, ModelConfig
from pipeline.diffusion.guidance import guided
from pipeline.diffusion.noise import SampleNoise
from pipeline.errors import ConfigError
from pipeline.generation.distributed.dispatcher import shard_blocks
from pipeline.generation.generator import NOT_FINITE, ShardGenerator, plan_sampler, sample_table
from pipeline.generation.make_plan import make_plan
from pipeline.images.convert import to_uint8
from pipeline.images.png import decode_pixels, encode_png
from pipeline.model_store.load_model import StoredModel
from pipeline.models.unet import UNet

pytestmark = pytest.mark.unit

MODEL = ModelConfig(block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4)


def plan(model=MODEL, diffusion=None, dropout=0.0, **settings):
    found = StoredModel("m", "ema", "0" * 64, model, diffusion or DiffusionConfig(), 8, 1, dropout)
    defaults = {"num_samples": 20, "shard_size": 10, "batch_size": 4, "sampler": "ddim", "steps": 4, "seed": 5}
    return make_plan(GenerateConfig(**{**defaults, **settings}), found)


def network(model=MODEL):
    torch.set_num_threads(1)
    unet = UNet(model, 1, 1, 8)
    generator = torch.Generator().manual_seed(1)
    for weight in unet.parameters():
        weight.data += 0.1 * torch.randn(weight.shape, generator=generator)
    return unet


def generator(a_plan, unet=None):
    return ShardGenerator(unet or network(a_plan_model(a_plan)), a_plan, torch.device("cpu"))


def a_plan_model(a_plan):
    return MODEL.model_copy(update={"num_classes": a_plan.num_classes})


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_a_shard_is_the_plain_sampling_loop(sampler):
    """Against the loop written out, image by image: padding, channels-last and batching change nothing visible."""
    a_plan, unet = plan(sampler=sampler), network()
    images = generator(a_plan, unet).shard(range(10, 20))
    assert images.pixels.shape == (10, 8, 8, 1)
    assert images.finite.all()
    for sample_id, pixels in zip(range(10, 20), images.pixels, strict=True):
        noise = SampleNoise(5, torch.tensor([sample_id]), (1, 8, 8))
        *_, last = plan_sampler(a_plan).run(lambda x, t: unet(x, t), noise)
        alone = to_uint8(last.x_t)[0].astype(int)
        assert np.abs(alone - pixels.astype(int)).max() <= 1, sample_id
    assert len({pixels.tobytes() for pixels in images.pixels}) == 10


def test_every_forward_pass_has_the_same_shape():
    shapes = []
    unet = network()
    unet.register_forward_hook(lambda module, inputs, out: shapes.append((tuple(inputs[0].shape), inputs[1].numel())))
    generator(plan(), unet).shard(range(10))
    assert set(shapes) == {((4, 1, 8, 8), 1)}
    assert len(shapes) == 3 * 4


def test_the_same_bits_again_and_when_the_shard_is_cut_short():
    """The last shard of a smaller job has the same first samples."""
    whole = generator(plan()).shard(range(10, 20))
    again = generator(plan()).shard(range(10, 20))
    short = generator(plan(num_samples=17)).shard(range(10, 17))
    assert np.array_equal(whole.pixels, again.pixels)
    assert np.array_equal(whole.pixels[:7], short.pixels)


def test_another_seed_is_another_image_and_labels_matter():
    conditional = plan(model=MODEL.model_copy(update={"num_classes": 3}))
    seen = []
    unet = network(a_plan_model(conditional))
    unet.register_forward_hook(lambda module, inputs, out: seen.append(inputs[2].tolist()))
    generator(conditional, unet).shard(range(10, 20))
    assert seen[0] == [1, 2, 0, 1]
    assert seen[-1] == [0, 1, 1, 1]  # 18, 19, and padding
    ours, other = generator(plan()).shard(range(4)), generator(plan(seed=6)).shard(range(4))
    assert not np.array_equal(ours.pixels, other.pixels)


CLASSES = MODEL.model_copy(update={"num_classes": 3})


def passes(unet):
    """(batch, labels) of every forward pass from now on."""
    seen = []
    unet.register_forward_hook(lambda module, inputs, out: seen.append((len(inputs[0]), inputs[2].tolist())))
    return seen


@pytest.mark.parametrize("interval", [None, (400, 800)])
def test_guidance_is_the_rule_written_out_in_one_pass_over_both(interval):
    """Each image against two networks asked one after the other; label 3 is "no label"."""
    a_plan = plan(model=CLASSES, dropout=0.1, guidance=3.0, guidance_interval=interval)
    assert (a_plan.guidance, a_plan.guidance_interval) == (3.0, interval)
    unet = network(CLASSES)
    seen = passes(unet)
    images = generator(a_plan, unet).shard(range(10, 20))
    timesteps = plan_sampler(a_plan).timesteps
    inside = [interval is None or interval[0] <= t <= interval[1] for t in timesteps]
    assert [batch for batch, _ in seen] == [8 if both else 4 for both in inside] * 3
    assert seen[timesteps.index(999)][1] == ([1, 2, 0, 1, 3, 3, 3, 3] if inside[0] else [1, 2, 0, 1])
    for sample_id, pixels in zip(range(10, 20), images.pixels, strict=True):
        towards, away = ((lambda x, t, k=k: unet(x, t, torch.tensor([k]))) for k in (sample_id % 3, 3))
        denoiser = guided(towards, away, 3.0, interval)
        noise = SampleNoise(5, torch.tensor([sample_id]), (1, 8, 8))
        *_, last = plan_sampler(a_plan).run(denoiser, noise)
        assert np.abs(to_uint8(last.x_t)[0].astype(int) - pixels.astype(int)).max() <= 1, sample_id
    plain = generator(plan(model=CLASSES), network(CLASSES)).shard(range(10, 20))
    assert not np.array_equal(plain.pixels, images.pixels)
    assert sample_table(a_plan, images)["guidance"].to_pylist() == [3.0] * 10


def test_a_given_mix_of_labels_reaches_the_network_and_the_rows():
    a_plan = plan(model=CLASSES, labels="0:0.5,2:0.5", num_samples=20)
    unet = network(CLASSES)
    seen = passes(unet)
    rows = [sample_table(a_plan, generator(a_plan, unet).shard(ids)) for ids in (range(10), range(10, 20))]
    labels = [label for table in rows for label in table["label"].to_pylist()]
    assert sorted(labels) == [0] * 10 + [2] * 10
    assert seen[0][1] == labels[:4]


@pytest.mark.parametrize(("given", "pinned"), [((0.4, 0.8), (400, 799)), ((0, 1), (0, 999)), ((5, 900.5), (5, 900))])
def test_an_interval_is_shares_up_to_1_and_timesteps_above(given, pinned):
    assert plan(model=CLASSES, dropout=0.1, guidance=2.0, guidance_interval=given).guidance_interval == pinned


def spoil(unet, attempts, rows):
    """NaN in some rows of the first forward passes."""
    calls = []

    def hook(module, inputs, out):
        calls.append(1)
        if len(calls) <= attempts:
            out = out.clone()
            out[rows] = torch.nan
        return out

    unet.register_forward_hook(hook)
    return unet


def test_a_passing_fault_is_healed_by_the_second_attempt():
    good = generator(plan()).shard(range(10))
    healed = generator(plan(), spoil(network(), 4, [1])).shard(range(10))
    assert healed.finite.all()
    assert np.array_equal(good.pixels, healed.pixels)


def test_a_lasting_fault_is_a_row_with_an_error_and_no_black_picture():
    a_plan = plan()
    good = generator(a_plan).shard(range(10))
    images = generator(a_plan, spoil(network(), 8, [1, 3])).shard(range(10))
    assert images.finite.tolist() == [True, False, True, False] + [True] * 6
    rows = sample_table(a_plan, images).to_pylist()
    assert [row["status"] for row in rows[:4]] == ["ok", "failed", "ok", "failed"]
    assert rows[1]["image"] is None
    assert rows[1]["sha256"] is None
    assert rows[1]["error"] == NOT_FINITE
    assert np.array_equal(decode_pixels(rows[2]["image"]["bytes"], 64), good.pixels[2])


@pytest.mark.parametrize(("times", "status"), [(1, "ok"), (2, "failed")])
def test_an_encoder_that_fails_is_asked_again_and_then_believed(monkeypatch, times, status):
    a_plan = plan()
    images, failures = generator(a_plan).shard(range(10)), [OSError("no space for the picture")] * times

    def encode(pixels):
        if failures and np.array_equal(pixels, images.pixels[2]):
            raise failures.pop()
        return encode_png(pixels)

    monkeypatch.setattr("pipeline.generation.generator.encode_png", encode)
    row = sample_table(a_plan, images).to_pylist()[2]
    assert row["status"] == status
    assert (row["image"] is None) == (status == "failed")
    assert row["error"] == (None if status == "ok" else "encoder: no space for the picture")


def test_rows_say_what_made_them():
    a_plan = plan(model=MODEL.model_copy(update={"num_classes": 3}), eta=0.5)
    images = generator(a_plan).shard(range(10, 20))
    table = sample_table(a_plan, images)
    for sample_id, row in zip(range(10, 20), table.to_pylist(), strict=True):
        assert row["sample_id"] == sample_id
        assert row["label"] == sample_id % 3
        assert (row["seed"], row["ema"], row["sampler"], row["steps"], row["eta"]) == (5, "ema", "ddim", 4, 0.5)
        assert (row["width"], row["height"], row["status"], row["error"]) == (8, 8, "ok", None)
        assert row["model_digest"] == a_plan.model_digest
        assert row["sha256"] == hashlib.sha256(row["image"]["bytes"]).hexdigest()
    assert isinstance(Dataset(table).features["image"], Image)


def test_the_plan_fixes_what_the_model_and_the_settings_leave_open():
    a_plan = plan(sampler="ddpm", steps=None, batch_size=64)
    assert (a_plan.steps, a_plan.variance, a_plan.batch_size) == (1000, "fixed_large", 10)
    fixed_small = plan(sampler="ddpm", variance="fixed_small", steps=7)
    assert (fixed_small.steps, fixed_small.variance) == (7, "fixed_small")
    learned = DiffusionConfig(variance="learned_range", objective="hybrid")
    assert plan(sampler="ddpm", diffusion=learned).variance == "learned_range"


def test_both_variances_reach_the_sampler():
    small = generator(plan(sampler="ddpm", variance="fixed_small")).shard(range(4))
    large = generator(plan(sampler="ddpm", variance="fixed_large")).shard(range(4))
    assert not np.array_equal(small.pixels, large.pixels)


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"steps": 1001}, "steps must lie in 1..1000"),
        ({"sampler": "ddpm", "eta": 0.5}, "eta"),
        ({"variance": "fixed_small"}, "variance"),
        ({"guidance": 2.0}, "no classes to guide"),
        ({"guidance": 2.0, "model": CLASSES}, "trained without label dropout"),
        ({"guidance_interval": (0.2, 0.8)}, "which is off"),
        (
            {"guidance": 2.0, "guidance_interval": (1000, 2000), "model": CLASSES, "dropout": 0.1},
            "no timestep",
        ),
        ({"labels": "0:1"}, "the model has no classes"),
        ({"labels": "0:1,3:1", "model": CLASSES}, r"classes of the model are 0\.\.2"),
    ],
)
def test_settings_that_cannot_be_followed_are_refused(settings, what):
    with pytest.raises(ConfigError, match=what):
        plan(**settings)


@pytest.mark.parametrize(("shards", "actors"), [(1, 2), (8, 2), (100, 2), (1000, 4), (10**6, 64)])
def test_blocks_cover_every_shard_once_and_end_small(shards, actors):
    blocks = shard_blocks(np.arange(shards), actors)
    assert [shard for block in blocks for shard in block] == list(range(shards))
    assert all(len(block) == 1 for block in blocks[-actors:])
    if shards <= 4 * actors:
        assert len(blocks) == shards
    assert len(blocks) <= 4096 + 64 * actors
