"""Changes of numbers that are not images (metrics, features, labels): units, functions, standardization."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pytest_evalmode.lock.inputs.diagnosis import NOT_BEFORE, Array, Step, format_numbers

_FACTORS = {
    1000.0: "thousandths, or kilo",
    100.0: "percent, or centi",
    10.0: "a tenth",
    1e6: "millionths, or mega",
    1e9: "billionths, or giga",
    60.0: "minutes and seconds, or hours and minutes",
    3600.0: "hours and seconds",
    24.0: "days and hours",
    86400.0: "days and seconds",
    255.0: "8-bit levels",
    32768.0: "16-bit levels",
    0.3048: "feet and meters",
    2.54: "inches and centimeters",
    25.4: "inches and millimeters",
    1.609344: "miles and kilometers",
    0.45359237: "pounds and kilograms",
    3.6: "m/s and km/h",
    4.184: "calories and joules",
    float(np.pi / 180): "degrees and radians",
    float(np.log(2)): "nats and bits",
    float(np.log(10)): "natural and decimal logarithms",
}
_FUNCTIONS: dict[str, Callable[[Array], Array]] = {
    "the natural logarithm": np.log,
    "the logarithm of 1 + x (log1p)": np.log1p,
    "the decimal logarithm": np.log10,
    "the binary logarithm": np.log2,
    "the square root": np.sqrt,
    "the square": np.square,
    "the exponential": np.exp,
    "the sigmoid": lambda values: 1 / (1 + np.exp(-values)),
    "the absolute value": np.abs,
}
_AFFINE = {(1.8, 32.0): "Celsius and Fahrenheit", (1.0, 273.15): "Celsius and kelvin"}


def find_unit_change(a: Array, b: Array, tolerance: float) -> Step | None:
    """Find one factor, or one factor and one shift, that turns all of `a` into `b`.

    Args:
        a: The locked values: float64, finite, of any shape.
        b: The current values: float64, finite, of the same shape.
        tolerance: Relative tolerance, a few units in the last place of the original dtypes.
    """
    if np.ptp(b) == 0 and a.size > 1 and np.ptp(a) != 0:
        return None
    non_zero = a != 0
    if non_zero.any():
        scale = float(np.median(b[non_zero] / a[non_zero]))
        if scale != 0 and _is_linear(a, b, scale, 0.0, tolerance):
            known = _describe_factor(scale)
            if known or np.unique(a[non_zero]).size > 1:
                return Step("unit", f"multiplied by {known or f'{scale:.6g}'}", {"factor": scale})
    for (factor, offset), name in _AFFINE.items():
        for scale, shift in ((factor, offset), (1 / factor, -offset / factor)):
            if _is_linear(a, b, scale, shift, tolerance):
                words = f"multiplied by {scale:.4g} and shifted by {shift:.5g} ({name})"
                return Step("unit", words, {"factor": scale, "shift": shift})
    if np.unique(a).size < 3 and not (a.size == 1 or np.ptp(a) == 0):
        return _find_shift(a, b, tolerance)
    spread = float(((a - a.mean()) ** 2).sum())
    if not spread:
        return None
    scale = float(((a - a.mean()) * (b - b.mean())).sum() / spread)
    shift = float(b.mean() - scale * a.mean())
    if scale == 0 or not _is_linear(a, b, scale, shift, tolerance):
        return None
    words = (
        f"shifted by {shift:.6g}" if abs(scale - 1) < 1e-6 else f"multiplied by {scale:.6g} and shifted by {shift:.6g}"
    )
    return Step("unit", words, {"factor": scale, "shift": shift})


def find_column_unit_changes(a: Array, b: Array, tolerance: float) -> Step | None:
    """Find columns of a table that have another unit, while the others are unchanged.

    Args:
        a: The locked values: float64, finite, shape (rows, columns).
        b: The current values: float64, finite, of the same shape.
        tolerance: Relative tolerance, a few units in the last place of the original dtypes.
    """
    changed = [i for i in range(a.shape[1]) if not np.array_equal(a[:, i], b[:, i])]
    steps = [find_unit_change(a[:, i], b[:, i], tolerance) for i in changed]
    if not changed or len(a) < 3 or any(step is None for step in steps):
        return None
    by_column = [(i, step) for i, step in zip(changed, steps, strict=True) if step is not None]
    shown = "; ".join(f"column {i} {step.words}" for i, step in by_column[:4])
    more = f"; and {len(changed) - 4} more columns" if len(changed) > 4 else ""
    factors = {i: dict(step.details) for i, step in by_column}
    return Step("unit", f"given in other units: {shown}{more}", {"columns": factors})


def find_function(a: Array, b: Array, tolerance: float) -> Step | None:
    """Find a common function, such as a logarithm or a sigmoid, that is now applied or no longer applied.

    Args:
        a: The locked values: float64, finite, of any shape.
        b: The current values: float64, finite, of the same shape.
        tolerance: Relative tolerance, a few units in the last place of the original dtypes.
    """
    if np.unique(a).size < 3:
        return None
    for old, new, words in ((a, b, "passed through {}"), (b, a, "no longer passed through {}")):
        for name, function in _FUNCTIONS.items():
            with np.errstate(all="ignore"):
                result = function(old)
            if np.all(np.abs(result - new) <= 4 * tolerance * (np.abs(new) + np.abs(old) + 1)):
                return Step("function", words.format(name), {"function": name})
    return None


def find_standardization(a: Array, b: Array, tolerance: float) -> Step | None:
    """Find a table whose columns are now, or are no longer, standardized or stretched to 0..1.

    Args:
        a: The locked values: float64, finite, shape (rows, columns).
        b: The current values: float64, finite, of the same shape.
        tolerance: Relative tolerance, a few units in the last place of the original dtypes.
    """
    if len(a) < 4 or not (np.ptp(a, 0).any() and np.ptp(b, 0).any()):
        return None
    for words, old, new in ((f"standardized per column{NOT_BEFORE}", a, b), ("not standardized per column", b, a)):
        std = old.std(0)
        if np.allclose(new, (old - old.mean(0)) / np.where(std > 0, std, 1), atol=max(tolerance, 1e-6)):
            return Step("standardised", words, {"mean": format_numbers(old.mean(0)), "std": format_numbers(std)})
        low, spread = old.min(0), np.ptp(old, 0)
        if np.allclose(new, (old - low) / np.where(spread > 0, spread, 1), atol=max(tolerance, 1e-6)):
            words = words.replace("standardized", "stretched to 0..1")
            return Step("standardised", words, {"low": format_numbers(low), "high": format_numbers(old.max(0))})
    return None


def _find_shift(a: Array, b: Array, tolerance: float) -> Step | None:
    shift = float(np.median(b - a))
    return (
        Step("unit", f"shifted by {shift:.6g}", {"shift": shift}) if _is_linear(a, b, 1.0, shift, tolerance) else None
    )


def _describe_factor(scale: float) -> str | None:
    for factor, name in _FACTORS.items():
        for text, value in ((f"{factor:.5g}", factor), (f"1/{factor:.5g}", 1 / factor)):
            if abs(scale - value) <= 1e-6 * value:
                return f"{text} ({name})"
    return None


def _is_linear(a: Array, b: Array, scale: float, shift: float, tolerance: float) -> bool:
    size = np.abs(b) + np.abs(shift) + 1e-30
    return bool(np.all(np.abs(a * scale + shift - b) <= tolerance * size))
