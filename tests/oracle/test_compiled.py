"""The compiled network against the plain one: the option changes the speed and no number beyond rounding."""

import numpy as np
import pytest
import torch

from pipeline.config.generation import GenerateConfig
from pipeline.generation.generator import ShardGenerator
from pipeline.generation.make_plan import make_plan
from pipeline.model_store.load_model import StoredModel
from pipeline.training.inputs import MicroBatch
from pipeline.training.trainer import Trainer
from tiny import config

pytestmark = [pytest.mark.oracle, pytest.mark.slow]

NARROW = {"block_out_channels": [8], "attention_levels": []}
"""One level, no attention: inductor compiles it in seconds."""


def trainer(**train):
    return Trainer(config(model=NARROW, train=train), 8, 1, torch.device("cpu"))


def trained(one):
    ids = torch.arange(4)
    x_0 = torch.sin(torch.arange(256.0)).reshape(4, 1, 8, 8)
    return [one.step([MicroBatch(x_0, ids, None, epoch)]) for epoch in range(3)]


def test_a_compiled_step_is_the_plain_step():
    plain, compiled = trainer(), trainer(compile=True)
    for one, other in zip(trained(plain), trained(compiled), strict=True):
        assert float(other.loss) == pytest.approx(float(one.loss), rel=1e-5)
        assert float(other.grad_norm) == pytest.approx(float(one.grad_norm), rel=1e-4)
    assert type(compiled.network) is not type(plain.network)
    assert compiled.tensors()["model"].keys() == plain.tensors()["model"].keys()


def test_a_compiled_network_makes_the_same_samples():
    one = trainer()
    trained(one)
    settings = one.config
    stored = StoredModel("m", "ema", "f" * 64, settings.model, settings.diffusion, 8, 1)

    def made(**changes):
        plan = make_plan(GenerateConfig(num_samples=6, batch_size=3, sampler="ddim", steps=4, **changes), stored)
        return plan.fingerprint, ShardGenerator(one.model, plan, torch.device("cpu")).shard(range(6)).pixels

    (plain_plan, plain), (compiled_plan, compiled) = made(), made(compile=True)
    assert plain.std() > 10
    assert np.abs(plain.astype(int) - compiled.astype(int)).max() <= 1
    assert compiled_plan != plain_plan
