"""Round axis ticks, number formatting, and downsampling that keeps spikes."""

import math

import numpy as np
import pytest

from pipeline.report.render.scales import figures, linear_ticks, log_ticks, short, thinned

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 10, [0, 2, 4, 6, 8, 10]),
        (0, 4000, [0, 1000, 2000, 3000, 4000]),
        (412, 528, [420, 440, 460, 480, 500, 520]),
        (-1, 1, [-1, -0.5, 0, 0.5, 1]),
        (0.31, 0.34, [0.31, 0.315, 0.32, 0.325, 0.33, 0.335, 0.34]),
        (7, 7, [7]),
    ],
)
def test_linear_ticks(low, high, expected):
    assert linear_ticks(low, high) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.9, 110, [1, 2, 5, 10, 20, 50, 100]),
        (0.008, 1.2, [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1]),
        (0.01, 100, [0.01, 0.1, 1, 10, 100]),
        (0.0001, 100, [1e-4, 1e-3, 0.01, 0.1, 1, 10, 100]),
        (1e-6, 1e6, [1e-6, 1e-4, 1e-2, 1, 1e2, 1e4, 1e6]),
        (2.1, 2.9, [2.2, 2.4, 2.6, 2.8]),
    ],
)
def test_log_ticks(low, high, expected):
    ticks = log_ticks(low, high)
    assert ticks == pytest.approx(expected)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.05, "0.05"),
        (0.001, "0.001"),
        (5e-4, "5e−4"),
        (1.5e-4, "1.5e−4"),
        (1e-10, "1e−10"),
        (20, "20"),
        (1500, "1.5k"),
        (10_000, "10k"),
        (2e6, "2M"),
        (-30, "−30"),
        (3e13, "3e13"),
    ],
)
def test_tick_labels(value, text):
    assert short(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (5.31, "5.31"),
        (1.0, "1"),
        (951.23, "951.2"),
        (12345.6, "12,346"),
        (0.01234567, "0.01235"),
        (-4e-4, "−4e−4"),
        (3.14159e-5, "3.14e−5"),
        (math.nan, "not finite"),
        (math.inf, "not finite"),
    ],
)
def test_number_formatting(value, text):
    assert figures(value) == text


def test_few_points_are_unchanged():
    assert thinned([1, 2, 3], [4, math.nan, 6])[0] == [1, 2, 3]


def test_thinning_keeps_ends_order_and_every_spike():
    x = np.arange(100_000.0)
    y = np.random.default_rng(0).normal(size=len(x))
    y[31_415], y[71_828] = 99.0, -99.0
    y[50_000:50_400] = math.nan
    thin_x, thin_y = thinned(x, y)
    assert 900 <= len(thin_x) <= 1000
    assert thin_x == sorted(set(thin_x))
    assert (thin_x[0], thin_x[-1]) == (0, 99_999)
    assert (max(thin_y), min(thin_y)) == (99.0, -99.0)
    pairs = dict(zip(x, y, strict=True))
    assert all(pairs[a] == b or math.isnan(b) for a, b in zip(thin_x, thin_y, strict=True))
    assert any(math.isnan(b) for b in thin_y)  # the gap is still a gap
