"""Data whose every answer is known: x_0 ~ N(mu, s^2), so the ideal denoiser is E[x_0 | x_t] in closed form.

With it each sampler is an affine map of its Gaussian noises. So the exact mean and variance of what it makes come from
running it once on the zero noise and once on each basis vector: no Monte Carlo, errors down to 1e-12.
"""

import math

import pytest
import torch

from pipeline.config.model import DiffusionConfig
from pipeline.diffusion.likelihood import bits_per_dim
from pipeline.diffusion.objective import Objective
from pipeline.diffusion.sampler import make_sampler
from pipeline.diffusion.schedule import make_schedule
from pipeline.diffusion.variational_bound import bound_term, prior_term

pytestmark = pytest.mark.oracle

MU, S2 = 0.4, 2.0
# Starts with almost no noise and ends with almost no signal, so that neither end hides the order of the steps between.
FINE = {"num_timesteps": 8192, "beta_start": 1e-3 / 8192, "beta_end": 40 / 8192}
SAMPLERS = {
    "ddpm fixed_small": ("ddpm", 0.0, "fixed_small", 1),
    "ddpm fixed_large": ("ddpm", 0.0, "fixed_large", 1),
    "ddim eta 0": ("ddim", 0.0, None, 1),
    "ddim eta 0.5": ("ddim", 0.5, None, 1),
    "dpm++2m": ("dpm++2m", 0.0, None, 2),
    "dpm++2m-sde": ("dpm++2m-sde", 0.0, None, 2),
    "heun": ("heun", 0.0, None, 2),
}


class Basis:
    """Row 0: no noise at all; row 1: x_T = 1; row 2 + k: the noise at the k-th timestep = 1."""

    def __init__(self, timesteps):
        self.row = {t: 2 + k for k, t in enumerate(timesteps)}

    def _unit(self, row):
        x = torch.zeros(len(self.row) + 2, 1, 1, 1, dtype=torch.float64)
        x[row] = 1.0
        return x

    def initial(self):
        return self._unit(1)

    def at(self, step):
        return self._unit(self.row[step])


def moments(x):
    """Exact mean and variance of an affine map of independent standard normals."""
    x = x.flatten()
    return x[0].item(), (x[1:] - x[0]).square().sum().item()


def ideal_x_0(config, mu=MU, s2=S2):
    alpha_bars = make_schedule(config).alpha_bars

    def denoiser(x_t, t):
        a = alpha_bars[t].view(-1, 1, 1, 1).to(x_t.dtype)
        return mu + a.sqrt() * s2 / (a * s2 + 1 - a) * (x_t - a.sqrt() * mu)

    return denoiser


def ideal_log_variance(alpha_bar, alpha_bar_prev, s2):
    """log Var[x_{t-1} | x_t] for Gaussian data, by conditioning the joint Gaussian of the two."""
    beta = 1 - alpha_bar / alpha_bar_prev
    before = alpha_bar_prev * s2 + 1 - alpha_bar_prev
    return (before * beta / ((1 - beta) * before + beta)).log()


def final(config, name, eta, variance, steps):
    sampler = make_sampler(config, name, steps, eta, variance, False)
    *_, last = sampler.run(ideal_x_0(config), Basis(sampler.timesteps))
    return moments(last.x_t)


def test_every_sampler_converges_at_its_order():
    config = DiffusionConfig(prediction="x_0", variance="fixed_large", **FINE)
    counts = (8, 16, 32, 64, 128, 256)
    lines = [f"{'|variance - s^2|':<18}" + "".join(f"{n:>10}" for n in counts) + "     order"]
    for label, (name, eta, variance, order) in SAMPLERS.items():
        results = [final(config, name, eta, variance, n) for n in counts]
        errors = [abs(v - S2) for _, v in results]
        measured = math.log2(errors[-2] / errors[-1])
        lines.append(f"{label:<18}" + "".join(f"{e:>10.1e}" for e in errors) + f"{measured:>10.2f}")
        assert all(abs(m - MU) < 1e-4 for m, _ in results), label
        # 2M reaches its order slowly: its first steps span several units of lambda.
        assert order - (0.45 if order == 2 and name != "heun" else 0.15) < measured < order + 0.15, (label, measured)
        assert errors[-1] < (0.1 if order == 1 else 1e-2), label
    print("\n" + "\n".join(lines))  # pytest -s shows it


