"""An array against the one that was locked, within the tolerance of `torch.testing.assert_close`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pytest_evalmode.lock.arrays.array_entries import matches
from pytest_evalmode.lock.arrays.packing import restore_values
from pytest_evalmode.lock.arrays.sketches import MAX_UNSHARED
from pytest_evalmode.lock.arrays.stream import Stream
from pytest_evalmode.lock.lock_file import Entry

if TYPE_CHECKING:
    Array = np.ndarray[Any, Any]

Tolerance = Mapping[str, float | None]
_DEFAULTS = {
    "float16": (1e-3, 1e-5),
    "bfloat16": (1.6e-2, 1e-5),
    "float32": (1.3e-6, 1e-5),
    "float64": (1e-7, 1e-7),
    "complex64": (1.3e-6, 1e-5),
    "complex128": (1e-7, 1e-7),
}
"""What `assert_close` allows by default; bfloat16 is kept as float32, and so it must be told."""


def find_difference(
    was: Entry, now: Stream, kept: Array | None, sketch: Array | None, tolerance: Tolerance
) -> tuple[str, str] | None:
    """How an output differs, in a few words and in `assert_close`'s own; None if it is close enough.

    What is kept is compared by value; of a larger one the rest by the sketches of its samples.
    """
    new = now.entry()
    if matches(was, new):
        return None
    for name in ("shape", "samples", "dtype"):
        if was[name] != new[name]:
            words = f"{name} {was[name]} -> {new[name]}"
            return words, words
    live = now.stored_values()
    if live.dtype.kind not in "biufc" or new["dtype"] == "text":
        return "values differ", ""
    rtol, atol = _limits(tolerance, new["dtype"])
    if kept is not None:
        kept = restore_values(kept, was["dtype"])
        both = min(len(kept), len(live)) if not now.is_complete else len(live)
        if kept[:both].shape == live[:both].shape:
            far = _far(kept[:both], live[:both], rtol, atol)
            if far is not None or now.is_complete:
                return far
    if sketch is None or sketch.dtype != np.float64 or sketch.shape != now.sketch.sums.shape:
        return "values differ, and too few were kept to compare them within a tolerance", ""
    return _further(was, now, sketch, rtol, atol)


def _further(was: Entry, now: Stream, sketch: Array, rtol: float, atol: float) -> tuple[str, str] | None:
    """How the samples differ of which no values were kept."""
    apart = now.sketch.find_differing(sketch, rtol, atol)
    if not apart:
        return None
    names = [str(i) if i < MAX_UNSHARED else f"some from {i} on" for i in apart]
    shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    words = f"samples {shown} of {now.count} differ"
    new = now.entry()
    for name in ("mean", "rms"):
        old, live = was.get(name, math.nan), new.get(name, math.nan)
        if not math.isclose(old, live, rel_tol=max(rtol, 1e-6), abs_tol=atol):
            words += f"; {name} {old:.6g} -> {live:.6g}"
    return words, words


def _limits(tolerance: Tolerance, dtype: str) -> tuple[float, float]:
    """The tolerance that was asked for, else the one that `assert_close` has for a dtype."""
    rtol, atol = tolerance.get("rtol"), tolerance.get("atol")
    return _DEFAULTS.get(dtype, (0.0, 0.0)) if rtol is None or atol is None else (rtol, atol)


def _far(was: Array, now: Array, rtol: float, atol: float) -> tuple[str, str] | None:
    old, new = (torch.from_numpy(np.array(values)) for values in (was, now))
    try:
        torch.testing.assert_close(new, old, rtol=rtol, atol=atol, equal_nan=True)
    except AssertionError as error:
        return _words(was, now), " ".join(str(error).split())
    return None


def _words(was: Array, now: Array) -> str:
    if was.size == 1:
        return f"{was.reshape(-1)[0]:.6g} -> {now.reshape(-1)[0]:.6g}"
    wide = np.complex128 if was.dtype.kind == "c" else np.float64
    far = np.abs(now.astype(wide) - was.astype(wide))
    at = tuple(int(i) for i in np.unravel_index(int(np.nanargmax(np.nan_to_num(far, nan=np.inf))), far.shape))
    words = f"{int((far != 0).sum())} of {far.size} values differ, by up to {far[at]:.3g} at {at}"
    if was.ndim == 2 and was.shape[1] > 1 and was.dtype.kind == "f":
        turned = int((was.argmax(1) != now.argmax(1)).sum())
        words += f"; {turned} of {len(was)} samples have another largest value" if turned else ""
    return words
