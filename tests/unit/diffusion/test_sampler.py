"""The contract of every sampler: timesteps, noise, no autograd, and the last state is the sample."""

import pytest
import torch

from pipeline.config.model import DiffusionConfig
from pipeline.diffusion.noise import SampleNoise
from pipeline.diffusion.sampler import make_sampler
from pipeline.errors import ConfigError

pytestmark = pytest.mark.unit

CONFIG = DiffusionConfig(num_timesteps=20, beta_start=0.02, beta_end=0.3)
NAMES = ["ddpm", "ddim", "dpm++2m", "dpm++2m-sde", "heun"]
NOISE = SampleNoise(3, torch.tensor([4, 9, 2]), (2, 4, 4))


class Recording:
    """A noise source that records its calls."""

    def __init__(self):
        self.steps = []

    def initial(self):
        return NOISE.initial()

    def at(self, step):
        self.steps.append(step)
        return NOISE.at(step)


def denoiser(x_t, t):
    return 0.4 * x_t.tanh() + 0.01 * t.view(-1, 1, 1, 1)


def sampler(name, steps=None, eta=1.0, variance=None, clip=False, config=CONFIG):
    return make_sampler(config, name, steps, eta, variance, clip)


def sample(*args, noise=NOISE, network=denoiser, **kwargs):
    return list(sampler(*args, **kwargs).run(network, noise))


@pytest.mark.parametrize("name", NAMES)
def test_visits_every_timestep_downwards_and_ends_at_the_predicted_x_0(name):
    states = sample(name)
    assert [(s.step, s.t) for s in states] == [(k, 19 - k) for k in range(20)]
    assert sampler(name).timesteps == list(range(19, -1, -1))
    torch.testing.assert_close(states[-1].x_t, states[-1].x_0)


@pytest.mark.parametrize("name", NAMES)
def test_the_network_sees_the_original_timesteps_and_the_states(name):
    seen, inputs = [], []

    def network(x_t, t):
        seen.append(t.tolist())
        inputs.append(x_t)
        return denoiser(x_t, t)

    states = sample(name, [1, 5, 19], network=network)
    assert [s.t for s in states] == [19, 5, 1]
    calls = [19, 5, 5, 1, 1] if name == "heun" else [19, 5, 1]
    assert seen == [[t] * 3 for t in calls]
    # And each state's x_t is what the network is shown next (Heun looks ahead once in between).
    for x_t, state in zip(inputs[:: 2 if name == "heun" else 1], [None, *states], strict=False):
        assert torch.equal(x_t, NOISE.initial() if state is None else state.x_t)


@pytest.mark.parametrize("name", ["ddpm", "ddim", "dpm++2m-sde"])
def test_noise_is_drawn_by_timestep_and_never_at_the_last(name):
    noise = Recording()
    sample(name, [1, 5, 19], noise=noise)
    assert noise.steps == [19, 5]


@pytest.mark.parametrize("name", ["ddim", "dpm++2m", "heun"])
def test_deterministic_samplers_draw_no_noise(name):
    noise = Recording()
    sample(name, 5, eta=0.0, noise=noise)
    assert noise.steps == []


