"""Noise schedules against independently computed numbers."""

import math

import pytest
import torch

from pipeline.config.model import DiffusionConfig
from pipeline.diffusion.schedule import evenly_spaced, make_schedule, respace, schedule_from_betas
from pipeline.errors import ConfigError

pytestmark = pytest.mark.unit


def close(got, expected, tolerance=1e-12):
    torch.testing.assert_close(
        got.double(), torch.as_tensor(expected, dtype=torch.float64), rtol=tolerance, atol=tolerance
    )


def test_tables_of_three_steps_by_hand():
    s = schedule_from_betas(torch.tensor([0.1, 0.2, 0.5], dtype=torch.float64))
    assert s.num_timesteps == 3
    close(s.alphas, [0.9, 0.8, 0.5])
    close(s.alpha_bars, [0.9, 0.72, 0.36])
    close(s.alpha_bars_prev, [1.0, 0.9, 0.72])
    variance = [0.0, 0.2 * 0.1 / 0.28, 0.5 * 0.28 / 0.64]
    close(s.posterior_variance, variance)
    close(s.posterior_mean_coef_x0, [1.0, math.sqrt(0.9) * 0.2 / 0.28, math.sqrt(0.72) * 0.5 / 0.64])
    close(s.posterior_mean_coef_xt, [0.0, math.sqrt(0.8) * 0.1 / 0.28, math.sqrt(0.5) * 0.28 / 0.64])
    close(s.log_variance_small, [math.log(variance[1]), math.log(variance[1]), math.log(variance[2])])
    close(s.log_variance_large, [math.log(variance[1]), math.log(0.2), math.log(0.5)])
    close(s.snr, [9.0, 0.72 / 0.28, 0.36 / 0.64])
    assert s.timesteps.tolist() == [0, 1, 2]
    assert all(getattr(s, name).dtype == torch.float64 for name in ("betas", "snr", "log_variance_large"))


def test_the_schedule_of_the_paper():
    s = make_schedule(DiffusionConfig())
    close(s.betas[[0, 1, -1]], [1e-4, 1e-4 + (0.02 - 1e-4) / 999, 0.02])
    # Section 4: L_T is about 1e-5 bits/dim because alpha_bar_T is about 4e-5.
    assert s.alpha_bars[-1].item() == pytest.approx(4.0358e-5, rel=1e-4)


def test_quadratic_is_linear_in_the_root():
    s = make_schedule(DiffusionConfig(num_timesteps=5, schedule="quadratic", beta_start=0.01, beta_end=0.25))
    close(s.betas, [0.1**2, 0.2**2, 0.3**2, 0.4**2, 0.5**2])


def test_cosine_follows_its_formula_up_to_the_cap():
    s = make_schedule(DiffusionConfig(num_timesteps=50, schedule="cosine"))
    f = [math.cos((k / 50 + 0.008) / 1.008 * math.pi / 2) ** 2 for k in range(51)]
    close(s.alpha_bars[:-1], [f[k] / f[0] for k in range(1, 50)], 1e-10)
    assert s.betas[-1].item() == 0.999


def test_sigmoid_follows_its_formula_up_to_the_cap():
    s = make_schedule(DiffusionConfig(num_timesteps=50, schedule="sigmoid"))
    gamma = [1 / (1 + math.exp(-(6 * k / 50 - 3))) for k in range(51)]
    close(s.alpha_bars[:-1], [(gamma[50] - gamma[k]) / (gamma[50] - gamma[0]) for k in range(1, 50)], 1e-10)
    assert s.betas[-1].item() == 0.999


@pytest.mark.parametrize("name", ["linear", "cosine", "sigmoid", "quadratic"])
def test_zero_terminal_snr_keeps_the_first_root_and_ends_at_zero(name):
    plain = make_schedule(DiffusionConfig(schedule=name))
    zero = make_schedule(DiffusionConfig(schedule=name, zero_terminal_snr=True, prediction="v"))
    assert zero.alpha_bars[-1].item() == 0.0
    assert zero.betas[-1].item() == 1.0
    root, first, last = plain.alpha_bars.sqrt(), plain.alpha_bars[0].sqrt(), plain.alpha_bars[-1].sqrt()
    close(zero.alpha_bars.sqrt(), first * (root - last) / (first - last), 1e-9)
    assert all(torch.isfinite(getattr(zero, table)).all() for table in ("posterior_mean_coef_x0", "log_variance_small"))


def test_evenly_spaced_ends_at_the_last_timestep():
    assert evenly_spaced(1000, 10) == [99, 199, 299, 399, 499, 599, 699, 799, 899, 999]
    assert evenly_spaced(10, 3) == [2, 6, 9]
    assert evenly_spaced(7, 7) == [0, 1, 2, 3, 4, 5, 6]
    assert evenly_spaced(7, 1) == [6]


@pytest.mark.parametrize("num", [0, 11])
def test_evenly_spaced_refuses_impossible_counts(num):
    with pytest.raises(ConfigError, match=r"1\.\.10"):
        evenly_spaced(10, num)


def test_respacing_keeps_the_marginals_and_remembers_where_it_came_from():
    full = make_schedule(DiffusionConfig(num_timesteps=20))
    part = respace(full, [2, 3, 11, 19])
    close(part.alpha_bars, full.alpha_bars[[2, 3, 11, 19]], 1e-14)
    close(part.betas[2], 1 - full.alpha_bars[11] / full.alpha_bars[3])
    assert part.timesteps.tolist() == [2, 3, 11, 19]
    assert respace(part, [1, 3]).timesteps.tolist() == [3, 19]


def test_respacing_to_one_step_has_finite_tables():
    one = respace(make_schedule(DiffusionConfig(num_timesteps=20)), [19])
    close(one.log_variance_small, one.betas.log())
    close(one.log_variance_large, one.betas.log())


@pytest.mark.parametrize("timesteps", [[], [3, 2], [2, 2], [-1, 2], [0, 20]])
def test_respacing_refuses_what_is_not_an_ascending_subset(timesteps):
    with pytest.raises(ConfigError, match="ascend"):
        respace(make_schedule(DiffusionConfig(num_timesteps=20)), timesteps)


def test_respacing_to_everything_changes_nothing():
    full = make_schedule(DiffusionConfig(num_timesteps=20))
    assert respace(full, range(20)) is full