def test_heun_is_stable_where_sigma_explodes():
    config = DiffusionConfig(prediction="x_0", schedule="cosine")
    for steps in (4, 8, 16):
        _, variance = final(config, "heun", 0.0, None, steps)
        assert abs(variance - S2) < 6 / steps**2


@pytest.mark.parametrize("steps", [3, 10, 40])
def test_ancestral_with_the_ideal_variance_has_the_exact_marginals_at_any_number_of_steps(steps):
    """For Gaussian data q(x_{t-1} | x_t) is Gaussian: given it, ancestral sampling makes no error at all."""
    config = DiffusionConfig(
        num_timesteps=40, zero_terminal_snr=True, prediction="x_0", variance="learned", objective="bound"
    )
    sampler = make_sampler(config, "ddpm", steps, 0.0, None, False)
    alpha_bars = torch.cat([torch.ones(1).double(), make_schedule(config).alpha_bars])
    visited = sampler.timesteps
    before = dict(zip(visited, [*visited[1:], -1], strict=True))
    x_0 = ideal_x_0(config)

    def denoiser(x_t, t):
        now, prev = alpha_bars[t + 1], alpha_bars[torch.tensor([before[int(k)] + 1 for k in t])]
        raw = ideal_log_variance(now, prev, S2) - (1 - now / prev).log()
        return torch.cat([x_0(x_t, t), raw.view(-1, 1, 1, 1)], dim=1)

    for state in sampler.run(denoiser, Basis(visited)):
        mean, variance = moments(state.x_t)
        a = alpha_bars[before[state.t] + 1].item()
        assert mean == pytest.approx(math.sqrt(a) * MU, abs=1e-9)
        if before[state.t] >= 0:  # the last step returns the mean, without its noise
            assert variance == pytest.approx(a * S2 + 1 - a, rel=1e-9)


