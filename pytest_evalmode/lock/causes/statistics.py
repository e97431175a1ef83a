"""Causes that act on whole columns, channels or samples: their order, their own statistics, a factor and a shift."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import numpy as np

from pytest_evalmode.lock.causes.cause import NOT_BEFORE, RANDOM, Array, Cause, Step, describe_line
from pytest_evalmode.lock.causes.numbers import same_shape
from pytest_evalmode.lock.causes.order import match_samples, sample_bytes
from pytest_evalmode.lock.causes.proof import MAX_COLUMNS, fit_lines

# Places: parameters are the order of the columns, or the axis that was reversed.


def _column_order(a: Array, b: Array) -> Iterator[list[int]]:
    if a.ndim == b.ndim == 2 and len(a) == len(b) >= 2 and a.shape[1] <= MAX_COLUMNS:
        index = match_samples(sample_bytes(a.T), sample_bytes(b.T))
        if index is not None and len(set(index)) == len(index):
            yield index


def _describe_order(a: Array, _: Array, index: list[int]) -> Step:
    dropped = sorted(set(range(a.shape[1])) - set(index))
    if dropped:
        columns = f"column{'s' * (len(dropped) > 1)} {', '.join(map(str, dropped[:5]))}"
        return Step("columns", f"given without {columns}")
    return Step("columns", "given with the columns in another order")


def _long_axes(a: Array, _: Array) -> Iterator[int]:
    yield from (axis for axis in range(1, a.ndim) if a.shape[axis] > 2)


def _describe_flip(a: Array, _: Array, axis: int) -> Step:
    return Step("flip", f"reversed along {f'axis {axis}' if a.ndim > 2 else 'the last axis'}")


# A factor and a shift for each index of some axes: parameters are (axes that are summed over, scale, shift).


def _column_axes(a: Array) -> list[tuple[int, ...]]:
    """Return the axes over which each column of a table, or channel of a series, shares its statistics."""
    return [tuple(range(a.ndim - 1)), (0, *range(2, a.ndim))][: max(0, a.ndim - 1)]


def _sample_axes(a: Array) -> list[tuple[int, ...]]:
    return [tuple(range(1, a.ndim))] if a.ndim >= 2 and len(a) > 1 else []


def _affine(axes_of: Callable[[Array], list[tuple[int, ...]]]) -> Callable[[Array, Array], Iterator[Any]]:
    def recognize(a: Array, b: Array) -> Iterator[Any]:
        for axes in axes_of(a):
            if np.prod([a.shape[i] for i in axes]) < 6 or np.any((np.ptp(b, axes) == 0) & (np.ptp(a, axes) > 0)):
                continue  # too few values, or replaced by a constant, not scaled
            same = (a == b).all(axes, keepdims=True)
            scale, shift = fit_lines(a, b, axes)
            yield axes, np.where(same, 1.0, scale), np.where(same, 0.0, shift)

    return same_shape(recognize)


def _describe_columns(a: Array, b: Array, parameters: Any) -> Step:
    axes, scale, shift = parameters
    name = "column" if a.ndim == 2 else "channel"
    standardized = [_is_standardized(each, axes) for each in (a, b)]
    if standardized == [False, True]:
        return Step("standardised", f"standardized per {name}{NOT_BEFORE}")
    scales, shifts = scale.ravel(), shift.ravel()
    changed = np.flatnonzero((scales != 1) | (shifts != 0))
    scales = np.where(np.abs(scales - 1) > 1e-9, scales, 1.0)
    shifts = np.where((scales == 1) | (np.abs(shifts) > 1e-6 * np.abs(b).max()), shifts, 0.0)
    shown = [f"{name} {i} {describe_line(scales[i], shifts[i])}" for i in changed[:4]]
    listed = "; ".join(shown) + (f"; and {len(changed) - 4} more {name}s" if len(changed) > 4 else "")
    if standardized == [True, False]:
        return Step("standardised", f"no longer standardized per {name}: {listed}")
    return Step("unit", f"given in other units: {listed}")


def _is_standardized(values: Array, axes: tuple[int, ...]) -> bool:
    """Return whether the mean is about 0 and the std about 1, as they are in a part of standardized values."""
    varies = np.ptp(values, axis=axes) > 0
    mean, std = values.mean(axes)[varies], values.std(axes)[varies]
    near = 4 / np.sqrt(min(np.prod([values.shape[i] for i in axes]), len(values) * 4))
    return bool(varies.any() and np.abs(mean).max() < near and np.abs(std - 1).max() < near)


def _describe_samples(*_: Any) -> Step:
    words = "changed in brightness or contrast (a factor and a shift), differently per sample"
    return Step("augmented", f"{words}: {RANDOM}")


# Samples standardized with their own statistics: parameters are (axes, name, ddof, epsilon).


def _own_statistics(a: Array, b: Array) -> Iterator[tuple[tuple[int, ...], str, int, float]]:
    axes: list[tuple[tuple[int, ...], str]] = []
    axes += [((a.ndim - 1,), "row of each sample"), ((1,), "column of each sample")] if a.ndim >= 3 else []
    axes += [(each, "sample (with its own mean and std)") for each in _sample_axes(a)]
    for over, name in axes:
        if np.prod([a.shape[i] for i in over]) >= 4 and np.abs(b.mean(over)).max() < 1e-3:
            yield from ((over, name, ddof, epsilon) for ddof, epsilon in product((0, 1), (0.0, 1e-5)))


def _standardize(a: Array, parameters: tuple[tuple[int, ...], str, int, float]) -> Array:
    axes, _, ddof, epsilon = parameters
    spread = a.std(axes, ddof=ddof, keepdims=True) + epsilon
    return np.asarray((a - a.mean(axes, keepdims=True)) / np.where(spread > 1e-12, spread, 1.0))


def _describe_own(_: Array, __: Array, parameters: tuple[tuple[int, ...], str, int, float]) -> Step:
    return Step("standardised", f"standardized per {parameters[1]}{NOT_BEFORE}")


COLUMN_ORDER = Cause(_column_order, lambda a, p: a[:, p], _describe_order, len, is_confirmed=True)
PLACES = (
    COLUMN_ORDER,
    Cause(same_shape(_long_axes), lambda a, axis: np.flip(a, axis), _describe_flip),
)
STATISTICS = (
    Cause(same_shape(_own_statistics), _standardize, _describe_own, residual=2e-5),
    Cause(_affine(_sample_axes), lambda a, p: a * p[1] + p[2], _describe_samples, lambda p: int(2 * p[1].size)),
)
COLUMNS = (
    Cause(
        _affine(_column_axes),
        lambda a, p: a * p[1] + p[2],
        _describe_columns,
        lambda p: 2 * int(((p[1] != 1) | (p[2] != 0)).sum()),
    ),
)
