"""The closed forms against Bayes' rule and quadrature, through torch.distributions."""

import math

import pytest
import torch
from torch.distributions import Normal

from pipeline.config.model import DiffusionConfig
from pipeline.diffusion.forward_process import Process
from pipeline.diffusion.objective import Objective
from pipeline.diffusion.schedule import make_schedule

pytestmark = pytest.mark.oracle


def column(values):
    return values.view(-1, 1, 1, 1)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "sigmoid", "quadratic"])
def test_posterior_is_bayes_rule(schedule):
    """q(x_{t-1} | x_t, x_0) q(x_t | x_0) = q(x_t | x_{t-1}) q(x_{t-1} | x_0), pointwise (Eq. 2, 4, 6, 7)."""
    process = Process(make_schedule(DiffusionConfig(num_timesteps=50, schedule=schedule)))
    t = torch.arange(1, 50)
    x_0, x_prev, x_t = torch.randn(3, 49, 1, 1, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    zero, one = torch.zeros_like(x_0), torch.ones_like(x_0)

    def marginal(x, t):
        return Normal(process.q_sample(x_0, t, zero), process.q_sample(zero, t, one)).log_prob(x)

    step = Normal(process.q_step(x_prev, t, zero), process.q_step(zero, t, one)).log_prob(x_t)
    mean, variance, log_variance = process.q_posterior(x_0, x_t, t)
    posterior = Normal(mean, variance.sqrt()).log_prob(x_prev)
    torch.testing.assert_close(posterior + marginal(x_t, t), step + marginal(x_prev, t - 1), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(log_variance.exp(), variance, rtol=1e-12, atol=0)


def test_bound_by_monte_carlo_over_the_trajectory():
    """Eq. 3 (log ratios along a sampled trajectory) and Eq. 5 (KLs) are one number for a one-pixel model.

    Only L_{1:T-1}: Eq. 3 without its decoder and prior, by 200,000 trajectories and torch.distributions.
    """
    config = DiffusionConfig(num_timesteps=4, beta_start=0.1, beta_end=0.4, variance="learned", objective="bound")
    objective = Objective(config, 1)
    process, num = objective.process, 200_000
    x_0 = torch.full((num, 1, 1, 1), 0.4, dtype=torch.float64)
    noise = torch.randn(4, num, 1, 1, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def network(x_t, t):
        return torch.cat([0.5 * x_t, 0.2 * x_t - 0.1], dim=1)

    path, log_ratio = [x_0], 0.0
    for step in range(4):
        path.append(process.q_step(path[-1], torch.full((num,), step), noise[step]))
    for step in range(1, 4):
        t = torch.full((num,), step)
        mean, variance, _ = process.q_posterior(x_0, path[step + 1], t)
        p = objective.reverse(network(path[step + 1], t), path[step + 1], t)
        q = Normal(mean, variance.sqrt().expand_as(mean))
        log_ratio = log_ratio + q.log_prob(path[step]) - Normal(p.mean, (p.log_variance / 2).exp()).log_prob(path[step])
    by_path = log_ratio.mean().item() / math.log(2)
    by_kl = sum(objective(network, x_0, torch.full((num,), s), noise[s]).mean().item() / 4 for s in range(1, 4))
    standard_error = log_ratio.std().item() / math.log(2) / num**0.5
    assert by_kl == pytest.approx(by_path, abs=5 * standard_error)
    assert standard_error < 0.01 * by_kl
