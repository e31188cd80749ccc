"""A training step: the right target, the right average, the same for any split of the batch, exact after a reload."""

import itertools
import time

import pytest
import torch

from pipeline.diffusion.importance_sampling import ImportanceTimesteps
from pipeline.training.inputs import MicroBatch, training_inputs
from pipeline.training.trainer import EMA, Trainer, learning_rate
from tiny import config

pytestmark = pytest.mark.unit


def batch(ids, epoch=0):
    ids = torch.tensor(ids)
    x_0 = torch.sin(ids[:, None].float() + torch.arange(64)[None, :]).reshape(-1, 1, 8, 8)
    return MicroBatch(x_0, ids, None, epoch)


def trainer(**sections):
    return Trainer(config(**sections), 8, 1, torch.device("cpu"))


def equal(one, other):
    return all(torch.equal(a, other[group][name]) for group, t in one.items() for name, a in t.items())


def test_inputs_are_a_function_of_seed_epoch_and_id():
    settings = config(train={"flip": True}).train
    whole = training_inputs(batch([3, 5, 8, 13]), settings, 1000)
    parts = [training_inputs(batch(ids), settings, 1000) for ids in ([3], [5, 8], [13])]
    for name in ("x_0", "t", "eps"):
        assert torch.equal(getattr(whole, name), torch.cat([getattr(part, name) for part in parts]))
    later = training_inputs(batch([3, 5, 8, 13], epoch=1), settings, 1000)
    assert not torch.equal(whole.t, later.t)
    assert not torch.equal(whole.eps, later.eps)


def test_flips_happen_for_half_of_the_images_and_only_when_asked():
    many = batch(list(range(400)))
    flipped = training_inputs(many, config(train={"flip": True}).train, 1000).x_0
    changed = (flipped != many.x_0).flatten(1).any(1)
    assert 150 < int(changed.sum()) < 250
    assert torch.equal(flipped[changed], many.x_0[changed].flip(-1))
    assert torch.equal(training_inputs(many, config().train, 1000).x_0, many.x_0)


def test_the_loss_is_the_mean_squared_error_of_epsilon():
    t = trainer()
    one = batch([1, 2, 3])
    inputs = training_inputs(one, t.config.train, 1000)
    # A fresh network predicts exactly 0, so the loss is the mean square of the noise (Eq. 14).
    assert t.step([one]).loss == pytest.approx(float(inputs.eps.square().mean()), rel=1e-5)


def test_accumulated_lanes_are_the_mean_of_the_global_batch():
    """Two micro-batches of 4 give the gradient of one batch of 8."""
    split, whole = trainer(), trainer()
    for _ in range(3):
        split.step([batch([1, 2, 3, 4]), batch([5, 6, 7, 8])])
        whole.step([batch([1, 2, 3, 4, 5, 6, 7, 8])])
    for (name, a), b in zip(split.model.named_parameters(), whole.model.parameters(), strict=True):
        assert (a - b).abs().max() < 2e-4, name


def test_a_reloaded_trainer_goes_on_bit_identically():
    one = trainer(train={"warmup_steps": 3})
    for step in range(4):
        one.step([batch([step, step + 10])])
    other = trainer(train={"warmup_steps": 3, "seed": 0})
    saved = {group: {k: v.detach().clone() for k, v in t.items()} for group, t in one.tensors().items()}
    other.load(saved, one.steps_done)
    for step in range(4, 8):
        one.step([batch([step, step + 10])])
        other.step([batch([step, step + 10])])
    assert equal(one.tensors(), other.tensors())
    assert set(one.tensors()) == {"model", EMA, "optimizer"}


def test_the_average_follows_the_weights():
    t = trainer(train={"ema": {"decay": 0.9, "warmup": False}})
    start = {name: value.clone() for name, value in t.ema.shadow.items()}
    t.step([batch([1, 2])])
    for name, weight in t.model.named_parameters():
        expected = 0.9 * start[name] + 0.1 * weight.detach()
        assert torch.allclose(t.ema.shadow[name], expected, atol=1e-7), name


def test_gradients_are_clipped_to_the_norm():
    t = trainer(train={"grad_clip": 1e-3})
    norm = t.step([batch([1, 2])]).grad_norm
    clipped = torch.stack([p.grad.norm() for p in t.model.parameters()]).norm()
    assert norm > 1e-3
    assert float(clipped) == pytest.approx(1e-3, rel=1e-3)


