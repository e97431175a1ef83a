"""Rounding of values: to a narrower dtype, to 8-bit levels, to whole numbers, to fewer levels."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from pytest_evalmode.lock.inputs.diagnosis import Array, Step
from pytest_evalmode.lock.inputs.images.pixel_codings import Coding

_MAX_LEVELS = 64


def bfloat16(values: Array) -> Array:
    """Round to the nearest bfloat16 values, ties to even; NumPy does not have this dtype."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + (0x7FFF + ((bits >> 16) & 1))) & np.uint32(0xFFFF0000)).view(np.float32)


def float16(values: Array) -> Array:
    with np.errstate(over="ignore"):
        return values.astype(np.float16)


def float32(values: Array) -> Array:
    with np.errstate(over="ignore"):
        return values.astype(np.float32)


# The widest dtype that explains the values is reported, so the narrowest comes last.
_TYPES: dict[str, tuple[Callable[[Array], Array], float]] = {
    "float32": (float32, 2.0**-24),
    "float16": (float16, 2.0**-11),
    "bfloat16": (bfloat16, 2.0**-8),
}


def try_roundings(a: Array, b: Array, error: float, coding: Coding | None = None) -> Iterator[tuple[Step, float]]:
    """Yield the roundings that turn one array into another.

    Args:
        a: The locked values: float64, any shape and range.
        b: The current values: float64, same shape.
        error: The absolute error up to which `a` is known; 0.0 if it is exact.
        coding: The coding of images of shape (samples, channels, rows, columns), to find their 8-bit levels.

    Yields:
        The step and the largest absolute difference that remains.
    """
    for name, (cast, unit) in _TYPES.items():
        if np.array_equal(np.asarray(cast(b), float), b):
            residual = np.abs(np.asarray(cast(a), float) - b)
            # If `a` has an error, a few values may have been rounded to the other neighbor, one unit away.
            spacing = 2 * unit * np.abs(b) + 1e-30
            is_off = residual > error
            max_share = 1e-3 + error / max(unit, 1e-12)
            if not np.any(is_off & (residual > 1.01 * spacing + error)) and is_off.mean() < max_share:
                if error and not _is_large_enough(a, b, unit):
                    continue
                yield Step("rounding", f"rounded to {name}", {"rounded": name}), float(residual.max())
    yield from _try_levels(a, b, error, coding)


def _is_large_enough(a: Array, b: Array, unit: float) -> bool:
    """Return whether the differences are about as large as this rounding would cause."""
    return bool(np.abs(a - b).max() > 0.05 * unit * np.abs(b).max())


def _try_levels(a: Array, b: Array, error: float, coding: Coding | None) -> Iterator[tuple[Step, float]]:
    """Yield roundings to the nearest or the next lower 8-bit level or whole number."""
    for levels, unit in (
        ((255.0, "8-bit levels"), (1.0, "whole numbers")) if coding is None else ((255.0, "8-bit levels"),)
    ):
        old, new = ((coding.to_pixels(each) if coding else each) * levels for each in (a, b))
        if unit == "8-bit levels" and (new.min() < -0.5 or new.max() > 255.5 or np.ptp(new) < 2):
            continue
        if np.abs(new - np.round(new)).max() > 2e-3:
            continue  # not on the levels
        bounds = (0, 255) if unit == "8-bit levels" else (-np.inf, np.inf)
        for function, words in ((np.round, "rounded"), (np.floor, "rounded down")):
            residual = np.abs(np.clip(function(old), *bounds) - np.round(new))
            is_off = residual > 0.5
            if is_off.mean() <= 1e-3 and residual.max() <= 1 and np.abs(old - new).max() > 1e-2:
                step = Step(
                    "rounding", f"{words} to {unit} (uint8)" if levels > 1 else f"{words} to {unit}", {"rounded": unit}
                )
                yield step, float(np.abs(a - b).max()) if is_off.any() else error


def find_fewer_levels(a: Array, b: Array, _: float) -> tuple[Step, float] | None:
    """Find values that have few, evenly spaced levels, each at most one level from the locked value.

    Args:
        a: The locked values: float64, any shape and range.
        b: The current values: float64, same shape.

    Returns:
        The step and the largest absolute difference that remains, or None.
    """
    levels, before = np.unique(b), np.unique(a).size
    if not 2 < len(levels) <= _MAX_LEVELS or before < 2 * len(levels):
        return None
    step = float(np.diff(levels).min())
    places = (levels - levels[0]) / step
    residual = float(np.abs(a - b).max())
    if residual > 1.01 * step or np.abs(places - places.round()).max() > 0.02:
        return None
    words = f"given in {len(levels)} levels instead of {before}"
    return Step("rounding", words, {"levels": (before, len(levels))}), residual
