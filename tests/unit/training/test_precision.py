"""Mixed precision affects only the network; a step that overflows changes nothing but the step count."""

import pytest
import torch

from pipeline.models.layers import Conv3x3
from pipeline.training.inputs import MicroBatch
from pipeline.training.trainer import Trainer
from tiny import config

pytestmark = pytest.mark.unit


def batch(step, size=4):
    ids = torch.arange(size * step, size * step + size)
    x_0 = torch.sin(ids[:, None].float() + torch.arange(64)[None, :]).reshape(-1, 1, 8, 8)
    return MicroBatch(x_0, ids, None, 0)


def trainer(precision, steps=0, **train):
    """After some steps, so that every layer has a gradient."""
    one = Trainer(config(train={"precision": precision, **train}), 8, 1, torch.device("cpu"))
    for step in range(steps):
        one.step([batch(step)])
    return one


def copy(tensors):
    return {group: {name: t.detach().clone() for name, t in part.items()} for group, part in tensors.items()}


def same(ours, theirs, *groups):
    for group in groups or ours:
        for name, value in ours[group].items():
            assert torch.equal(value, theirs[group][name]), f"{group} {name}"


def set_scale(one, scale, tracker=0):
    one.precision.load({"scale": torch.tensor(scale), "growth_tracker": torch.tensor(tracker)})


def gradient(one, batches):
    result = one.step(batches)
    return result, torch.cat([p.grad.flatten() for p in one.model.parameters()])


HALF = [("bf16", torch.bfloat16), ("fp16", torch.float16)]


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), *HALF])
def test_only_the_network_runs_in_half_precision(precision, dtype):
    one, seen = trainer(precision, steps=2), {}
    one.model.conv_out.register_forward_hook(lambda _, inputs, out: seen.update(out=out.dtype))
    one.model.register_forward_pre_hook(lambda _, inputs: seen.update(x_t=inputs[0].dtype))
    result = one.step([batch(9)])
    assert seen == {"out": dtype, "x_t": torch.float32}
    assert result.loss.dtype == torch.float32
    for part in (*copy(one.tensors())["model"].values(), *(p.grad for p in one.model.parameters())):
        assert part.dtype == torch.float32


@pytest.mark.parametrize(("precision", "tolerance"), [("bf16", 3e-2), ("fp16", 4e-3)])
def test_gradients_are_those_of_full_precision_but_for_rounding(precision, tolerance):
    full, half = trainer("fp32", steps=6), trainer(precision)
    half.load({**copy(full.tensors()), **{k: v for k, v in half.tensors().items() if k == "scaler"}}, 6)
    (one, expected), (other, found) = (gradient(t, [batch(7), batch(8)]) for t in (full, half))
    assert float(other.loss) == pytest.approx(float(one.loss), rel=tolerance)
    assert float(other.grad_norm) == pytest.approx(float(one.grad_norm), rel=tolerance)
    assert 0 < (found - expected).norm() / expected.norm() < tolerance


def test_winograd_is_for_full_precision():
    for precision, fast in (("fp32", True), ("bf16", False), ("fp16", False)):
        layers = [m for m in trainer(precision).model.modules() if isinstance(m, Conv3x3)]
        assert layers
        assert all(layer.fast == fast for layer in layers)


def test_only_fp16_has_a_scale_at_rest():
    assert "scaler" not in trainer("fp32", steps=1).tensors()
    assert "scaler" not in trainer("bf16", steps=1).tensors()
    state = trainer("fp16", steps=3).tensors()["scaler"]
    assert {name: float(value) for name, value in state.items()} == {"scale": 2.0**16, "growth_tracker": 3}


def test_a_step_that_overflows_counts_and_changes_nothing():
    one = trainer("fp16", steps=3)
    before = copy(one.tensors())
    set_scale(one, 2.0**40)
    result = one.step([batch(3)])
    after = copy(one.tensors())
    assert torch.isfinite(result.loss)
    assert not torch.isfinite(result.grad_norm)
    assert one.steps_done == 4
    same(after, before, "model", "optimizer")
    assert float(after["scaler"]["scale"]) == 2.0**39
    # The average takes in the same weights once more.
    for name, weight in before["model"].items():
        expected = before["ema"][name].lerp(weight, 1 - 5 / 14)
        torch.testing.assert_close(after["ema"][name], expected, rtol=1e-6, atol=1e-7)
    set_scale(one, 2.0**10)
    assert torch.isfinite(one.step([batch(4)]).grad_norm)
    moved = copy(one.tensors())
    assert not torch.equal(moved["model"]["conv_out.weight"], before["model"]["conv_out.weight"])
    assert float(moved["optimizer"]["conv_out.weight.step"]) == 4


def test_the_scale_grows_after_two_thousand_good_steps_and_survives_a_reload():
    one = trainer("fp16", steps=2)
    set_scale(one, 2.0**12, tracker=1998)
    other = trainer("fp16")
    other.load(copy(one.tensors()), one.steps_done)
    for t in (one, other):
        for step in (2, 3, 4):
            t.step([batch(step)])
    assert float(one.tensors()["scaler"]["scale"]) == 2.0**13
    same(copy(one.tensors()), copy(other.tensors()))