@pytest.mark.parametrize("kind", ["epsilon", "v", "mean"])
@pytest.mark.parametrize("name", ["ddpm", "ddim", "dpm++2m", "dpm++2m-sde", "heun"])
def test_samplers_do_not_care_what_the_network_predicts(name, kind):
    steps = list(range(40))
    by_x_0 = DiffusionConfig(num_timesteps=40, beta_start=0.01, beta_end=0.3, prediction="x_0")
    other = by_x_0.model_copy(update={"prediction": kind})
    process, x_0 = Objective(other, 1).process, ideal_x_0(by_x_0)

    def denoiser(x_t, t):
        predicted = x_0(x_t, t)
        return process.target(kind, predicted, x_t, t, process.to_eps("x_0", predicted, x_t, t))

    a = make_sampler(by_x_0, name, steps, 0.5, None, False).run(x_0, Basis(steps))
    b = make_sampler(other, name, steps, 0.5, None, False).run(denoiser, Basis(steps))
    for state_a, state_b in zip(a, b, strict=True):
        torch.testing.assert_close(state_a.x_t, state_b.x_t, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(("schedule", "mu", "s2"), [("linear", 0.3, 0.25), ("cosine", -0.2, 0.09)])
def test_terms_of_the_bound_equal_their_analytic_expectation(schedule, mu, s2):
    """E[L_{t-1}] = I(x_{t-1}; x_0 | x_t) when p is the true reverse, and the KLs telescope with L_T to

        sum_t E[L_{t-1}] + E[L_T] = I(x_1; x_0) + KL(q(x_T) || N(0, 1)).

    The terms are quadratic in (x_0, eps), so two-point quadrature takes their expectation exactly.
    """
    config = DiffusionConfig(
        num_timesteps=100, schedule=schedule, beta_end=0.1, prediction="x_0", variance="learned", objective="bound"
    )
    objective = Objective(config, 1)
    bars = objective.process.schedule.alpha_bars
    prev = objective.process.schedule.alpha_bars_prev
    log_variance = ideal_log_variance(bars, prev, s2)
    x_0_of = ideal_x_0(config, mu, s2)
    x_0 = (mu + math.sqrt(s2) * torch.tensor([1.0, 1.0, -1.0, -1.0], dtype=torch.float64)).view(4, 1, 1, 1)
    eps = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64).view(4, 1, 1, 1)

    total = prior_term(objective.process, x_0).mean().item()
    for step in range(1, 100):
        t = torch.full((4,), step)
        x_t = objective.process.q_sample(x_0, t, eps)
        raw = (log_variance[step] - objective.process.schedule.betas[step].log()).expand(4, 1, 1, 1)
        p = objective.reverse(torch.cat([x_0_of(x_t, t), raw], dim=1), x_t, t)
        term = bound_term(objective.process, p, x_0, x_t, t).mean().item()
        # The information x_{t-1} adds about x_0 to x_t's: with I(x_t; x_0) = log2(1 + snr s^2) / 2.
        snr, snr_prev = bars[step] / (1 - bars[step]), prev[step] / (1 - prev[step])
        gain = 0.5 * math.log2((1 + snr_prev * s2) / (1 + snr * s2))
        assert term == pytest.approx(gain, rel=1e-7, abs=1e-12)
        total += term
    mean, var = math.sqrt(bars[-1]) * mu, (bars[-1] * s2 + 1 - bars[-1]).item()
    leftover = 0.5 * (var + mean**2 - 1 - math.log(var)) / math.log(2)
    information = 0.5 * math.log2(1 + bars[0] / (1 - bars[0]) * s2)
    assert total == pytest.approx(information + leftover, rel=1e-7)


class PlusMinus:
    """Noise +1 in the first half of the rows and -1 in the second: exact expectations of quadratics."""

    def __init__(self, half):
        self.half = half

    def at(self, step):
        return torch.cat([self.half, -self.half])

    initial = None


def test_bits_per_dimension_of_gaussian_data_are_minus_the_log_likelihood():
    """With the ideal reverse the bound is tight at each x_0: log2 of the density times a grey level's width.

    Noise at t = 0 many grey levels wide, so that rounding costs the decoder nothing visible.
    """
    mu, s2 = 0.1, 0.09
    config = DiffusionConfig(
        num_timesteps=40, beta_start=0.03, beta_end=0.5, prediction="x_0", variance="learned", objective="bound"
    )
    objective = Objective(config, 1)
    schedule = objective.process.schedule
    raw = ideal_log_variance(schedule.alpha_bars, schedule.alpha_bars_prev, s2) - schedule.betas.log()
    # At t = 0 the reverse variance is that of the data given x_1.
    a = schedule.alpha_bars[0]
    raw[0] = (s2 * (1 - a) / (a * s2 + 1 - a)).log() - schedule.betas[0].log()
    x_0_of = ideal_x_0(config, mu, s2)

    def denoiser(x_t, t):
        return torch.cat([x_0_of(x_t, t), raw[t].view(-1, 1, 1, 1).expand_as(x_t)], dim=1)

    levels = (torch.tensor([60.0, 100, 140, 200]).double() / 127.5 - 1).view(4, 1, 1, 1)
    x_0 = torch.cat([levels, levels])
    got = bits_per_dim(objective, denoiser, x_0, PlusMinus(torch.ones_like(levels))).total
    got = (got[:4] + got[4:]) / 2
    nats = 0.5 * math.log(2 * math.pi * s2) + 0.5 * (levels.flatten() - mu).square() / s2 - math.log(2 / 255)
    torch.testing.assert_close(got, nats / math.log(2), rtol=0, atol=1e-3)