@pytest.mark.parametrize("name", NAMES)
def test_a_sample_does_not_depend_on_its_batch(name):
    whole = sample(name, 4, clip=True)[-1].x_t
    alone = sample(name, 4, clip=True, noise=SampleNoise(3, torch.tensor([9]), (2, 4, 4)))[-1].x_t
    torch.testing.assert_close(whole[1:2], alone, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_builds_no_graph_and_leaves_the_callers_mode_alone(name):
    scale = torch.tensor(0.5, requires_grad=True)
    for state in sampler(name, 4).run(lambda x_t, t: scale * x_t, NOISE):
        assert torch.is_grad_enabled()
        assert not state.x_t.requires_grad
        assert not state.x_0.requires_grad


@pytest.mark.parametrize("name", NAMES)
def test_one_step_is_the_prediction_at_the_last_timestep(name):
    (state,) = sample(name, 1)
    assert state.t == 19
    torch.testing.assert_close(state.x_t, state.x_0)
    x_t, t = NOISE.initial(), torch.full((3,), 19)
    alpha_bar = (1 - torch.linspace(0.02, 0.3, 20, dtype=torch.float64)).prod().item()
    expected = (x_t - (1 - alpha_bar) ** 0.5 * denoiser(x_t, t)) / alpha_bar**0.5
    torch.testing.assert_close(state.x_0, expected)


@pytest.mark.parametrize("name", NAMES)
def test_clipping_bounds_every_prediction(name):
    assert max(s.x_0.abs().max() for s in sample(name, 5)) > 1
    assert max(s.x_0.abs().max() for s in sample(name, 5, clip=True)) <= 1
    thresholded = [s.x_0 for s in sample(name, 5, clip=0.9)]
    assert max(x.abs().max() for x in thresholded) <= 1
    assert not torch.equal(thresholded[-1], sample(name, 5, clip=True)[-1].x_0)


@pytest.mark.parametrize("name", NAMES)
def test_zero_terminal_snr_starts_without_dividing_by_zero(name):
    config = DiffusionConfig(num_timesteps=20, zero_terminal_snr=True, prediction="v")
    assert all(s.x_t.isfinite().all() for s in sample(name, 6, config=config))


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_ddim_with_eta_1_from_zero_terminal_snr_at_any_number_of_steps(schedule):
    # Nothing of eps is left in that first step: 1 - alpha_bar - sigma^2 is exactly 0 and must not round below.
    config = DiffusionConfig(num_timesteps=20, schedule=schedule, zero_terminal_snr=True, prediction="v")
    for steps in range(1, 21):
        assert sample("ddim", steps, config=config)[-1].x_t.isfinite().all()


def test_ddim_with_eta_1_is_ancestral_with_the_small_variance():
    for a, b in zip(sample("ddim", 7), sample("ddpm", 7, variance="fixed_small"), strict=True):
        torch.testing.assert_close(a.x_t, b.x_t, rtol=1e-5, atol=1e-5)


def test_ancestral_adds_the_configured_variance():
    states = {v: sample("ddpm", 5, variance=v)[0] for v in ("fixed_small", "fixed_large", None)}
    z = NOISE.at(19)
    beta, small = (sampler("ddpm", 5).grid.schedule.betas[-1], sampler("ddpm", 5).grid.schedule.posterior_variance[-1])
    difference = states["fixed_large"].x_t - states["fixed_small"].x_t
    torch.testing.assert_close(difference, (beta.sqrt() - small.sqrt()).float() * z, rtol=1e-4, atol=1e-5)
    assert torch.equal(states[None].x_t, states["fixed_large"].x_t)


def test_a_learned_variance_is_used_unless_overridden():
    config = DiffusionConfig(num_timesteps=20, variance="learned", objective="bound")

    def both(raw):
        return lambda x_t, t: torch.cat([denoiser(x_t, t), torch.full_like(x_t, raw)], dim=1)

    plain = sample("ddpm", 5, config=DiffusionConfig(num_timesteps=20))[0].x_t
    torch.testing.assert_close(sample("ddpm", 5, config=config, network=both(0.0))[0].x_t, plain)
    wider = sample("ddpm", 5, config=config, network=both(2.0))[0].x_t
    assert not torch.allclose(wider, plain)
    fixed = sample("ddpm", 5, config=config, variance="fixed_large", network=both(2.0))[0].x_t
    torch.testing.assert_close(fixed, plain)


@pytest.mark.parametrize("eta", [-0.1, 1.1])
def test_refuses_an_eta_without_a_variance(eta):
    with pytest.raises(ConfigError, match="eta"):
        sampler("ddim", eta=eta)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 0}, r"1\.\.20"),
        ({"steps": 21}, r"1\.\.20"),
        ({"steps": [5, 3]}, "ascend"),
        ({"variance": "learned"}, "not learned"),
        ({"clip": 0.0}, "quantile"),
        ({"clip": 1.5}, "quantile"),
    ],
)
def test_refuses_invalid_settings_with_the_reason(arguments, message):
    with pytest.raises(ConfigError, match=message):
        sampler("ddpm", **arguments)
