"""p_theta from the raw output: order of the channels, and the variances."""

import math

import pytest
import torch

from pipeline.diffusion.clipping import DynamicThreshold, clip_to_unit
from pipeline.diffusion.forward_process import Process
from pipeline.diffusion.reverse_process import Reverse, split
from pipeline.diffusion.schedule import schedule_from_betas

pytestmark = pytest.mark.unit

PROCESS = Process(schedule_from_betas(torch.tensor([0.1, 0.2, 0.5], dtype=torch.float64)))
T = torch.tensor([0, 1, 2])
X_T = torch.randn(3, 2, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
OUT = torch.randn(3, 4, 2, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
SMALL = torch.tensor([0.2 * 0.1 / 0.28, 0.2 * 0.1 / 0.28, 0.5 * 0.28 / 0.64], dtype=torch.float64).view(3, 1, 1, 1)
BETA = torch.tensor([0.1, 0.2, 0.5], dtype=torch.float64).view(3, 1, 1, 1)


def close(got, expected):
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def test_split_by_channels():
    prediction, raw = split(OUT, 2)
    assert torch.equal(prediction, OUT[:, :2])
    assert torch.equal(raw, OUT[:, 2:])
    assert split(OUT, 4) == (OUT, None)
    with pytest.raises(ValueError, match="4 channels; 3"):
        split(OUT, 3)


def test_a_fixed_variance_ignores_learned_variance_channels():
    close(Reverse(PROCESS, "x_0", "fixed_small")(OUT, X_T, T).log_variance, SMALL.log())
    large = torch.cat([SMALL[:1], BETA[1:]])
    close(Reverse(PROCESS, "x_0", "fixed_large")(OUT[:, :2], X_T, T).log_variance, large.log())


def test_learned_is_log_beta_plus_output():
    p = Reverse(PROCESS, "x_0", "learned")(OUT, X_T, T)
    close(p.log_variance, BETA.log() + OUT[:, 2:])
    close(p.x_0, OUT[:, :2])


def test_learned_range_interpolates_the_logarithms():
    reverse = Reverse(PROCESS, "x_0", "learned_range")
    p = reverse(OUT, X_T, T)
    share = (OUT[:, 2:] + 1) / 2
    close(p.log_variance, share * BETA.log() + (1 - share) * SMALL.log())
    ends = torch.cat([OUT[:, :2], torch.ones(3, 1, 2, 2, dtype=torch.float64), -torch.ones(3, 1, 2, 2).double()], 1)
    log_variance = reverse(ends, X_T, T).log_variance
    close(log_variance[:, :1], BETA.log().expand(3, 1, 2, 2))
    close(log_variance[:, 1:], SMALL.log().expand(3, 1, 2, 2))


@pytest.mark.parametrize("variance", ["learned", "learned_range"])
def test_a_learned_variance_needs_its_channels(variance):
    with pytest.raises(ValueError, match="twice as many"):
        Reverse(PROCESS, "x_0", variance)(OUT[:, :2], X_T, T)
    assert Reverse(PROCESS, "x_0", variance).learns_variance
    assert not Reverse(PROCESS, "x_0", "fixed_large").learns_variance


@pytest.mark.parametrize("kind", ["epsilon", "x_0", "v"])
def test_the_mean_is_the_posterior_mean_of_the_predicted_x_0(kind):
    p = Reverse(PROCESS, kind, "fixed_large")(OUT[:, :2], X_T, T)
    close(p.x_0, PROCESS.to_x0(kind, OUT[:, :2], X_T, T))
    close(p.mean, PROCESS.q_posterior(p.x_0, X_T, T)[0])


def test_epsilon_gives_equation_11():
    eps = OUT[:, :2]
    alpha, alpha_bar = 1 - BETA, torch.tensor([0.9, 0.72, 0.36], dtype=torch.float64).view(3, 1, 1, 1)
    expected = (X_T - BETA / (1 - alpha_bar).sqrt() * eps) / alpha.sqrt()
    close(Reverse(PROCESS, "epsilon", "fixed_large")(eps, X_T, T).mean, expected)


def test_a_predicted_mean_is_taken_as_it_is_unless_clipped():
    reverse = Reverse(PROCESS, "mean", "fixed_large")
    raw = OUT[:, :2]
    p = reverse(raw, X_T, T)
    assert torch.equal(p.mean, raw)
    close(PROCESS.q_posterior(p.x_0, X_T, T)[0], raw)
    clipped = reverse(raw, X_T, T, clip_to_unit)
    close(clipped.x_0, p.x_0.clamp(-1, 1))
    close(clipped.mean, PROCESS.q_posterior(clipped.x_0, X_T, T)[0])
    assert not torch.equal(clipped.mean, raw)


def test_clipping_moves_the_mean_too():
    reverse = Reverse(PROCESS, "epsilon", "fixed_small")
    clipped = reverse(3 * OUT[:, :2], X_T, T, clip_to_unit)
    assert clipped.x_0.abs().max() == 1
    close(clipped.mean, PROCESS.q_posterior(clipped.x_0, X_T, T)[0])


def test_dynamic_threshold_by_hand():
    x_0 = torch.tensor([[0.0, 1.0, -2.0, 3.0, -4.0], [0.1, -0.2, 0.3, 0.4, -0.9]]).view(2, 1, 1, 5)
    got = DynamicThreshold(0.5)(x_0)
    assert torch.allclose(got[0].flatten(), torch.tensor([0.0, 0.5, -1.0, 1.0, -1.0]))
    assert torch.equal(got[1], x_0[1])
    assert torch.allclose(DynamicThreshold(1.0)(x_0)[0], x_0[0] / 4)
    assert math.isclose(DynamicThreshold(0.75)(x_0)[0].abs().max().item(), 1.0)
