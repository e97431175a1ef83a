"""Causes of changed numbers: units, functions, statistics, moved axes. For tables, series, metrics and images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import numpy as np

from pytest_evalmode.lock.inputs import sample_order
from pytest_evalmode.lock.inputs.diagnosis import NOT_BEFORE, RANDOM, Array, Cause, Step, format_numbers

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


def _same_shape(recognize: Callable[[Array, Array], Iterator[Any]]) -> Callable[[Array, Array], Iterator[Any]]:
    """Propose nothing for arrays of different shapes or without any spread."""
    return lambda a, b: recognize(a, b) if a.shape == b.shape and (a.size == 1 or np.ptp(b)) else iter(())


def _line(recognize: Callable[[Array, Array], Iterator[Any]], fitted: int) -> Cause:
    return Cause(_same_shape(recognize), lambda a, p: a * p[0] + p[1], _describe_line, lambda _: fitted)


# A factor and a shift for each index of some axes: parameters are (axes that are summed over, scale, shift).


def _affine_over(axes_of: Callable[[Array], Iterator[tuple[int, ...]]]) -> Callable[[Array, Array], Iterator[Any]]:
    def recognize(a: Array, b: Array) -> Iterator[Any]:
        for axes in axes_of(a):
            if np.prod([a.shape[i] for i in axes]) < 6:
                continue
            mean_a, mean_b = a.mean(axes, keepdims=True), b.mean(axes, keepdims=True)
            spread = ((a - mean_a) ** 2).sum(axes, keepdims=True)
            scale = np.where(spread > 0, ((a - mean_a) * (b - mean_b)).sum(axes, keepdims=True) / spread, 1.0)
            if np.any((np.ptp(b, axes) == 0) & (np.ptp(a, axes) > 0)):
                continue  # replaced by a constant, not scaled
            same = (a == b).all(axes, keepdims=True)
            scale = np.where(same, 1.0, scale)
            yield axes, scale, np.where(same, 0.0, mean_b - scale * mean_a)

    return _same_shape(recognize)


def _columns(a: Array) -> Iterator[tuple[int, ...]]:
    """Yield the axes over which each column of a table, or channel of a series, shares its statistics."""
    if a.ndim >= 2:
        yield tuple(range(a.ndim - 1))
    if a.ndim >= 3:
        yield (0, *range(2, a.ndim))


def _samples(a: Array) -> Iterator[tuple[int, ...]]:
    if a.ndim >= 2 and len(a) > 1:
        yield tuple(range(1, a.ndim))


def _describe_columns(a: Array, b: Array, parameters: Any) -> Step:
    axes, scale, shift = parameters
    name = "column" if a.ndim == 2 else "channel"
    size = int(np.prod([a.shape[i] for i in axes]))
    changed = np.flatnonzero(((scale != 1) | (shift != 0)).ravel())
    details: dict[str, object] = {"scale": scale.ravel()[:32].tolist(), "shift": shift.ravel()[:32].tolist()}
    standardized = [_is_standardized(each, axes, size) for each in (a, b)]
    if standardized == [False, True]:
        return Step("standardised", f"standardized per {name}{NOT_BEFORE}", details)
    shown = []
    for i in changed[:4]:
        words = [f"multiplied by {scale.ravel()[i]:.6g}"] * bool(abs(scale.ravel()[i] - 1) > 1e-9)
        has_shift = bool(abs(shift.ravel()[i]) > 1e-6 * np.abs(b).max())
        shown.append(" and ".join(words + [f"shifted by {shift.ravel()[i]:.6g}"] * (has_shift or not words)))
    listed = "; ".join(f"{name} {i} {words}" for i, words in zip(changed[:4], shown, strict=True))
    more = f"; and {len(changed) - 4} more {name}s" if len(changed) > 4 else ""
    if standardized == [True, False]:
        return Step("standardised", f"no longer standardized per {name}: {listed}{more}", details)
    return Step("unit", f"given in other units: {listed}{more}", details)


def _is_standardized(values: Array, axes: tuple[int, ...], size: int) -> bool:
    """Return whether the mean is about 0 and the std about 1, as they are in a part of standardized values."""
    varies = np.ptp(values, axis=axes) > 0
    mean, std = values.mean(axes)[varies], values.std(axes)[varies]
    near = 4 / np.sqrt(min(size, len(values) * 4))
    return bool(varies.any() and np.abs(mean).max() < near and np.abs(std - 1).max() < near)


def _describe_samples(a: Array, b: Array, parameters: Any) -> Step:
    axes, scale, _ = parameters
    details = {"scale": tuple(float(f"{value:.6g}") for value in scale.ravel()[:32])}
    if np.abs(b.mean(axes)).max() < 1e-3 and np.abs(b.std(axes) - 1).max() < 0.02:
        return Step("other statistics", "normalized with the mean and std of each sample", details)
    low, high = b.min(axes), b.max(axes)
    if np.ptp(low) < 1e-6 * np.ptp(b) and np.ptp(high) < 1e-6 * np.ptp(b):
        return Step("range", f"stretched per sample to {low[0]:.4g}..{high[0]:.4g}", details)
    return Step(
        "augmented",
        f"changed in brightness or contrast (a factor and a shift), differently per sample: {RANDOM}",
        details,
    )


# Values standardized with their own statistics: parameters are (axes, name, ddof, epsilon, range).


def _own_statistics(a: Array, b: Array) -> Iterator[Any]:
    axes = [(tuple(range(a.ndim - 1)), "column" if a.ndim == 2 else "channel")] if a.ndim >= 2 else []
    if a.ndim >= 3:
        axes += [((0, *range(2, a.ndim)), "channel")]
        axes += [((a.ndim - 1,), "row of each sample"), ((1,), "column of each sample")]
        axes += [(tuple(range(2, a.ndim)), "channel of each sample")] * (a.ndim > 3)
    axes += [(tuple(range(1, a.ndim)), "sample")] if a.ndim >= 2 and len(a) > 1 else []
    for over, name in axes:
        if np.prod([a.shape[i] for i in over]) < 4:
            continue
        if np.abs(b.mean(over)).max() < 1e-3:
            yield from ((over, name, ddof, epsilon, None) for ddof, epsilon in product((0, 1), (0.0, 1e-5)))
        elif np.abs(b.min(over)).max() < 1e-6 and np.abs(b.max(over) - 1)[np.ptp(b, over) > 0].max(initial=0) < 1e-5:
            yield over, name, 0, 0.0, "0..1"


def _standardize(a: Array, parameters: Any) -> Array:
    axes, _, ddof, epsilon, stretched = parameters
    center = a.min(axes, keepdims=True) if stretched else a.mean(axes, keepdims=True)
    spread = np.ptp(a, axes, keepdims=True) if stretched else a.std(axes, ddof=ddof, keepdims=True) + epsilon
    return np.asarray((a - center) / np.where(spread > 1e-12, spread, 1.0))


def _describe_own(a: Array, _: Array, parameters: Any) -> Step:
    axes, name, _, _, stretched = parameters
    how = f"stretched to {stretched}" if stretched else "standardized"
    if name == "sample":
        name = "sample (with its own mean and std)" if not stretched else name
    return Step("standardised", f"{how} per {name}{NOT_BEFORE}", {"mean": format_numbers(a.mean(axes).ravel())})


# Positions: parameters are the axis and how it was moved.


def _column_order(a: Array, b: Array) -> Iterator[list[int]]:
    if a.ndim == b.ndim == 2 and len(a) == len(b) >= 2:
        index = sample_order.match_identical(a.T, b.T)
        if index is not None and len(set(index)) == len(index):
            yield index


def _count_moved(index: list[int]) -> int:
    rolled = any(index == list(np.roll(range(len(index)), by)) for by in (1, -1))
    return 0 if rolled or index == sorted(index) else len(index)


def _describe_order(a: Array, _: Array, index: list[int]) -> Step:
    details: dict[str, object] = {"order": tuple(index[:32])}
    dropped = sorted(set(range(a.shape[1])) - set(index))
    if dropped:
        columns = f"column{'s' * (len(dropped) > 1)} {', '.join(map(str, dropped[:5]))}"
        return Step("columns", f"given without {columns}", details)
    by = next((n for n in (1, -1) if index == list(np.roll(range(len(index)), n))), 0)
    how = f"moved by one to the {'right' if by > 0 else 'left'}" if by else "in another order"
    return Step("columns", f"given with the columns {how}", details)


def _axis_moves(a: Array, b: Array) -> Iterator[tuple[int, int]]:
    """Propose each axis but the first reversed (shift 0), or rolled."""
    if a.shape != b.shape or a.ndim < 2:
        return
    for axis in range(1, a.ndim):
        if a.shape[axis] > 2:
            yield axis, 0
    for axis in range(1, a.ndim):
        if a.shape[axis] > 2:
            lines = (
                np.moveaxis(a, axis, -1).reshape(-1, a.shape[axis]),
                np.moveaxis(b, axis, -1).reshape(-1, b.shape[axis]),
            )
            spectra = [np.fft.rfft(each[:64] - each[:64].mean()) for each in lines]
            lag = int(np.fft.irfft((spectra[1] * np.conj(spectra[0])).sum(0), a.shape[axis]).argmax())
            if lag:
                yield axis, lag if lag <= a.shape[axis] // 2 else lag - a.shape[axis]


def _move_axis(a: Array, move: tuple[int, int]) -> Array:
    return np.roll(a, move[1], move[0]) if move[1] else np.flip(a, move[0])


def _describe_move(a: Array, _: Array, move: tuple[int, int]) -> Step:
    axis, by = move
    name = f"axis {axis}" if a.ndim > 2 else "the last axis"
    if by:
        return Step("shift", f"rolled by {by} along {name}, the end moved to the start", {"axis": axis, "by": by})
    return Step("flip", f"reversed along {name}", {"axis": axis})


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


MOVES = (
    Cause(_column_order, lambda a, p: a[:, p], _describe_order, _count_moved, is_confirmed=True),
    Cause(_axis_moves, _move_axis, _describe_move, lambda p: int(p[1] != 0)),
)
STATISTICS = (
    Cause(_same_shape(_own_statistics), _standardize, _describe_own, residual=2e-5),
    Cause(
        _affine_over(_samples),
        lambda a, p: a * p[1] + p[2],
        _describe_samples,
        lambda p: int(2 * p[1].size),
    ),
)
POINTWISE = (
    _line(_factors, 0),
    Cause(_functions, _apply_function, _describe_function),
    Cause(
        _same_shape(_gammas),
        lambda a, p: np.maximum(a, 0) ** p,
        lambda a, b, p: Step("curve", f"given with another gamma (raised to the power of {p:.3g})", {"gamma": p}),
        lambda _: 1,
        residual=1e-6,
    ),
    _line(_fitted_factor, 1),
    _line(_fitted_shift, 1),
    _line(_fitted_line, 2),
    Cause(
        _same_shape(_limits),
        lambda a, p: np.clip(a, *p),
        lambda a, b, p: Step("clipped", f"clipped to {p[0]:.4g}..{p[1]:.4g}", {"low": p[0], "high": p[1]}),
        lambda _: 2,
    ),
    Cause(
        _same_shape(_thresholds),
        lambda a, p: np.where(a > p[0], p[2], p[1]),
        _describe_threshold,
    ),
)
COLUMNS = (
    Cause(
        _affine_over(_columns),
        lambda a, p: a * p[1] + p[2],
        _describe_columns,
        lambda p: 2 * int(((p[1] != 1) | (p[2] != 0)).sum()),
    ),
)
CAUSES = (*MOVES, *POINTWISE, *STATISTICS, *COLUMNS)
