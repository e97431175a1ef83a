"""Causes that change columns, channels or samples by statistics of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import numpy as np

from pytest_evalmode.lock.inputs.diagnosis import NOT_BEFORE, RANDOM, Array, Cause, Step, format_numbers
from pytest_evalmode.lock.inputs.numbers.units import same_shape

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

    return same_shape(recognize)


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


STATISTICS = (
    Cause(same_shape(_own_statistics), _standardize, _describe_own, residual=2e-5),
    Cause(
        _affine_over(_samples),
        lambda a, p: a * p[1] + p[2],
        _describe_samples,
        lambda p: int(2 * p[1].size),
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
