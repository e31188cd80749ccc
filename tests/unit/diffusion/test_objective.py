"""Losses on a process small enough to work out by hand, and where their gradients go."""

import math

import pytest
import torch

from pipeline.config.model import DiffusionConfig
from pipeline.diffusion.objective import Objective
from pipeline.diffusion.variational_bound import bound_term

pytestmark = pytest.mark.unit

T = torch.tensor([0, 3, 7, 9])


def config(**settings):
    return DiffusionConfig(num_timesteps=10, beta_start=0.05, beta_end=0.3, **settings)


def batch():
    g = torch.Generator().manual_seed(0)
    x_0 = torch.randint(256, (4, 2, 3, 3), generator=g).double() / 127.5 - 1
    return x_0, torch.randn(4, 2, 3, 3, generator=g, dtype=torch.float64)


def network(x_t, t):
    """A function of x_t and t with twice the channels of x_t."""
    shift = t.view(-1, 1, 1, 1) / 10
    return torch.cat([0.7 * x_t + shift, 0.3 * x_t - shift], dim=1)


def prediction_only(x_t, t):
    return network(x_t, t)[:, :2]


def close(got, expected):
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", ["epsilon", "x_0", "v", "mean"])
def test_simple_is_the_mean_squared_error_per_sample(kind):
    objective = Objective(config(prediction=kind), 2)
    x_0, eps = batch()
    x_t = objective.process.q_sample(x_0, T, eps)
    target = objective.process.target(kind, x_0, x_t, T, eps)
    loss = objective(prediction_only, x_0, T, eps)
    assert loss.shape == (4,)
    close(loss, ((prediction_only(x_t, T) - target) ** 2).mean((1, 2, 3)))
    assert objective.out_channels == 2


def test_epsilon_mse_by_hand():
    # One pixel, alpha_bar_1 = 0.95, x_0 = 0.6, eps = -1; the network says 0.
    loss = Objective(config(), 1)(
        lambda x_t, t: 0 * x_t, torch.full((1, 1, 1, 1), 0.6), torch.tensor([0]), -torch.ones(1, 1, 1, 1)
    )
    assert loss.item() == 1.0
    seen = []
    Objective(config(), 1)(
        lambda x_t, t: seen.append((x_t.item(), t.item())) or x_t,
        torch.full((1, 1, 1, 1), 0.6),
        torch.tensor([0]),
        -torch.ones(1, 1, 1, 1),
    )
    assert seen[0] == (pytest.approx(math.sqrt(0.95) * 0.6 - math.sqrt(0.05), rel=1e-6), 0)


@pytest.mark.parametrize("kind", ["epsilon", "x_0", "v"])
def test_min_snr_weights_the_same_x_0_error_whatever_is_predicted(kind):
    gamma = 1.5
    objective = Objective(config(prediction=kind, min_snr_gamma=gamma), 2)
    snr = objective.process.schedule.snr[T]
    assert (snr < gamma).any()
    assert (snr > gamma).any()
    x_0, eps = batch()
    x_t = objective.process.q_sample(x_0, T, eps)
    implied = objective.process.to_x0(kind, prediction_only(x_t, T), x_t, T)
    expected = snr.clamp(max=gamma) * ((implied - x_0) ** 2).mean((1, 2, 3))
    close(objective(prediction_only, x_0, T, eps), expected)


@pytest.mark.parametrize(
    ("kind", "variance"),
    [("mean", "learned"), ("epsilon", "fixed_large"), ("v", "learned_range"), ("x_0", "fixed_small")],
)
def test_bound_is_t_times_one_term(kind, variance):
    objective = Objective(config(prediction=kind, variance=variance, objective="bound"), 2)
    learned = variance.startswith("learned")
    assert objective.out_channels == (4 if learned else 2)
    denoiser = network if learned else prediction_only
    x_0, eps = batch()
    x_t = objective.process.q_sample(x_0, T, eps)
    p = objective.reverse(denoiser(x_t, T), x_t, T)
    close(objective(denoiser, x_0, T, eps), 10 * bound_term(objective.process, p, x_0, x_t, T))


def test_bound_with_fixed_variance_is_the_weighted_epsilon_error_of_equation_12():
    objective = Objective(config(objective="bound", variance="fixed_small"), 2)
    x_0, eps = batch()
    s, t = objective.process.schedule, T[1:]
    x_t = objective.process.q_sample(x_0[1:], t, eps[1:])
    error = ((prediction_only(x_t, t) - eps[1:]) ** 2).mean((1, 2, 3))
    weight = s.betas[t] ** 2 / (2 * s.posterior_variance[t] * s.alphas[t] * (1 - s.alpha_bars[t]))
    close(objective(prediction_only, x_0[1:], t, eps[1:]), 10 * weight * error / math.log(2))


@pytest.mark.parametrize("kind", ["epsilon", "v", "mean"])
def test_hybrid_adds_a_bound_that_moves_the_variance_only(kind):
    settings = {"prediction": kind, "variance": "learned_range"}
    hybrid = Objective(config(objective="hybrid", hybrid_weight=0.25, **settings), 2)
    bound = Objective(config(objective="bound", **settings), 2)
    simple = Objective(config(prediction=kind), 2)
    x_0, eps = batch()
    loss = hybrid(network, x_0, T, eps)
    close(loss, simple(prediction_only, x_0, T, eps) + 0.25 * bound(network, x_0, T, eps))

    x_t = hybrid.process.q_sample(x_0, T, eps)
    out = network(x_t, T).requires_grad_()
    (of_hybrid,) = torch.autograd.grad(hybrid(lambda *_: out, x_0, T, eps).sum(), out)
    (of_bound,) = torch.autograd.grad(bound(lambda *_: out, x_0, T, eps).sum(), out)
    (of_simple,) = torch.autograd.grad(simple(lambda *_: out[:, :2], x_0, T, eps).sum(), out)
    close(of_hybrid[:, :2], of_simple[:, :2])
    close(of_hybrid[:, 2:], 0.25 * of_bound[:, 2:])
    assert (of_bound[:, 2:] != 0).all()


def test_the_system_of_2015_in_float32_has_finite_gradients_for_mean_and_variance():
    objective = Objective(DiffusionConfig(prediction="mean", variance="learned", objective="bound"), 1)
    x_0 = torch.linspace(-1, 1, 16).view(4, 1, 2, 2)
    out = torch.zeros(4, 2, 2, 2, requires_grad=True)
    loss = objective(lambda *_: out, x_0, torch.tensor([0, 1, 500, 999]), torch.ones_like(x_0))
    loss.sum().backward()
    assert loss.dtype == torch.float32
    assert loss.isfinite().all()
    assert out.grad.isfinite().all()
    assert (out.grad.flatten(1).abs().sum(1) > 0).all()


def test_refuses_a_network_of_the_wrong_width():
    x_0, eps = batch()
    with pytest.raises(ValueError, match="channels"):
        Objective(config(), 2)(lambda x_t, t: torch.cat([x_t, x_t, x_t], 1), x_0, T, eps)
