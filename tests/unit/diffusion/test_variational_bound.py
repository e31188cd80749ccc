"""The bound's terms: the discretised decoder as a probability, the weighting, the units."""

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from pipeline.diffusion.forward_process import Process
from pipeline.diffusion.reverse_process import Gaussian
from pipeline.diffusion.schedule import schedule_from_betas
from pipeline.diffusion.variational_bound import bound_term, decoder_log_likelihood, gaussian_kl, prior_term

pytestmark = pytest.mark.unit

LEVELS = torch.arange(256, dtype=torch.float64) / 127.5 - 1
PROCESS = Process(schedule_from_betas(torch.tensor([0.1, 0.2, 0.5], dtype=torch.float64)))


def close(got, expected, tolerance=1e-10):
    torch.testing.assert_close(got, torch.as_tensor(expected, dtype=got.dtype), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("mean", [-1.4, -1.0, 0.1234, 1.0])
@pytest.mark.parametrize("std", [0.003, 0.05, 2.0])
def test_decoder_sums_to_one_over_the_levels(mean, std):
    log_p = decoder_log_likelihood(LEVELS, torch.tensor(mean).double(), torch.tensor(std).double().log() * 2)
    close(log_p.exp().sum(), 1.0)


def test_decoder_is_the_gaussian_integrated_over_the_bin():
    mean, std = torch.tensor(0.2).double(), torch.tensor(0.3).double()
    edges = torch.cat([torch.tensor([-math.inf]), (LEVELS[1:] + LEVELS[:-1]) / 2, torch.tensor([math.inf])]).double()
    cdf = Normal(mean, std, validate_args=False).cdf(edges)
    log_p = decoder_log_likelihood(LEVELS, mean, 2 * std.log())
    torch.testing.assert_close(log_p, cdf.diff().log(), rtol=1e-8, atol=1e-8)


def test_decoder_keeps_a_gradient_far_out_in_float32():
    mean = torch.tensor([0.9, -0.9, 0.0], requires_grad=True)
    log_p = decoder_log_likelihood(torch.tensor([-0.5, 0.5, 1.0]), mean, torch.tensor(2 * math.log(0.01)))
    close(log_p, [Normal(0.0, 1.0).log_prob(torch.tensor(z)).item() for z in (139.6, 139.6, 99.6)], 0.01)
    log_p.sum().backward()
    assert (mean.grad.sign() == torch.tensor([-1.0, 1.0, 1.0])).all()


def test_decoder_survives_a_bin_below_rounding():
    log_variance = torch.tensor(40.0, requires_grad=True)
    log_p = decoder_log_likelihood(torch.tensor(0.0), torch.tensor(0.1), log_variance)
    log_p.backward()
    # Capped at a share of 1e-7 of the lower tail's half.
    close(log_p, math.log(0.5e-7), 1e-4)
    assert log_variance.grad.isfinite()


def test_kl_against_torch_distributions():
    g = torch.Generator().manual_seed(0)
    m1, lv1, m2, lv2 = torch.randn(4, 50, generator=g, dtype=torch.float64)
    expected = kl_divergence(Normal(m1, (lv1 / 2).exp()), Normal(m2, (lv2 / 2).exp()))
    close(gaussian_kl(m1, lv1, m2, lv2), expected)


def test_a_term_is_the_decoder_at_t_0_and_a_kl_after_it_in_bits_per_dimension():
    g = torch.Generator().manual_seed(1)
    x_0 = LEVELS[torch.randint(256, (3, 2, 4, 4), generator=g)]
    x_t, mean, log_variance = torch.randn(3, 3, 2, 4, 4, generator=g, dtype=torch.float64)
    t = torch.tensor([0, 1, 2])
    got = bound_term(PROCESS, Gaussian(x_0, mean, log_variance), x_0, x_t, t)
    posterior, variance, _ = PROCESS.q_posterior(x_0, x_t, t)
    expected = [-decoder_log_likelihood(x_0[0], mean[0], log_variance[0]).mean()]
    for row in (1, 2):
        q = Normal(posterior[row], variance[row].sqrt().expand_as(posterior[row]))
        expected.append(kl_divergence(q, Normal(mean[row], (log_variance[row] / 2).exp())).mean())
    close(got, torch.stack(expected) / math.log(2))


def test_prior_term_is_the_kl_of_the_last_marginal():
    x_0 = torch.linspace(-1, 1, 24, dtype=torch.float64).view(4, 3, 2, 1)
    q = Normal(0.6 * x_0, torch.full_like(x_0, 0.8))
    close(prior_term(PROCESS, x_0), kl_divergence(q, Normal(0.0, 1.0)).mean((1, 2, 3)) / math.log(2))
