"""Values that went through a narrower type or fewer levels."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from pytest_evalmode.lock.inputs.diagnosis import Array, Step
from pytest_evalmode.lock.inputs.images.pixel_codings import Coding

_FEW = 64  # levels


def bfloat16(values: Array) -> Array:
    """The nearest bfloat16 values, ties to even, which numpy has no type for."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + (0x7FFF + ((bits >> 16) & 1))) & np.uint32(0xFFFF0000)).view(np.float32)


def float16(values: Array) -> Array:
    with np.errstate(over="ignore"):
        return values.astype(np.float16)


def float32(values: Array) -> Array:
    with np.errstate(over="ignore"):
        return values.astype(np.float32)


# The narrowest last: what a wider type explains is called by that.
_TYPES: dict[str, tuple[Callable[[Array], Array], float]] = {
    "float32": (float32, 2.0**-24),
    "float16": (float16, 2.0**-11),
    "bfloat16": (bfloat16, 2.0**-8),
}


def try_roundings(a: Array, b: Array, slack: float, code: Coding | None = None) -> Iterator[tuple[Step, float]]:
    """The roundings of `a` that give `b`, with what is left over; `slack` is how exactly `a` itself is known."""
    for name, (cast, unit) in _TYPES.items():
        if np.array_equal(np.asarray(cast(b), float), b):
            left = np.abs(np.asarray(cast(a), float) - b)
            # Where `a` is known up to a slack, a tie may have fallen to the other side: one unit, and seldom.
            spacing = 2 * unit * np.abs(b) + 1e-30
            off = left > slack
            if not np.any(off & (left > 1.01 * spacing + slack)) and off.mean() < 1e-3 + slack / max(unit, 1e-12):
                if slack and not _tells(a, b, unit):
                    continue
                yield Step("rounding", f"rounded to {name}", {"rounded": name}), float(left.max())
    yield from _to_levels(a, b, slack, code)


def _tells(a: Array, b: Array, unit: float) -> bool:
    """Whether the differences are of the size that this rounding makes: not far below it."""
    return bool(np.abs(a - b).max() > 0.05 * unit * np.abs(b).max())


def _to_levels(a: Array, b: Array, slack: float, code: Coding | None) -> Iterator[tuple[Step, float]]:
    """Rounded or cut to 8-bit levels, or to whole numbers."""
    for levels, unit in (
        ((255.0, "8-bit levels"), (1.0, "whole numbers")) if code is None else ((255.0, "8-bit levels"),)
    ):
        old, new = ((code.to_pixels(each) if code else each) * levels for each in (a, b))
        if unit == "8-bit levels" and (new.min() < -0.5 or new.max() > 255.5 or np.ptp(new) < 2):
            continue
        if np.abs(new - np.round(new)).max() > 2e-3:
            continue  # not on the levels
        bounds = (0, 255) if unit == "8-bit levels" else (-np.inf, np.inf)
        for how, words in ((np.round, "rounded"), (np.floor, "cut down")):
            left = np.abs(np.clip(how(old), *bounds) - np.round(new))
            off = left > 0.5
            if off.mean() <= 1e-3 and left.max() <= 1 and np.abs(old - new).max() > 1e-2:
                step = Step(
                    "rounding", f"{words} to {unit} (uint8)" if levels > 1 else f"{words} to {unit}", {"rounded": unit}
                )
                yield step, float(np.abs(a - b).max()) if off.any() else slack


def find_fewer_levels(a: Array, b: Array, _: float) -> tuple[Step, float] | None:
    """Values that lie on few even levels, each within one of what it was."""
    levels, before = np.unique(b), np.unique(a).size
    if not 2 < len(levels) <= _FEW or before < 2 * len(levels):
        return None
    step = float(np.diff(levels).min())
    places = (levels - levels[0]) / step
    left = float(np.abs(a - b).max())
    if left > 1.01 * step or np.abs(places - places.round()).max() > 0.02:
        return None
    return Step("rounding", f"given in {len(levels)} levels, not {before}", {"levels": (before, len(levels))}), left
