"""Bits per dimension: every term once, with the noise of its own timestep; the rate-distortion table."""

import pytest
import torch

from pipeline.config.model import DiffusionConfig
from pipeline.diffusion.likelihood import Likelihood, bits_per_dim, rate_distortion
from pipeline.diffusion.noise import SampleNoise
from pipeline.diffusion.objective import Objective
from pipeline.diffusion.variational_bound import bound_term, prior_term

pytestmark = pytest.mark.unit

OBJECTIVE = Objective(DiffusionConfig(num_timesteps=6, beta_start=0.05, beta_end=0.5), 3)
NOISE = SampleNoise(0, torch.tensor([3, 8]), (3, 4, 4))
X_0 = torch.randint(256, (2, 3, 4, 4), generator=torch.Generator().manual_seed(0)) / 127.5 - 1


def denoiser(x_t, t):
    return 0.5 * x_t - 0.1 * t.view(-1, 1, 1, 1)


def test_every_term_with_its_own_noise():
    got = bits_per_dim(OBJECTIVE, denoiser, X_0, NOISE)
    assert got.terms.shape == (2, 6)
    for step in range(6):
        t = torch.full((2,), step)
        x_t = OBJECTIVE.process.q_sample(X_0, t, NOISE.at(step))
        p = OBJECTIVE.reverse(denoiser(x_t, t), x_t, t)
        torch.testing.assert_close(got.terms[:, step].float(), bound_term(OBJECTIVE.process, p, X_0, x_t, t))
        guess = p.x_0.clamp(-1, 1)
        assert step == 0 or not torch.equal(guess, p.x_0), "a case that clipping matters in"
        torch.testing.assert_close(got.x_0_mse[:, step].float(), (guess - X_0).square().mean((1, 2, 3)))
    torch.testing.assert_close(got.prior.float(), prior_term(OBJECTIVE.process, X_0))
    torch.testing.assert_close(got.total, got.terms.sum(1) + got.prior)
    assert not got.total.requires_grad
    assert got.total.dtype == torch.float64


def test_the_training_bound_is_its_mean_over_timesteps():
    objective = Objective(DiffusionConfig(num_timesteps=6, beta_start=0.05, beta_end=0.5, objective="bound"), 3)
    got = bits_per_dim(objective, denoiser, X_0, NOISE)
    losses = [objective(denoiser, X_0, torch.full((2,), step), NOISE.at(step)) for step in range(6)]
    torch.testing.assert_close(torch.stack(losses).mean(0).double() + got.prior, got.total, rtol=1e-5, atol=1e-5)


def test_rate_distortion_by_hand():
    terms = torch.tensor([[1.0, 2.0, 4.0], [3.0, 2.0, 6.0]], dtype=torch.float64)
    mse = torch.tensor([[0.0, 0.25, 1.0], [0.0, 0.25, 1.0]], dtype=torch.float64)
    parts = [Likelihood(terms[k : k + 1], torch.tensor([0.5]).double(), mse[k : k + 1]) for k in range(2)]
    table = rate_distortion(parts)
    assert [point.t for point in table] == [2, 1, 0]
    assert [point.rate for point in table] == pytest.approx([0.5, 5.5, 7.5])
    assert [point.distortion for point in table] == pytest.approx([127.5, 63.75, 0.0])
