"""The weight average follows its recurrence exactly and can be stopped, moved and undone."""

import pytest
import torch
from torch import nn

from pipeline.errors import DataError
from pipeline.models.ema import Ema, ema_decay

pytestmark = pytest.mark.unit


def model(value=0.0):
    net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1)).double()
    with torch.no_grad():
        for p in net.parameters():
            p.fill_(value)
    return net


def walk(net, ema, steps):
    for n in steps:
        with torch.no_grad():
            for p in net.parameters():
                p.fill_(float(n * n))
        ema.update(n)


@pytest.mark.parametrize(("decay", "warmup"), [(0.9, False), (0.9, True), (0.9999, True), (0.0, False)])
def test_recurrence(decay, warmup):
    net = model(7.0)
    ema = Ema(net, decay, warmup)
    walk(net, ema, range(1, 121))
    expected = 7.0
    for n in range(1, 121):
        d = min(decay, (1 + n) / (10 + n)) if warmup else decay
        expected = d * expected + (1 - d) * n * n
    for value in ema.shadow.values():
        torch.testing.assert_close(value, torch.full_like(value, expected), rtol=1e-13, atol=0)


def test_warm_up_values():
    assert ema_decay(0, 0.9999, True) == 0.1
    assert ema_decay(8, 0.9999, True) == 0.5
    assert ema_decay(10**6, 0.9999, True) == 0.9999
    assert ema_decay(0, 0.9999, False) == 0.9999


def test_a_resumed_average_goes_on_alike():
    net, net2 = model(1.0), model(-3.0)
    whole, first, second = Ema(net, 0.99, True), Ema(net, 0.99, True), Ema(net2, 0.99, True)
    walk(net, whole, range(1, 21))
    walk(net, first, range(1, 11))
    second.load({name: value.clone() for name, value in first.shadow.items()})
    walk(net2, second, range(11, 21))
    assert all(torch.equal(whole.shadow[name], second.shadow[name]) for name in whole.shadow)


def test_shadow_is_a_copy_named_as_the_parameters():
    net = model(2.0)
    ema = Ema(net, 0.9, False)
    assert list(ema.shadow) == [name for name, _ in net.named_parameters()]
    next(net.parameters()).data.add_(1)
    assert (ema.shadow["0.weight"] == 2).all()


def test_load_refuses_by_name():
    ema = Ema(model(), 0.9, False)
    state = {name: value.clone() for name, value in ema.shadow.items()}
    with pytest.raises(DataError, match=r"'0\.bias' is missing"):
        ema.load({name: value for name, value in state.items() if name != "0.bias"})
    with pytest.raises(DataError, match="'extra' is unexpected"):
        ema.load(state | {"extra": torch.zeros(1)})
    with pytest.raises(DataError, match=r"'0\.bias' is \[4\], not \[3\]"):
        ema.load(state | {"0.bias": torch.ones(4)})
    assert all((value == 0).all() for value in ema.shadow.values())


def test_applied_to_restores_the_weights_even_after_an_error():
    net = model(1.0)
    ema = Ema(net, 0.9, False)
    walk(net, ema, [2])  # weights 4, shadow 0.9 + 0.4

    def fail():
        with ema.applied_to(net):
            assert all(torch.allclose(p, torch.tensor(1.3, dtype=p.dtype)) for p in net.parameters())
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError):
        fail()
    assert all((p == 4).all() for p in net.parameters())
    ema.copy_to(net)
    assert all(torch.equal(p, ema.shadow[name]) for name, p in net.named_parameters())
