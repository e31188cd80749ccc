"""What must hold for any schedule, any batch, any subset of timesteps."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config.model import DiffusionConfig
from pipeline.diffusion.forward_process import Process
from pipeline.diffusion.importance_sampling import LossTally
from pipeline.diffusion.noise import integers, normal, stream_key, uniform
from pipeline.diffusion.schedule import evenly_spaced, make_schedule, respace

pytestmark = pytest.mark.property

FAST = settings(max_examples=40)
CONFIGS = st.builds(
    lambda num, schedule, zero: DiffusionConfig(
        num_timesteps=num, schedule=schedule, zero_terminal_snr=zero, prediction="v"
    ),
    st.integers(2, 300),
    st.sampled_from(["linear", "cosine", "sigmoid", "quadratic"]),
    st.booleans(),
)


@FAST
@given(CONFIGS)
def test_signal_only_falls_and_variances_stay_in_order(config):
    s = make_schedule(config)
    assert ((s.betas > 0) & (s.betas <= 1)).all()
    assert (s.alpha_bars.diff() < 0).all()
    assert (s.alpha_bars < 1).all()
    assert (s.alpha_bars >= 0).all()
    assert (s.posterior_variance <= s.betas + 1e-15).all()
    assert (s.log_variance_small <= s.log_variance_large + 1e-9).all()
    assert (s.snr.diff() < 0).all()


@FAST
@given(CONFIGS, st.data())
def test_a_respaced_posterior_joins_the_kept_marginals(config, data):
    """Averaged over q(x_t | x_0), q(x_{t-1} | x_t, x_0) is q(x_{t-1} | x_0): mean and variance."""
    full = make_schedule(config)
    kept = sorted(data.draw(st.sets(st.integers(0, config.num_timesteps - 1), min_size=1, max_size=20)))
    s = respace(full, kept)
    signal = s.posterior_mean_coef_x0 + s.posterior_mean_coef_xt * s.alpha_bars.sqrt()
    torch.testing.assert_close(signal, s.alpha_bars_prev.sqrt(), rtol=1e-9, atol=1e-9)
    variance = s.posterior_mean_coef_xt**2 * (1 - s.alpha_bars) + s.posterior_variance
    torch.testing.assert_close(variance, 1 - s.alpha_bars_prev, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(s.alpha_bars, full.alpha_bars[kept], rtol=1e-9, atol=1e-12)


@FAST
@given(st.integers(1, 2000), st.data())
def test_evenly_spaced_timesteps_are_distinct_and_even(num_timesteps, data):
    num = data.draw(st.integers(1, num_timesteps))
    chosen = evenly_spaced(num_timesteps, num)
    assert len(set(chosen)) == num
    assert chosen[-1] == num_timesteps - 1
    gaps = {b - a for a, b in zip([-1, *chosen], chosen, strict=False)}
    assert max(gaps) - min(gaps) <= 1 or gaps <= {
        num_timesteps // num - 1,
        num_timesteps // num,
        num_timesteps // num + 1,
    }


@FAST
@given(st.integers(0, 2**32), st.sampled_from(["epsilon", "x_0", "v", "mean"]))
def test_conversions_invert_each_other(seed, kind):
    process = Process(make_schedule(DiffusionConfig(num_timesteps=50, beta_end=0.2)))
    x_t, out = torch.randn(2, 8, 1, 2, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    t = torch.randint(50, (8,), generator=torch.Generator().manual_seed(seed))
    x_0, eps = process.to_x0(kind, out, x_t, t), process.to_eps(kind, out, x_t, t)
    torch.testing.assert_close(process.q_sample(x_0, t, eps), x_t, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(process.target(kind, x_0, x_t, t, eps), out, rtol=1e-7, atol=1e-7)


@FAST
@given(
    st.integers(0, 2**64),
    st.lists(st.integers(0, 2**63 - 1), min_size=2, max_size=8),
    st.integers(0, 2**32 - 1),
    st.integers(1, 20),
    st.integers(1, 2**31),
)
def test_rows_of_noise_are_functions_of_their_id(seed, ids, step, num, high):
    key = stream_key(seed, "x")
    ids = torch.tensor(ids)
    cut = len(ids) // 2
    for draw in (
        lambda i: normal(key, i, step, (num,)),
        lambda i: uniform(key, i, step, num),
        lambda i: integers(key, i, step, high),
    ):
        assert torch.equal(draw(ids), torch.cat([draw(ids[:cut]), draw(ids[cut:])]))
    assert torch.equal(uniform(key, ids, step, num), uniform(key, ids, step, 20)[:, :num])
    assert ((integers(key, ids, step, high) >= 0) & (integers(key, ids, step, high) < high)).all()


@FAST
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 100)), min_size=1, max_size=30), st.integers(0, 30))
def test_tallies_merge_in_any_grouping(losses, cut):
    t, loss = torch.tensor([a for a, _ in losses]), torch.tensor([float(b) for _, b in losses])
    whole = LossTally.of(t, loss, 5)
    for parts in (
        (LossTally.of(t[:cut], loss[:cut], 5), LossTally.of(t[cut:], loss[cut:], 5)),
        (LossTally.of(t[cut:], loss[cut:], 5), LossTally.of(t[:cut], loss[:cut], 5)),
    ):
        merged = parts[0] + parts[1]
        assert torch.equal(merged.count, whole.count)
        assert torch.equal(merged.square_sum, whole.square_sum)
