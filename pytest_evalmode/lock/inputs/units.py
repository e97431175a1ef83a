"""Numbers given in another unit: metrics, features, labels."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pytest_evalmode.lock.inputs.diagnosis import Array, Step, format_numbers

_FACTORS = {
    1000.0: "thousandths, or kilo",
    100.0: "per cent, or centi",
    10.0: "a tenth",
    1e6: "millionths, or mega",
    1e9: "billionths, or giga",
    60.0: "minutes and seconds, or hours and minutes",
    3600.0: "hours and seconds",
    24.0: "days and hours",
    86400.0: "days and seconds",
    255.0: "8-bit levels",
    32768.0: "16-bit levels",
    0.3048: "feet and metres",
    2.54: "inches and centimetres",
    25.4: "inches and millimetres",
    1.609344: "miles and kilometres",
    0.45359237: "pounds and kilograms",
    3.6: "m/s and km/h",
    4.184: "calories and joules",
    float(np.pi / 180): "degrees and radians",
    float(np.log(2)): "nats and bits",
    float(np.log(10)): "natural and decimal logarithms",
}
_CURVES: dict[str, Callable[[Array], Array]] = {
    "the natural logarithm": np.log,
    "the logarithm of one more (log1p)": np.log1p,
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
    """One factor, or one factor and a shift, that takes all of `a` to `b`; both finite, of one shape."""
    if np.ptp(b) == 0 and a.size > 1 and np.ptp(a) != 0:
        return None
    used = a != 0
    if used.any():
        scale = float(np.median(b[used] / a[used]))
        if scale != 0 and _holds(a, b, scale, 0.0, tolerance):
            known = _known(scale)
            if known or np.unique(a[used]).size > 1:
                return Step("unit", f"multiplied by {known or f'{scale:.6g}'}", {"factor": scale})
    for (factor, offset), name in _AFFINE.items():
        for scale, shift in ((factor, offset), (1 / factor, -offset / factor)):
            if _holds(a, b, scale, shift, tolerance):
                words = f"multiplied by {scale:.4g} and shifted by {shift:.5g} ({name})"
                return Step("unit", words, {"factor": scale, "shift": shift})
    if np.unique(a).size < 3 and not (a.size == 1 or np.ptp(a) == 0):
        return _shifted(a, b, tolerance)
    spread = float(((a - a.mean()) ** 2).sum())
    if not spread:
        return None
    scale = float(((a - a.mean()) * (b - b.mean())).sum() / spread)
    shift = float(b.mean() - scale * a.mean())
    if scale == 0 or not _holds(a, b, scale, shift, tolerance):
        return None
    words = (
        f"shifted by {shift:.6g}" if abs(scale - 1) < 1e-6 else f"multiplied by {scale:.6g} and shifted by {shift:.6g}"
    )
    return Step("unit", words, {"factor": scale, "shift": shift})


def find_column_unit_changes(a: Array, b: Array, tolerance: float) -> Step | None:
    """Some columns of a table in another unit, the others as they were."""
    changed = [i for i in range(a.shape[1]) if not np.array_equal(a[:, i], b[:, i])]
    steps = [find_unit_change(a[:, i], b[:, i], tolerance) for i in changed]
    if not changed or len(a) < 3 or any(step is None for step in steps):
        return None
    found = [step for step in steps if step is not None]
    shown = "; ".join(f"column {i} {step.words}" for i, step in list(zip(changed, found, strict=True))[:4])
    more = f"; and {len(changed) - 4} columns more" if len(changed) > 4 else ""
    factors = {i: dict(step.details) for i, step in zip(changed, found, strict=True)}
    return Step("unit", f"given in other units: {shown}{more}", {"columns": factors})


def find_function(a: Array, b: Array, tolerance: float) -> Step | None:
    """A function that is in use, of each value; or what it was a function of."""
    if np.unique(a).size < 3:
        return None
    for old, new, words in ((a, b, "given as {} of what they were"), (b, a, "given as what they were {} of")):
        for name, function in _CURVES.items():
            with np.errstate(all="ignore"):
                made = function(old)
            if np.all(np.abs(made - new) <= 4 * tolerance * (np.abs(new) + np.abs(old) + 1)):
                return Step("function", words.format(name), {"function": name})
    return None


def find_standardization(a: Array, b: Array, tolerance: float) -> Step | None:
    """A table whose every column was centred and scaled, or no longer is."""
    if len(a) < 4 or not (np.ptp(a, 0).any() and np.ptp(b, 0).any()):
        return None
    for words, old, new in (("standardised a column, as they were not", a, b), ("not standardised a column", b, a)):
        std = old.std(0)
        if np.allclose(new, (old - old.mean(0)) / np.where(std > 0, std, 1), atol=max(tolerance, 1e-6)):
            return Step("standardised", words, {"mean": format_numbers(old.mean(0)), "std": format_numbers(std)})
        low, spread = old.min(0), np.ptp(old, 0)
        if np.allclose(new, (old - low) / np.where(spread > 0, spread, 1), atol=max(tolerance, 1e-6)):
            words = words.replace("standardised a column", "stretched to 0..1 a column")
            return Step("standardised", words, {"low": format_numbers(low), "high": format_numbers(old.max(0))})
    return None


def _shifted(a: Array, b: Array, tolerance: float) -> Step | None:
    shift = float(np.median(b - a))
    return Step("unit", f"shifted by {shift:.6g}", {"shift": shift}) if _holds(a, b, 1.0, shift, tolerance) else None


def _known(scale: float) -> str | None:
    for factor, name in _FACTORS.items():
        for told, value in ((f"{factor:.5g}", factor), (f"1/{factor:.5g}", 1 / factor)):
            if abs(scale - value) <= 1e-6 * value:
                return f"{told} ({name})"
    return None


def _holds(a: Array, b: Array, scale: float, shift: float, tolerance: float) -> bool:
    size = np.abs(b) + np.abs(shift) + 1e-30
    return bool(np.all(np.abs(a * scale + shift - b) <= tolerance * size))
