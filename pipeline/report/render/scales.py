"""Numbers for charts: round axis ticks, number formatting, and downsampling that keeps the shape of a curve."""

import math
from collections.abc import Sequence
from typing import Final

NO_VALUE: Final = "\N{EN DASH}"
"""Shown in a table where there is no number."""
_MINUS: Final = "\N{MINUS SIGN}"
_SUFFIXES: Final = ((1e9, "G"), (1e6, "M"), (1e3, "k"))


def linear_ticks(low: float, high: float, target: int = 5) -> list[float]:
    """About `target` multiples of 1, 2 or 5 times a power of ten within [low, high]."""
    if not high > low:
        return [low]
    raw = (high - low) / target
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.75)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def log_ticks(low: float, high: float, most: int = 7) -> list[float]:
    """Ticks for a logarithmic axis, 0 < low <= high: decades, with multiples between them when `most` allows.

    Returns linear ticks for ranges below about half a decade, which contain too few such values.
    """
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1, 2, 5), (1, 3), (1,)):
        ticks = [factor * 10.0**power for power in decades for factor in factors]
        inside = [tick for tick in ticks if low * 0.999 <= tick <= high * 1.001]
        if 2 <= len(inside) <= most:
            return inside
    if len(inside) > most:
        return inside[:: math.ceil(len(inside) / most)]
    return linear_ticks(low, high, 4)


def short(value: float) -> str:
    """A tick label: 0, 0.05, 20, 1.5k, 10k, 2M, 5e-4."""
    for size, suffix in _SUFFIXES:
        if size <= abs(value) < 1000 * _SUFFIXES[0][0]:
            return _plain(f"{value / size:.4g}") + suffix
    return _plain(f"{value:.1e}" if 0 < abs(value) < 1e-3 else f"{value:.4g}")


def figures(value: float) -> str:
    """A result for reading: four significant digits without trailing zeros, thousands grouped."""
    if not math.isfinite(value):
        return "not finite"
    if 1000 <= abs(value) < 1e12:
        return _plain(f"{value:,.0f}")
    return _plain(f"{value:.2e}" if 0 < abs(value) < 1e-3 else f"{value:.4g}")


def _plain(text: str) -> str:
    """Shorter exponents (5.0e-04 becomes 5e-4) and typographic minus signs."""
    mantissa, mark, exponent = text.partition("e")
    if mark:
        text = (
            f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}" if "." in mantissa else f"{mantissa}e{int(exponent)}"
        )
    return text.replace("-", _MINUS)


def thinned(x: Sequence[float], y: Sequence[float], most: int = 1000) -> tuple[list[float], list[float]]:
    """At most `most` points: both ends, and the minimum and maximum of each interval, so that spikes stay visible."""
    if len(x) <= most:
        return list(x), list(y)
    num_intervals = (most - 2) // 2
    keep = {0, len(x) - 1}
    for interval in range(num_intervals):
        indices = range(interval * len(x) // num_intervals, (interval + 1) * len(x) // num_intervals)
        finite = [index for index in indices if math.isfinite(y[index])] or indices[:1]
        keep |= {min(finite, key=lambda i: y[i]), max(finite, key=lambda i: y[i])}
    chosen = sorted(keep)
    return [x[i] for i in chosen], [y[i] for i in chosen]
