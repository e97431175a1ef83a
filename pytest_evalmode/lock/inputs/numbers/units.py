"""Causes that change each value alone: units, functions, limits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import numpy as np

from pytest_evalmode.lock.inputs.diagnosis import Array, Cause, Step

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
    float(np.log(10) / 10): "natural logarithms and decibels",
    -1.0: "the sign changed",
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
    "the hyperbolic tangent": np.tanh,
    "the absolute value": np.abs,
}
_INVERSES: dict[str, Callable[[Array], Array]] = {
    "the natural logarithm": np.exp,
    "the logarithm of 1 + x (log1p)": np.expm1,
    "the decimal logarithm": lambda values: 10.0**values,
    "the binary logarithm": np.exp2,
    "the square root": np.square,
    "the square": np.sqrt,
    "the exponential": np.log,
    "the sigmoid": lambda values: np.log(values / (1 - values)),
    "the hyperbolic tangent": np.arctanh,
}
_AFFINE = {(1.8, 32.0): "Celsius and Fahrenheit", (1.0, 273.15): "Celsius and kelvin"}


# A factor, or a factor and a shift, for all values: parameters are (factor, shift, what it is).


def _factors(a: Array, b: Array) -> Iterator[tuple[float, float, str]]:
    used = (a != 0) & (b != 0)
    if used.any():
        fitted = float(np.median(b[used] / a[used]))
        for factor, name in _FACTORS.items():
            for text, value in ((f"{factor:.5g}", factor), (f"1/{factor:.5g}", 1 / factor)):
                if abs(fitted - value) <= 1e-6 * abs(value):
                    yield value, 0.0, f"{text} ({name})"
    for (factor, offset), name in _AFFINE.items():
        yield factor, offset, name
        yield 1 / factor, -offset / factor, name


def _fitted_factor(a: Array, b: Array) -> Iterator[tuple[float, float, str]]:
    spread = float((a * a).sum())
    if spread:
        yield float((a * b).sum()) / spread, 0.0, ""


def _fitted_shift(a: Array, b: Array) -> Iterator[tuple[float, float, str]]:
    if a.shape == b.shape:
        yield 1.0, float(np.median(b - a)), ""


def _fitted_line(a: Array, b: Array) -> Iterator[tuple[float, float, str]]:
    spread = float(((a - a.mean()) ** 2).sum())
    if spread:
        scale = float(((a - a.mean()) * (b - b.mean())).sum()) / spread
        yield scale, float(b.mean() - scale * a.mean()), ""


def _describe_line(_: Array, __: Array, line: tuple[float, float, str]) -> Step:
    scale, shift, name = line
    details = {"factor": scale, "shift": shift}
    if not shift:
        return Step("unit", f"multiplied by {name or f'{scale:.6g}'}", details)
    if scale == 1 and not name:
        return Step("unit", f"shifted by {shift:.6g}", details)
    return Step("unit", f"multiplied by {scale:.6g} and shifted by {shift:.6g}{f' ({name})' if name else ''}", details)


def same_shape(recognize: Callable[[Array, Array], Iterator[Any]]) -> Callable[[Array, Array], Iterator[Any]]:
    """Propose nothing for arrays of different shapes or without any spread."""
    return lambda a, b: recognize(a, b) if a.shape == b.shape and (a.size == 1 or np.ptp(b)) else iter(())


def _line(recognize: Callable[[Array, Array], Iterator[Any]], fitted: int) -> Cause:
    return Cause(same_shape(recognize), lambda a, p: a * p[0] + p[1], _describe_line, lambda _: fitted)


# Functions without parameters, and limits.


def _functions(a: Array, b: Array) -> Iterator[tuple[bool, str]]:
    if a.shape == b.shape and np.unique(b).size > 2:
        yield from product((False, True), _FUNCTIONS)


def _apply_function(a: Array, parameters: tuple[bool, str]) -> Array:
    inverse, name = parameters
    return np.asarray(_INVERSES[name](a) if inverse else _FUNCTIONS[name](a)) if name in _INVERSES or not inverse else a


def _describe_function(_: Array, __: Array, parameters: tuple[bool, str]) -> Step:
    words = f"{'no longer ' if parameters[0] else ''}passed through {parameters[1]}"
    return Step("function", words, {"function": parameters[1]})


def _limits(a: Array, b: Array) -> Iterator[tuple[float, float]]:
    if a.min() < b.min() or a.max() > b.max():
        yield float(b.min()), float(b.max())


def _thresholds(a: Array, b: Array) -> Iterator[tuple[float, float, float]]:
    levels = np.unique(b)
    if len(levels) == 2 and np.unique(a).size > 3:
        low, high = a[b == levels[0]], a[b == levels[1]]
        if low.max() < high.min():
            yield float(low.max() / 2 + high.min() / 2), float(levels[0]), float(levels[1])
        if high.max() < low.min():
            yield float(high.max() / 2 + low.min() / 2), float(levels[1]), float(levels[0])


def _describe_threshold(a: Array, _: Array, p: tuple[float, float, float]) -> Step:
    words = f"given in 2 levels, not {np.unique(a).size}: {p[2]:.4g} above {p[0]:.4g}, else {p[1]:.4g} (a threshold)"
    return Step("threshold", words, {"threshold": p[0]})


def _gammas(a: Array, b: Array) -> Iterator[float]:
    inner = (a > 0.02) & (a < 0.98) & (b > 0)
    if a.min() >= 0 and a.max() <= 1 and b.min() >= 0 and b.max() <= 1 and inner.sum() > 4:
        yield float(np.median(np.log(b[inner]) / np.log(a[inner])))


POINTWISE = (
    _line(_factors, 0),
    Cause(_functions, _apply_function, _describe_function),
    Cause(
        same_shape(_gammas),
        lambda a, p: np.maximum(a, 0) ** p,
        lambda a, b, p: Step("curve", f"given with another gamma (raised to the power of {p:.3g})", {"gamma": p}),
        lambda _: 1,
        residual=1e-6,
    ),
    _line(_fitted_factor, 1),
    _line(_fitted_shift, 1),
    _line(_fitted_line, 2),
    Cause(
        same_shape(_limits),
        lambda a, p: np.clip(a, *p),
        lambda a, b, p: Step("clipped", f"clipped to {p[0]:.4g}..{p[1]:.4g}", {"low": p[0], "high": p[1]}),
        lambda _: 2,
    ),
    Cause(
        same_shape(_thresholds),
        lambda a, p: np.where(a > p[0], p[2], p[1]),
        _describe_threshold,
    ),
)