def test_warm_up_is_linear_then_flat():
    settings = config(train={"lr": 0.5, "warmup_steps": 10}).train
    assert [learning_rate(settings, step) for step in (0, 4, 9, 10, 500)] == pytest.approx([0.05, 0.25, 0.5, 0.5, 0.5])
    assert learning_rate(config(train={"lr": 0.5, "warmup_steps": 0}).train, 0) == 0.5


def test_labels_reach_a_conditional_network():
    t = trainer(model={"num_classes": 3})
    one = batch([1, 2, 3])
    for _ in range(4):  # the last layers begin at zero and must move before a gradient reaches the embedding
        t.step([MicroBatch(one.x_0, one.ids, torch.tensor([0, 1, 2]), 0)])
    gradient = t.model.class_embedding.weight.grad
    assert gradient[:3].abs().sum() > 0
    assert gradient[3].abs().sum() == 0


def test_dropout_draws_by_sample_and_epoch():
    """With the network's own key, two equal trainers stay equal; the epoch changes the masks."""
    losses = []
    for epoch in (0, 0, 1):
        t = trainer(model={"dropout": 0.5})
        t.step([batch([1, 2])])
        t.step([batch([1, 2])])
        losses.append(float(t.step([batch([1, 2], epoch)]).loss))
    assert losses[0] == losses[1]
    assert losses[0] != losses[2]


IMPORTANT = {"num_timesteps": 4, "objective": "bound", "timestep_sampling": "importance"}


def test_importance_sampling_learns_from_the_whole_batch_and_survives_a_reload():
    one = trainer(diffusion=IMPORTANT)
    parts = [batch(list(range(40))), batch(list(range(40, 80)))]
    one.step(parts)
    assert float(one.importance.seen.sum()) == 80
    for _ in range(3):
        one.step(parts)
    p = one.importance.probabilities()
    assert p.max() / p.min() > 1.05, "the terms of the bound differ, so the timesteps are no longer drawn evenly"
    other = trainer(diffusion=IMPORTANT)
    saved = {group: {k: v.detach().clone() for k, v in t.items()} for group, t in one.tensors().items()}
    other.load(saved, one.steps_done)
    one.step(parts)
    other.step(parts)
    assert equal(one.tensors(), other.tensors())


def test_importance_weights_undo_the_uneven_draw():
    importance = ImportanceTimesteps(torch.full((4,), 10.0).double(), torch.tensor([1.0, 4.0, 9.0, 16.0]).double())
    inputs = training_inputs(batch(list(range(4000))), config().train, 4, importance)
    loss_of_t = torch.tensor([5.0, 1.0, 2.0, 0.5])
    estimate = (loss_of_t[inputs.t] * inputs.weight).mean()
    assert float(estimate) == pytest.approx(float(loss_of_t.mean()), rel=0.05)


def test_workers_sum_their_tallies():
    shared = trainer(diffusion=IMPORTANT)
    shared._all_reduce = lambda tensor: tensor.mul_(2)  # as if another worker had seen the same
    shared.step([batch([1, 2, 3])])
    assert float(shared.importance.seen.sum()) == 6


def test_errors_are_told_by_tenth_of_the_timesteps():
    t, one = trainer(), batch(list(range(64)))
    inputs = training_inputs(one, t.config.train, 1000)
    result = t.step([one])  # a fresh network predicts 0
    for tenth in range(10):
        inside = inputs.t // 100 == tenth
        assert int(result.count_by_t[tenth]) == int(inside.sum())
        expected = inputs.eps[inside].square().mean((1, 2, 3)).sum()
        assert float(result.loss_by_t[tenth]) == pytest.approx(float(expected), rel=1e-5)
    assert float(result.loss_by_t.sum() / result.count_by_t.sum()) == pytest.approx(float(result.loss), rel=1e-5)


WEIGHTED = [
    {"min_snr_gamma": 5.0},
    {"min_snr_gamma": 5.0, "prediction": "v"},
    {"objective": "hybrid", "variance": "learned_range"},
    {"objective": "hybrid", "variance": "learned_range", "timestep_sampling": "importance"},
]


@pytest.mark.parametrize("diffusion", WEIGHTED, ids=str)
def test_errors_by_timestep_have_no_weights_and_no_other_terms(diffusion):
    t, one = trainer(diffusion=diffusion), batch(list(range(32)))
    inputs = training_inputs(one, t.config.train, 1000)
    process = t.objective.process
    x_t = process.q_sample(inputs.x_0, inputs.t, inputs.eps)
    target = process.target(t.config.diffusion.prediction, inputs.x_0, x_t, inputs.t, inputs.eps)
    result = t.step([one])
    assert float(result.loss_by_t.sum()) == pytest.approx(float(target.square().mean((1, 2, 3)).sum()), rel=1e-5)
    assert float(result.loss_by_t.sum() / 32) != pytest.approx(float(result.loss), rel=1e-4)


