"""Importance-sampled timesteps: unbiased, mergeable, and uniform until every timestep has ten losses."""

import pytest
import torch

from pipeline.diffusion.importance_sampling import ImportanceTimesteps, LossTally

pytestmark = pytest.mark.unit


def warm(losses):
    """A state with ten equal losses at every timestep."""
    t = torch.arange(len(losses)).repeat(10)
    return ImportanceTimesteps.fresh(len(losses)).absorb(LossTally.of(t, torch.tensor(losses)[t], len(losses)))


def test_tally_counts_and_sums_squares():
    tally = LossTally.of(torch.tensor([1, 1, 3]), torch.tensor([2.0, 3.0, 5.0], requires_grad=True), 4)
    assert tally.count.tolist() == [0, 2, 0, 1]
    assert tally.square_sum.tolist() == [0, 13, 0, 25]
    assert not tally.square_sum.requires_grad


def test_tallies_of_workers_add_up_to_the_tally_of_all():
    t, loss = torch.tensor([0, 2, 2, 1]), torch.tensor([1.0, 2.0, 3.0, 4.0])
    both = LossTally.of(t[:2], loss[:2], 3) + LossTally.of(t[2:], loss[2:], 3)
    whole = LossTally.of(t, loss, 3)
    assert both.count.tolist() == whole.count.tolist()
    assert both.square_sum.tolist() == whole.square_sum.tolist()


def test_uniform_until_every_timestep_was_seen_ten_times():
    state = ImportanceTimesteps.fresh(2)
    for _ in range(9):
        state = state.absorb(LossTally.of(torch.tensor([0, 1]), torch.tensor([1.0, 3.0]), 2))
    assert state.probabilities().tolist() == [0.5, 0.5]
    state = state.absorb(LossTally.of(torch.tensor([0, 1]), torch.tensor([1.0, 3.0]), 2))
    assert state.seen.tolist() == [10, 10]
    torch.testing.assert_close(state.probabilities(), torch.tensor([0.25, 0.75]).double(), rtol=0, atol=1e-3)


def test_probabilities_follow_the_root_mean_square_and_leave_a_share_to_all():
    p = warm([0.0, 1.0, 3.0]).probabilities()
    expected = 0.999 * torch.tensor([0.0, 0.25, 0.75]).double() + 0.001 / 3
    torch.testing.assert_close(p, expected, rtol=1e-12, atol=1e-12)
    assert warm([0.0, 0.0]).probabilities().tolist() == [0.5, 0.5]


def test_the_first_losses_are_a_plain_mean_and_later_ones_fade():
    state = ImportanceTimesteps.fresh(1)
    for loss in (1.0, 2.0, 3.0):
        state = state.absorb(LossTally.of(torch.tensor([0]), torch.tensor([loss]), 1))
    assert state.mean_square.item() == pytest.approx((1 + 4 + 9) / 3)
    state = warm([2.0])
    for _ in range(2):
        state = state.absorb(LossTally.of(torch.tensor([0]), torch.tensor([0.0]), 1))
    # The 11th is still a plain mean's 1/11 < 1/10: fading takes over.
    assert state.mean_square.item() == pytest.approx(4 * 0.9 * 0.9)
    together = warm([2.0]).absorb(LossTally.of(torch.tensor([0, 0]), torch.tensor([0.0, 0.0]), 1))
    assert together.mean_square.item() == pytest.approx(state.mean_square.item())


def test_a_timestep_not_drawn_keeps_its_memory():
    state = warm([1.0, 2.0]).absorb(LossTally.of(torch.tensor([0]), torch.tensor([1.0]), 2))
    assert state.mean_square[1].item() == pytest.approx(4.0)


def test_a_timestep_never_drawn_stays_unknown_and_finite():
    state = ImportanceTimesteps.fresh(2).absorb(LossTally.of(torch.tensor([0]), torch.tensor([3.0]), 2))
    assert state.mean_square.tolist() == [9.0, 0.0]


def test_draws_follow_the_probabilities_and_the_weights_undo_them():
    state = warm([1.0, 2.0, 5.0])
    u = (torch.arange(8000) + 0.5).double() / 8000
    t, weight = state.draw(u)
    frequency = torch.bincount(t, minlength=3) / 8000
    torch.testing.assert_close(frequency.double(), state.probabilities(), rtol=0, atol=2e-4)
    assert weight.dtype == torch.float32
    # E[weight * f(t)] is the uniform mean of f.
    f = torch.tensor([3.0, -1.0, 7.0])
    assert (weight * f[t]).mean().item() == pytest.approx(3.0, abs=5e-3)


def test_the_ends_of_the_unit_interval_are_timesteps():
    t, _ = warm([1.0, 2.0, 5.0]).draw(torch.tensor([0.0, 1 - 2.0**-32], dtype=torch.float64))
    assert t.tolist() == [0, 2]


def test_a_move_to_a_device_keeps_what_is_known():
    known = ImportanceTimesteps(torch.tensor([1.0, 2.0]).double(), torch.tensor([3.0, 4.0]).double())
    moved = known.to(torch.device("cpu"))
    assert torch.equal(moved.seen, known.seen)
    assert torch.equal(moved.mean_square, known.mean_square)
