"""Sampler trajectories, step by step, against diffusers' schedulers with the same noise and the same network.

diffusers keeps its tables in float32. Where its step is dtype-neutral (DDPM, DDIM) we give the scheduler float64 tables
and ask for agreement to 1e-9; DPM-Solver++ casts to float32 inside, so there it is 1e-5.
"""

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler

from pipeline.config.model import DiffusionConfig
from pipeline.diffusion.forward_process import Process
from pipeline.diffusion.sampler import make_sampler
from pipeline.diffusion.schedule import make_schedule

pytestmark = pytest.mark.oracle

SHAPE = (2, 3, 4, 4)
KINDS = {"epsilon": "epsilon", "v": "v_prediction", "x_0": "sample"}
SCHEDULES = {"linear": "linear", "quadratic": "scaled_linear", "cosine": "squaredcos_cap_v2"}


def generator(t):
    return torch.Generator().manual_seed(1000 + t)


class Replay:
    """Noise that diffusers can draw too: a generator seeded by the timestep."""

    def __init__(self, dtype):
        self.dtype = dtype

    def initial(self):
        return torch.randn(SHAPE, generator=torch.Generator().manual_seed(7), dtype=self.dtype)

    def at(self, step):
        return torch.randn(SHAPE, generator=generator(step), dtype=self.dtype)


def network(x_t, t):
    """Smooth and of unit scale; no symmetry between channels or pixels."""
    phase = torch.arange(x_t[0].numel(), dtype=x_t.dtype).view(x_t.shape[1:])
    return (0.9 * x_t + 0.1 * phase).sin() + 0.3 * (t.view(-1, 1, 1, 1) / 300).cos()


def reference(cls, schedule, kind, **settings):
    scheduler = cls(
        num_train_timesteps=1000,
        beta_start=1e-4,
        beta_end=0.02,
        beta_schedule=SCHEDULES[schedule],
        prediction_type=KINDS[kind],
        **settings,
    )
    if cls is not DPMSolverMultistepScheduler:  # the betas themselves are compared in a test of their own
        betas = make_schedule(DiffusionConfig(schedule=schedule)).betas
        scheduler.betas, scheduler.alphas = betas, 1 - betas
        scheduler.alphas_cumprod = (1 - betas).cumprod(0)
        scheduler.one = torch.tensor(1.0, dtype=torch.float64)
        scheduler.final_alpha_cumprod = scheduler.one
    return scheduler


def ours(name, schedule, kind, steps, eta=0.0, variance="fixed_small", clip=False):
    config = DiffusionConfig(schedule=schedule, prediction=kind, variance=variance)
    return make_sampler(config, name, steps, eta, None, clip)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_betas(schedule):
    scheduler = DDPMScheduler(beta_schedule=SCHEDULES[schedule])
    ours_betas = make_schedule(DiffusionConfig(schedule=schedule)).betas.float()
    torch.testing.assert_close(ours_betas, scheduler.betas, rtol=2e-5, atol=1e-7)


