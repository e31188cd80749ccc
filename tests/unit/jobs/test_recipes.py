"""Every recipe that ships loads, has the network that it says, and takes a training step."""

import re
from pathlib import Path

import pytest
import torch

from pipeline.config.layers import RECIPES, recipe_layer, resolve, yaml_layer
from pipeline.diffusion.objective import Objective
from pipeline.models.unet import UNet
from pipeline.training.inputs import MicroBatch
from pipeline.training.trainer import Trainer

pytestmark = pytest.mark.unit

NAMES = sorted(path.stem for path in RECIPES.glob("*.yaml"))
PARAMETERS = {
    "cifar10-paper": 35_746_307,
    "improved-cosine": 52_546_438,
    "celebahq-256": 113_673_219,
    "lsun-church-256": 113_673_219,
    "lsun-bedroom-256": 113_673_219,
    "lsun-cat-256": 113_673_219,
}
STEP_SIZE, STEP_WIDTH = 64, 32
"""A large recipe takes its step on smaller images and narrower levels; depth and attention are the recipe's."""


def network(config, size):
    objective = Objective(config.diffusion, config.ingest.channels)
    return UNet(config.model, config.ingest.channels, objective.out_channels, size)


def narrowed(config):
    """The recipe with its first level at most STEP_WIDTH channels, all levels by the same factor."""
    factor = max(1, config.model.block_out_channels[0] // STEP_WIDTH)
    widths = tuple(width // factor for width in config.model.block_out_channels)
    return config.model_copy(update={"model": config.model.model_copy(update={"block_out_channels": widths})})


@pytest.mark.parametrize("name", NAMES)
def test_it_loads_and_counts_its_parameters(name):
    config = resolve([recipe_layer(name)])
    with torch.device("meta"):
        count = sum(p.numel() for p in network(config, config.ingest.image_size).parameters())
    assert count == PARAMETERS.get(name, count)
    assert config.ingest.shard_rows % config.train.micro_batch == 0, "full shards leave no rows over"
    assert config.generate.shard_size % config.generate.batch_size == 0, "full shards need no padding"


@pytest.mark.parametrize(("name", "batch", "epochs"), [("cifar10-paper", 128, 800_000), ("celebahq-256", 64, 500_000)])
def test_batch_and_steps_are_the_papers(name, batch, epochs):
    config = resolve([recipe_layer(name)])
    assert (config.train.global_batch, config.train.steps) == (batch, epochs)


def test_improved_ddpm_has_the_papers_heads():
    model = resolve([recipe_layer("improved-cosine")]).model
    widths = [model.block_out_channels[level] for level in model.attention_levels]
    assert [width // model.attention_head_dim for width in widths] == [4, 4]
    assert model.resnet_time_scale_shift == "scale_shift"


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("lsun")])
def test_it_takes_a_training_step(name):
    config = narrowed(resolve([recipe_layer(name)]))
    size, channels = min(config.ingest.image_size, STEP_SIZE), config.ingest.channels
    trainer = Trainer(config, size, channels, torch.device("cpu"))
    before = trainer.model.conv_out.weight.detach().clone()
    x_0 = torch.linspace(-1, 1, channels * size * size).reshape(1, channels, size, size)
    label = torch.tensor([3]) if config.model.num_classes else None
    result = trainer.step([MicroBatch(x_0, torch.tensor([7]), label, epoch=0)])
    assert torch.isfinite(result.loss)
    assert result.grad_norm > 0
    assert not torch.equal(trainer.model.conv_out.weight, before)


def test_the_settings_in_the_handbook_are_settings(tmp_path):
    text = (Path(__file__).parents[3] / "docs/operations.md").read_text()
    blocks = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    assert blocks
    for number, block in enumerate(blocks):
        file = tmp_path / f"{number}.yaml"
        file.write_text(block)
        resolve([yaml_layer(file)])
