"""The forward process against worked numbers, and the conversions against their definitions."""

import math

import pytest
import torch

from pipeline.config.model import DiffusionConfig
from pipeline.diffusion.forward_process import Process
from pipeline.diffusion.schedule import make_schedule, schedule_from_betas

pytestmark = pytest.mark.unit

THREE = Process(schedule_from_betas(torch.tensor([0.1, 0.2, 0.5], dtype=torch.float64)))
T0, T1 = torch.tensor([0]), torch.tensor([1])


def scalar(value):
    return torch.full((1, 1, 1, 1), value, dtype=torch.float64)


def close(got, expected, tolerance=1e-12):
    torch.testing.assert_close(got, torch.as_tensor(expected, dtype=got.dtype), rtol=tolerance, atol=tolerance)


def batch(seed, process=THREE):
    g = torch.Generator().manual_seed(seed)
    x_0, eps = torch.randn(2, 9, 2, 3, 3, generator=g, dtype=torch.float64)
    t = torch.arange(9) % process.schedule.num_timesteps
    return x_0, eps, t, process.q_sample(x_0, t, eps)


def test_one_step_of_the_worked_example():
    # x_0 = 0.8, beta_1 = 0.1: mean 0.7589, variance 0.1, and 0.9171 with eps = 0.5.
    close(THREE.q_step(scalar(0.8), T0, scalar(0.0)), scalar(math.sqrt(0.9) * 0.8))
    assert THREE.q_step(scalar(0.8), T0, scalar(0.0)).item() == pytest.approx(0.7589, abs=5e-5)
    assert THREE.q_step(scalar(0.8), T0, scalar(0.5)).item() == pytest.approx(0.9171, abs=5e-5)
    close(THREE.q_step(scalar(0.0), T0, scalar(1.0)) ** 2, scalar(0.1))


def test_closed_form_of_the_worked_example():
    # alpha_1 alpha_2 = 0.72: mean 0.6788, variance 0.28.
    assert THREE.q_sample(scalar(0.8), T1, scalar(0.0)).item() == pytest.approx(0.6788, abs=5e-5)
    close(THREE.q_sample(scalar(0.0), T1, scalar(1.0)) ** 2, scalar(0.28))


def test_steps_equal_the_closed_form_in_distribution():
    process = Process(make_schedule(DiffusionConfig()))
    mean, variance = scalar(0.8), scalar(0.0)
    zero, one = scalar(0.0), scalar(1.0)
    for step in range(1000):
        t = torch.tensor([step])
        mean = process.q_step(mean, t, zero)
        variance = (process.q_step(one, t, zero) ** 2) * variance + process.q_step(zero, t, one) ** 2
        close(mean, process.q_sample(scalar(0.8), t, zero))
        close(variance, process.q_sample(zero, t, one) ** 2)


def test_variance_stays_one_for_data_of_variance_one():
    process = Process(make_schedule(DiffusionConfig(schedule="cosine")))
    t = torch.arange(1000)
    one, zero = torch.ones(1000, 1, 1, 1, dtype=torch.float64), torch.zeros(1000, 1, 1, 1, dtype=torch.float64)
    for q in (process.q_step, process.q_sample):
        close(q(one, t, zero) ** 2 + q(zero, t, one) ** 2, one)


def test_posterior_by_hand():
    mean, variance, log_variance = THREE.q_posterior(scalar(0.8), scalar(0.3), T1)
    close(mean, scalar((math.sqrt(0.9) * 0.2 * 0.8 + math.sqrt(0.8) * 0.1 * 0.3) / 0.28))
    close(variance, scalar(0.2 * 0.1 / 0.28))
    close(log_variance, scalar(math.log(0.2 * 0.1 / 0.28)))


def test_posterior_at_the_first_step_is_the_data():
    mean, variance, log_variance = THREE.q_posterior(scalar(0.8), scalar(0.3), T0)
    close(mean, scalar(0.8))
    close(variance, scalar(0.0))
    close(log_variance, scalar(math.log(0.2 * 0.1 / 0.28)))


def test_each_row_has_its_own_timestep():
    x_0, eps, t, x_t = batch(0)
    for row in range(len(t)):
        one = slice(row, row + 1)
        assert torch.equal(x_t[one], THREE.q_sample(x_0[one], t[one], eps[one]))


@pytest.mark.parametrize("kind", ["epsilon", "x_0", "v", "mean"])
def test_a_perfect_prediction_gives_back_what_made_x_t(kind):
    x_0, eps, t, x_t = batch(1)
    out = THREE.target(kind, x_0, x_t, t, eps)
    close(THREE.to_x0(kind, out, x_t, t), x_0)
    close(THREE.to_eps(kind, out, x_t, t), eps)


def test_targets_are_their_definitions():
    x_0, eps, t, x_t = batch(2)
    assert THREE.target("epsilon", x_0, x_t, t, eps) is eps
    assert THREE.target("x_0", x_0, x_t, t, eps) is x_0
    alpha_bar = torch.tensor([0.9, 0.72, 0.36], dtype=torch.float64)[t].view(-1, 1, 1, 1)
    close(THREE.target("v", x_0, x_t, t, eps), alpha_bar.sqrt() * eps - (1 - alpha_bar).sqrt() * x_0)
    close(THREE.target("mean", x_0, x_t, t, eps), THREE.q_posterior(x_0, x_t, t)[0])


def test_v_at_zero_terminal_snr_is_finite():
    process = Process(make_schedule(DiffusionConfig(num_timesteps=8, zero_terminal_snr=True, prediction="v")))
    x_0, eps, _, _ = batch(3)
    t = torch.full((9,), 7)
    x_t = process.q_sample(x_0, t, eps)
    close(x_t, eps)
    v = process.target("v", x_0, x_t, t, eps)
    close(v, -x_0)
    close(process.to_x0("v", v, x_t, t), x_0)
    close(process.to_eps("v", v, x_t, t), eps)


def test_tables_follow_the_dtype_of_x_and_survive_inference_mode():
    process = Process(schedule_from_betas(torch.tensor([0.1, 0.2], dtype=torch.float64)))
    x, t = torch.ones(2, 1, 2, 2), torch.tensor([0, 1])
    with torch.inference_mode():
        process.q_sample(x, t, x)
    x = x.clone().requires_grad_()
    out = process.q_sample(x, t, x)
    assert out.dtype == torch.float32
    out.sum().backward()  # raises if a table were an inference tensor
    assert process.q_sample(x.double(), t, x.double()).dtype == torch.float64