def test_zero_terminal_snr():
    scheduler = DDIMScheduler(rescale_betas_zero_snr=True)
    config = DiffusionConfig(zero_terminal_snr=True, prediction="v")
    ours_bars = make_schedule(config).alpha_bars.float()
    torch.testing.assert_close(ours_bars, scheduler.alphas_cumprod, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_forward_process(schedule, kind):
    scheduler = reference(DDPMScheduler, schedule, kind)
    process = Process(make_schedule(DiffusionConfig(schedule=schedule)))
    x_0, eps = Replay(torch.float64).initial(), Replay(torch.float64).at(0)
    t = torch.tensor([17, 940])
    x_t = process.q_sample(x_0, t, eps)
    torch.testing.assert_close(x_t, scheduler.add_noise(x_0, eps, t), rtol=1e-10, atol=1e-10)
    v = scheduler.get_velocity(x_0, eps, t)
    torch.testing.assert_close(process.target("v", x_0, x_t, t, eps), v, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("steps", [200, 50, 10])
@pytest.mark.parametrize("kind", ["epsilon", "v"])
@pytest.mark.parametrize(
    ("schedule", "variance", "clip"), [("linear", "fixed_small", True), ("cosine", "fixed_large", False)]
)
def test_ddpm(schedule, variance, clip, kind, steps):
    scheduler = reference(
        DDPMScheduler, schedule, kind, variance_type=variance, clip_sample=clip, timestep_spacing="trailing"
    )
    scheduler.set_timesteps(steps)
    sampler = ours("ddpm", schedule, kind, steps, variance=variance, clip=clip)
    assert sampler.timesteps == scheduler.timesteps.tolist()
    x = Replay(torch.float64).initial()
    for state in sampler.run(network, Replay(torch.float64)):
        out = network(x, torch.full((2,), state.t))
        if state.step == steps - 1:  # there diffusers still adds noise unless t = 0: only the mean can agree
            break
        result = scheduler.step(out, state.t, x, generator=generator(state.t))
        x = result.prev_sample
        torch.testing.assert_close(state.x_0, result.pred_original_sample, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(state.x_t, x, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(state.x_t, state.x_0, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("timesteps", [[0, 100, 101, 640, 999], [3, 999]])
def test_ddpm_on_any_subset(timesteps):
    scheduler = reference(DDPMScheduler, "linear", "epsilon", variance_type="fixed_small", clip_sample=True)
    scheduler.set_timesteps(timesteps=timesteps[::-1])
    x = Replay(torch.float64).initial()
    for state in ours("ddpm", "linear", "epsilon", timesteps, clip=True).run(network, Replay(torch.float64)):
        if state.step == len(timesteps) - 1:
            break
        out = network(x, torch.full((2,), state.t))
        x = scheduler.step(out, state.t, x, generator=generator(state.t)).prev_sample
        torch.testing.assert_close(state.x_t, x, rtol=1e-9, atol=1e-9)


def test_ddpm_with_a_learned_range():
    """Only over timesteps that follow each other: diffusers interpolates up to the unrespaced log beta_t."""
    config = DiffusionConfig(variance="learned_range", objective="hybrid")
    scheduler = reference(DDPMScheduler, "linear", "epsilon", variance_type="learned_range", clip_sample=True)
    scheduler.set_timesteps(timesteps=[5, 4, 3, 2, 1, 0])

    def both(x_t, t):
        out = network(x_t, t)
        return torch.cat([out, (3 * out).sin()], dim=1)

    x = Replay(torch.float64).initial()
    for state in make_sampler(config, "ddpm", range(6), 0.0, None, True).run(both, Replay(torch.float64)):
        x = scheduler.step(both(x, torch.full((2,), state.t)), state.t, x, generator=generator(state.t)).prev_sample
        torch.testing.assert_close(state.x_t, x, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("steps", [200, 50, 10])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("schedule", "eta", "clip"), [("linear", 0.0, True), ("cosine", 0.7, False), ("linear", 1.0, True)]
)
def test_ddim(schedule, eta, clip, kind, steps):
    scheduler = reference(DDIMScheduler, schedule, kind, clip_sample=clip, timestep_spacing="trailing")
    scheduler.set_timesteps(steps)
    sampler = ours("ddim", schedule, kind, steps, eta=eta, clip=clip)
    assert sampler.timesteps == scheduler.timesteps.tolist()
    x = Replay(torch.float64).initial()
    for state in sampler.run(network, Replay(torch.float64)):
        out = network(x, torch.full((2,), state.t))
        last = state.step == steps - 1
        result = scheduler.step(
            out, state.t, x, eta=0.0 if last else eta, use_clipped_model_output=clip, generator=generator(state.t)
        )
        x = result.prev_sample
        torch.testing.assert_close(state.x_0, result.pred_original_sample, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(state.x_t, x, rtol=1e-9, atol=1e-9)


def test_every_one_of_a_thousand_steps():
    scheduler = reference(DDPMScheduler, "linear", "epsilon", variance_type="fixed_large", clip_sample=True)
    x = Replay(torch.float64).initial()
    for state in ours("ddpm", "linear", "epsilon", None, variance="fixed_large", clip=True).run(
        network, Replay(torch.float64)
    ):
        out = network(x, torch.full((2,), state.t))
        x = scheduler.step(out, state.t, x, generator=generator(state.t)).prev_sample
        torch.testing.assert_close(state.x_t, x, rtol=1e-9, atol=1e-9)


def test_ddim_on_leading_timesteps():
    scheduler = reference(DDIMScheduler, "linear", "epsilon", clip_sample=False, timestep_spacing="leading")
    scheduler.set_timesteps(20)
    x = Replay(torch.float64).initial()
    for state in ours("ddim", "linear", "epsilon", range(0, 1000, 50)).run(network, Replay(torch.float64)):
        x = scheduler.step(network(x, torch.full((2,), state.t)), state.t, x).prev_sample
        torch.testing.assert_close(state.x_t, x, rtol=1e-9, atol=1e-9)


def test_dynamic_thresholding():
    scheduler = reference(
        DDPMScheduler,
        "linear",
        "epsilon",
        thresholding=True,
        dynamic_thresholding_ratio=0.8,
        sample_max_value=1e9,
        timestep_spacing="trailing",
    )
    scheduler.set_timesteps(10)
    x = Replay(torch.float32).initial()
    for state in ours("ddpm", "linear", "epsilon", 10, clip=0.8).run(network, Replay(torch.float32)):
        if state.step == 9:
            break
        result = scheduler.step(network(x, torch.full((2,), state.t)), state.t, x, generator=generator(state.t))
        x = result.prev_sample.float()
        torch.testing.assert_close(state.x_0, result.pred_original_sample.float(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(state.x_t, x, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("steps", [100, 20, 5])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("name", "algorithm"), [("dpm++2m", "dpmsolver++"), ("dpm++2m-sde", "sde-dpmsolver++")])
def test_dpm_solver(name, algorithm, kind, steps):
    # An untrained epsilon network sends x_0 into the hundreds, where float32 is coarser than the comparison: clip it.
    # A dynamic threshold that may not exceed 1 is plain clipping.
    clip = kind == "epsilon"
    scheduler = reference(
        DPMSolverMultistepScheduler,
        "linear",
        kind,
        algorithm_type=algorithm,
        timestep_spacing="trailing",
        thresholding=clip,
        sample_max_value=1.0,
    )
    scheduler.set_timesteps(steps)
    sampler = ours(name, "linear", kind, steps, clip=clip)
    assert sampler.timesteps == scheduler.timesteps.tolist()
    x = Replay(torch.float32).initial()
    for state in sampler.run(network, Replay(torch.float32)):
        out = network(x, torch.full((2,), state.t))
        theirs = scheduler.step(out, state.t, x, generator=generator(state.t)).prev_sample
        torch.testing.assert_close(state.x_t, theirs, rtol=1e-5, atol=1e-5)
        x = state.x_t  # each step from the same state: rounding does not add up over a hundred of them
