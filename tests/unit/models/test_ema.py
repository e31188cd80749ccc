"""The weight averages follow their recurrences exactly; load, resume, restart and temporary use of the average."""

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.config.training import EmaConfig
from pipeline.errors import DataError
from pipeline.models.ema import Ema, ema_decay, power_exponent

pytestmark = pytest.mark.unit


def model(value=0.0):
    net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1)).double()
    with torch.no_grad():
        for p in net.parameters():
            p.fill_(value)
    return net


def average(net, global_batch=1, **kind):
    return Ema(net, EmaConfig(**kind), global_batch)


def walk(net, ema, steps):
    for n in steps:
        with torch.no_grad():
            for p in net.parameters():
                p.fill_(float(n * n))
        ema.update(n)


@pytest.mark.parametrize(("decay", "warmup"), [(0.9, False), (0.9, True), (0.9999, True), (0.0, False)])
def test_recurrence(decay, warmup):
    net = model(7.0)
    ema = average(net, decay=decay, warmup=warmup)
    walk(net, ema, range(1, 121))
    expected = 7.0
    for n in range(1, 121):
        d = min(decay, (1 + n) / (10 + n)) if warmup else decay
        expected = d * expected + (1 - d) * n * n
    for value in ema.shadow.values():
        torch.testing.assert_close(value, torch.full_like(value, expected), rtol=1e-13, atol=0)


def test_warm_up_values():
    assert ema_decay(EmaConfig(), 0, 7) == 0.1
    assert ema_decay(EmaConfig(), 8, 7) == 0.5
    assert ema_decay(EmaConfig(), 10**6, 7) == 0.9999
    assert ema_decay(EmaConfig(warmup=False), 1, 7) == 0.9999


def weights_of(config, steps, global_batch=1):
    """Coefficients of the weights of steps 0 (the start), 1, ..., `steps` in the average, from the recurrence."""
    decays = np.array([ema_decay(config, n, global_batch) for n in range(1, steps + 1)])
    later = np.append(np.cumprod(decays[::-1])[::-1], 1.0)
    return np.append(later[0], (1.0 - decays) * later[1:])


def test_a_weight_counts_half_after_the_half_life():
    """1000 images are 125 steps of 8."""
    counts = weights_of(EmaConfig(half_life_images=1000, warmup=False), 500, global_batch=8)
    assert counts[375] / counts[500] == pytest.approx(0.5, rel=1e-12)
    assert counts[250] / counts[500] == pytest.approx(0.25, rel=1e-12)
    assert counts[0] == pytest.approx(2.0**-4, rel=1e-12), "the start, 4000 images ago"


def test_the_half_life_is_at_most_a_twentieth_of_the_images_seen():
    """The loop of Karras et al. 2022: cur_nimg images were seen before the step."""
    config = EmaConfig(half_life_images=500_000)
    assert ema_decay(config, 1, 128) == 0.0
    assert ema_decay(config, 1001, 128) == 0.5 ** (128 / (0.05 * 128_000))
    assert ema_decay(config, 10**6, 128) == 0.5 ** (128 / 500_000)


@pytest.mark.parametrize("width", [0.02, 0.05, 0.1, 0.15, 0.2, 0.27])
def test_the_exponent_is_the_largest_root_of_the_papers_cubic(width):
    """Karras et al. 2024, Algorithm 2, which finds it by eigenvalues."""
    s = width**-2
    assert power_exponent(width) == pytest.approx(np.roots([1, 7, 16 - s, 12 - s]).real.max(), rel=1e-9)


def test_exponents_printed_in_the_paper():
    """Section 3: widths 0.05 and 0.10 have gamma 16.97 and 6.94."""
    assert power_exponent(0.05) == pytest.approx(16.97, abs=0.005)
    assert power_exponent(0.10) == pytest.approx(6.94, abs=0.005)


@pytest.mark.parametrize("width", [0.05, 0.15])
def test_a_power_function_average_has_the_width_of_its_name(width):
    n = 20_000
    counts = weights_of(EmaConfig(relative_width=width), n)
    time = np.arange(n + 1) / n
    mean = counts @ time
    assert counts.sum() == pytest.approx(1.0)
    assert np.sqrt(counts @ (time - mean) ** 2) == pytest.approx(width, rel=1e-3)


def test_a_power_function_average_is_the_weighted_mean_of_the_trajectory():
    """The coefficient of step k is (k^(gamma+1) - (k-1)^(gamma+1)) / n^(gamma+1), that of the start 0."""
    net = model(7.0)
    ema = average(net, global_batch=8, relative_width=0.1)
    walk(net, ema, range(1, 61))
    power = power_exponent(0.1) + 1.0
    edges = (np.arange(61) / 60) ** power
    expected = float(np.diff(edges) @ np.arange(1, 61) ** 2.0)
    for value in ema.shadow.values():
        torch.testing.assert_close(value, torch.full_like(value, expected), rtol=1e-12, atol=0)


KINDS = [{"decay": 0.99}, {"half_life_images": 300}, {"relative_width": 0.1}]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: next(iter(kind)))
def test_a_resumed_average_goes_on_alike(kind):
    net, net2 = model(1.0), model(-3.0)
    whole, first, second = (average(one, 8, **kind) for one in (net, net, net2))
    walk(net, whole, range(1, 21))
    walk(net, first, range(1, 11))
    second.load({name: value.clone() for name, value in first.shadow.items()})
    walk(net2, second, range(11, 21))
    assert all(torch.equal(whole.shadow[name], second.shadow[name]) for name in whole.shadow)


def test_shadow_is_a_copy_named_as_the_parameters():
    net = model(2.0)
    ema = average(net, decay=0.9, warmup=False)
    assert list(ema.shadow) == [name for name, _ in net.named_parameters()]
    next(net.parameters()).data.add_(1)
    assert (ema.shadow["0.weight"] == 2).all()


def test_load_refuses_by_name():
    ema = average(model(), decay=0.9, warmup=False)
    state = {name: value.clone() for name, value in ema.shadow.items()}
    with pytest.raises(DataError, match=r"'0\.bias' is missing"):
        ema.load({name: value for name, value in state.items() if name != "0.bias"})
    with pytest.raises(DataError, match="'extra' is unexpected"):
        ema.load(state | {"extra": torch.zeros(1)})
    with pytest.raises(DataError, match=r"'0\.bias' is \[4\], not \[3\]"):
        ema.load(state | {"0.bias": torch.ones(4)})
    assert all((value == 0).all() for value in ema.shadow.values())


def test_applied_restores_the_weights_even_after_an_error():
    net = model(1.0)
    ema = average(net, decay=0.9, warmup=False)
    walk(net, ema, [2])  # weights 4, shadow 0.9 + 0.4

    def fail():
        with ema.applied():
            assert all(torch.allclose(p, torch.tensor(1.3, dtype=p.dtype)) for p in net.parameters())
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError):
        fail()
    assert all((p == 4).all() for p in net.parameters())
    ema.copy_to(net)
    assert all(torch.equal(p, ema.shadow[name]) for name, p in net.named_parameters())


def test_a_restarted_average_begins_at_the_weights():
    net = model(1.0)
    ema = average(net, decay=0.9, warmup=False)
    walk(net, ema, [2])
    ema.restart()
    assert all((value == 4).all() for value in ema.shadow.values())