def test_of_the_bound_the_loss_itself_is_told():
    t = trainer(diffusion={"objective": "bound", "num_timesteps": 5})
    result = t.step([batch(list(range(32))), batch(list(range(32, 64)))])
    assert float(result.loss_by_t.sum() / 64) == pytest.approx(float(result.loss), rel=1e-5)
    assert (result.count_by_t > 0).tolist() == [True, False] * 5, "timestep 1 of 5 begins the third tenth"


def test_workers_with_unequal_lanes_add_up_to_the_mean_of_all():
    """Three lanes on two workers; the mean over workers, which DDP takes, is done here by hand."""
    lanes = [batch([1, 2]), batch([3, 4]), batch([5, 6])]
    alone, workers = trainer(), [trainer(train={"lanes": 3}) for _ in range(2)]
    whole = alone.step(lanes)
    gradients = []
    for rank, worker in enumerate(workers):
        worker.world_size = 2  # after construction, which would look for a process group
        result = worker.step(lanes[rank::2])
        scale = max(float(result.grad_norm), 1.0)  # what clipping divided by
        gradients.append((result.loss, [p.grad * scale for p in worker.model.parameters()]))
    (loss_0, first), (loss_1, second) = gradients
    assert float(loss_0 + loss_1) / 2 == pytest.approx(float(whole.loss), rel=1e-6)
    for expected, a, b in zip(alone.model.parameters(), first, second, strict=True):
        clipped = expected.grad * max(float(whole.grad_norm), 1.0)
        torch.testing.assert_close((a + b) / 2, clipped, rtol=1e-4, atol=1e-6)


def test_the_whole_may_be_named():
    part, whole = trainer(), trainer()
    assert float(part.step([batch([1, 2])], total=4).loss) == pytest.approx(float(whole.step([batch([1, 2])]).loss) / 4)


def test_own_time_ends_where_the_last_backward_pass_begins():
    t, ends = trainer(), []
    backward = t.precision.backward
    t.precision.backward = lambda loss: (ends.append(time.perf_counter()), backward(loss))
    began = time.perf_counter()
    result = t.step([batch([1, 2]), batch([3, 4])])
    assert ends[0] - began < result.own_seconds <= ends[1] - began


MORE = {"half": {"half_life_images": 8.0, "warmup": False}, "wide": {"relative_width": 0.2}}


def test_every_average_has_its_kind_its_group_and_its_place_in_a_reload():
    t = trainer(train={"more_ema": MORE})
    assert t.ema_names == ("ema", "half", "wide")
    assert t.ema is t.averages["ema"]
    start = t.model.conv_out.weight.detach().clone()
    t.step([batch([1, 2])])
    now = t.model.conv_out.weight.detach()
    # The global batch is 4 lanes of 8, four half-lives; of a power function the first step is all.
    torch.testing.assert_close(t.averages["half"].shadow["conv_out.weight"], now + (start - now) / 16)
    assert torch.equal(t.averages["wide"].shadow["conv_out.weight"], now)
    t.step([batch([3, 4])])
    other = trainer(train={"more_ema": MORE})
    other.load({group: {k: v.detach().clone() for k, v in g.items()} for group, g in t.tensors().items()}, 2)
    for one in (t, other):
        one.step([batch([5, 6])])
    assert equal(t.tensors(), other.tensors())
    shadows = [t.averages[name].shadow["conv_out.weight"] for name in t.ema_names]
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(shadows, 2))


def test_samples_of_an_average_leave_the_weights_as_they_were():
    t = trainer(train={"ema": {"decay": 0.9, "warmup": False}})
    for step in range(3):
        t.step([batch([step, step + 10])])
    before = t.model.conv_out.weight.detach().clone()

    def fail():
        with t.averaged() as network:
            assert not network.training
            assert torch.equal(network.conv_out.weight, t.ema.shadow["conv_out.weight"])
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail()
    assert torch.equal(t.model.conv_out.weight, before)


def test_a_warm_start_is_the_other_weights_in_model_and_averages():
    source, t = trainer(), trainer(train={"more_ema": MORE})
    for step in range(3):
        source.step([batch([step, step + 10])])
    t.start_from(source.ema.shadow)
    for weights in (dict(t.model.named_parameters()), *(average.shadow for average in t.averages.values())):
        assert all(torch.equal(weights[name], value) for name, value in source.ema.shadow.items())
    assert t.steps_done == 0
    assert t.tensors()["optimizer"] == {}
