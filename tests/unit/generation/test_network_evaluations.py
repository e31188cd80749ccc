"""Network evaluations per sample, by sampler and guidance."""

import pytest

from pipeline.config.generation import GenerateConfig
from pipeline.config.model import DiffusionConfig, ModelConfig
from pipeline.generation.generator import network_evaluations
from pipeline.generation.make_plan import make_plan
from pipeline.model_store.load_model import StoredModel

pytestmark = pytest.mark.unit


def cost(variance="fixed_large", **settings):
    model = ModelConfig(block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, num_classes=3)
    objective = "hybrid" if variance == "learned_range" else "simple"
    diffusion = DiffusionConfig(num_timesteps=100, variance=variance, objective=objective)
    found = StoredModel("m", "ema", "0" * 64, model, diffusion, 8, 3, 0.1)
    return network_evaluations(make_plan(GenerateConfig(**settings), found))


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpm++2m", "dpm++2m-sde"])
def test_one_call_a_step(sampler):
    assert cost(sampler=sampler, steps=7) == 7


def test_heun_calls_twice_but_for_its_last_step():
    assert cost(sampler="heun", steps=7) == 13
    assert cost(sampler="heun", steps=1) == 1


def test_every_step_of_the_process_and_a_learned_variance():
    assert cost(sampler="ddpm", variance="learned_range") == 100


def test_guided_steps_count_twice_and_only_within_their_interval():
    assert cost(sampler="ddim", steps=10, guidance=2.0) == 20
    assert cost(sampler="ddim", steps=10, guidance=1.0) == 10
    # Timesteps 9, 19, ..., 99: three of them lie in 20..50.
    assert cost(sampler="ddim", steps=10, guidance=2.0, guidance_interval=(20, 50)) == 13
