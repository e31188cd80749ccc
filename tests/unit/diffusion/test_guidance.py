"""Guidance: the linear rule, the interval, and one pass instead of two."""

import pytest
import torch

from pipeline.diffusion.guidance import guided, guided_by_label

pytestmark = pytest.mark.unit

X = torch.randn(2, 1, 3, 3, generator=torch.Generator().manual_seed(0))
T = torch.tensor([5, 5])


def with_class(x_t, t):
    return 2.0 * x_t + t.view(-1, 1, 1, 1)


def without_class(x_t, t):
    return -1.0 * x_t


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 3.0])
def test_out_is_unconditional_plus_scale_times_the_difference(scale):
    got = guided(with_class, without_class, scale)(X, T)
    torch.testing.assert_close(got, -X + scale * (3 * X + 5))


@pytest.mark.parametrize(("interval", "inside"), [((5, 9), True), ((0, 5), True), ((6, 9), False), ((0, 4), False)])
def test_outside_the_interval_only_the_conditional_model_runs(interval, inside):
    asked = []

    def unconditional(x_t, t):
        asked.append(t)
        return without_class(x_t, t)

    got = guided(with_class, unconditional, 3.0, interval)(X, T)
    torch.testing.assert_close(got, 8 * X + 15 if inside else 2 * X + 5)
    assert bool(asked) == inside


def test_scale_1_runs_the_conditional_model_alone():
    def never(x_t, t):
        raise AssertionError("asked")

    assert torch.equal(guided(with_class, never, 1.0)(X, T), with_class(X, T))


def test_variance_channels_are_the_conditional_ones():
    got = guided(lambda x_t, t: torch.cat([2 * x_t, 7 * x_t], 1), lambda x_t, t: torch.cat([-x_t, -9 * x_t], 1), 3.0)(
        X, T
    )
    torch.testing.assert_close(got, torch.cat([8 * X, 7 * X], 1))


def test_one_sample_with_variance_channels_by_label():
    x, t = torch.cat([X, X], 1)[:1], T[:1]

    def network(x_t, t, labels):
        label = labels.view(-1, 1, 1, 1)
        return torch.cat([label * x_t, 10 * label * x_t], 1)

    got = guided_by_label(network, torch.tensor([2]), torch.tensor([-1]), 3.0, (5, 5))(x, t)
    torch.testing.assert_close(got, torch.cat([8 * x, 20 * x], 1))


@pytest.mark.parametrize("interval", [None, (5, 5), (6, 9)])
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_by_label_equals_two_denoisers_in_one_pass(scale, interval):
    passes = []

    def network(x_t, t, labels):
        passes.append(len(x_t))
        return labels.view(-1, 1, 1, 1) * x_t + t.view(-1, 1, 1, 1)

    labels, null = torch.tensor([1, 2]), torch.tensor([10, 10])
    got = guided_by_label(network, labels, null, scale, interval)(X, T)
    alone = guided(lambda x, t: network(x, t, labels), lambda x, t: network(x, t, null), scale, interval)(X, T)
    torch.testing.assert_close(got, alone)
    assert passes[0] == (2 if scale == 1.0 or interval == (6, 9) else 4)
