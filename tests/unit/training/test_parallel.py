"""ddp and fsdp on two processes agree with one process, also with unequal lanes and each other's checkpoints."""

import pytest
import torch
from two_workers import HALFWAY, KINDS, STEPS, advance, batch, both, copy, settings, trainer

pytestmark = [pytest.mark.unit, pytest.mark.slow]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return both(tmp_path_factory.mktemp("two"))


@pytest.fixture(scope="module")
def alone():
    one = trainer(settings("ddp"))
    results = advance(one, range(STEPS))
    return results, one


def same(ours, theirs, exact=False):
    assert ours.keys() == theirs.keys()
    for group, tensors in ours.items():
        assert tensors.keys() == theirs[group].keys()
        for name, value in tensors.items():
            other = theirs[group][name]
            assert type(value) is torch.Tensor, "a tensor at rest is plain"
            if exact:
                assert torch.equal(value, other), f"{group} {name}"
            else:
                torch.testing.assert_close(value, other, rtol=1e-4, atol=2e-6, msg=lambda m, n=name: f"{n}: {m}")


def test_ranks_at_rest_are_equal(found):
    for kind in KINDS:
        same(found[0]["straight"][kind]["end"], found[1]["straight"][kind]["end"], exact=True)


def test_split_weights_train_as_whole_ones_do(found):
    """Weights, three averages, both moments and what importance sampling learned."""
    whole, split = (found[0]["straight"][kind] for kind in KINDS)
    assert set(whole["end"]) == {"model", "ema", "half", "wide", "optimizer", "timesteps"}
    same(split["end"], whole["end"])


def test_two_workers_of_three_lanes_train_as_one_does(found, alone):
    same(found[0]["straight"]["ddp"]["end"], alone[1].tensors())


@pytest.mark.parametrize("kind", KINDS)
def test_losses_of_the_ranks_average_to_the_loss_of_the_batch(found, alone, kind):
    ranks = [part["straight"][kind]["results"] for part in found]
    for step, whole in enumerate(alone[0]):
        one, other = ranks[0][step], ranks[1][step]
        assert (one["loss"] + other["loss"]) / 2 == pytest.approx(whole["loss"], rel=1e-4)
        assert one["grad_norm"] == other["grad_norm"] == pytest.approx(whole["grad_norm"], rel=1e-4)
        assert [sum(pair) for pair in zip(one["count"], other["count"], strict=True)] == whole["count"]
        assert [sum(pair) for pair in zip(one["by_t"], other["by_t"], strict=True)] == pytest.approx(
            whole["by_t"], rel=1e-4
        )
        assert (sum(one["count"]), sum(other["count"])) == (4, 2), "a round that is repeated for company counts nothing"


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_goes_on_from_the_others_checkpoint(found, kind):
    same(found[0]["resumed"][kind], found[0]["straight"][kind]["end"])


def test_one_worker_goes_on_from_a_split_checkpoint_and_starts_from_its_weights(found, alone):
    halfway = found[0]["straight"]["fsdp"]["halfway"]
    one = trainer(settings("fsdp"))  # with one worker there is nothing to split
    one.load(halfway, HALFWAY)
    same(copy(one.tensors()), halfway, exact=True)
    advance(one, range(HALFWAY, STEPS))
    same(one.tensors(), alone[1].tensors())


def test_samples_are_of_the_average_and_leave_no_trace(found):
    for part in found:
        whole, split = (part["straight"][kind] for kind in KINDS)
        torch.testing.assert_close(split["drawn"], whole["drawn"], rtol=1e-4, atol=1e-6)
        same(split["end"], part["undisturbed"], exact=True)
    one = trainer(settings("ddp"))
    one.load(found[0]["straight"]["ddp"]["halfway"], HALFWAY)
    drawn = one.model.eval()(batch(0, 0).x_0, torch.tensor([500]), torch.tensor([1, 2]))
    assert (drawn - found[0]["straight"]["ddp"]["drawn"]).abs().max() > 1e-4, "the average is not the last weights"
    one.averages["wide"].copy_to(one.model)
    drawn = one.model(batch(0, 0).x_0, torch.tensor([500]), torch.tensor([1, 2]))
    torch.testing.assert_close(drawn, found[0]["straight"]["ddp"]["drawn"], rtol=1e-5, atol=1e-6)


def test_replicas_are_whole_or_none(found):
    assert (
        found[0]["straight"]["ddp"]["replica"].keys() == dict(trainer(settings("ddp")).model.named_parameters()).keys()
    )
    assert found[0]["straight"]["fsdp"]["replica"] == {}


@pytest.mark.parametrize("kind", KINDS)
def test_an_overflow_on_one_rank_skips_the_step_on_all(found, kind):
    for part in found:
        case = part["overflow"][kind]
        assert not torch.isfinite(torch.tensor(case["skipped"][0]["grad_norm"]))
        assert all(float(case["after"]["optimizer"][n]) == 0 for n in case["after"]["optimizer"] if n.endswith(".step"))
        same({"model": case["after"]["model"]}, {"model": case["before"]["model"]}, exact=True)
        assert float(case["after"]["scaler"]["scale"]) == 2.0**23
        assert torch.isfinite(torch.tensor(case["taken"][0]["grad_norm"]))
    same(found[0]["overflow"][kind]["after"], found[1]["overflow"][kind]["after"], exact=True)
