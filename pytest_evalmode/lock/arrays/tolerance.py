"""Comparison of an array with the locked one within the tolerance of `torch.testing.assert_close`."""

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
"""The defaults of `assert_close` by dtype: (rtol, atol). Listed here, because bfloat16 is compared as float32."""


def find_difference(
    locked: Entry, stream: Stream, stored: Array | None, sketch: Array | None, tolerance: Tolerance
) -> tuple[str, str] | None:
    """Describe how an array differs from the locked one.

    Stored samples are compared by value, the others by their sketches.

    Args:
        locked: The locked array.
        stream: The array of this run.
        stored: The stored values, of shape (samples, ...); None if there are none.
        sketch: The stored sketches, float64 of shape (sketches,); None if all values are stored.
        tolerance: `rtol` and `atol`, or None for those of `assert_close`.

    Returns:
        A short description, and a longer one in the words of `assert_close`; None within the tolerance.
    """
    entry = stream.entry()
    if matches(locked, entry):
        return None
    for name in ("shape", "samples", "dtype"):
        if locked[name] != entry[name]:
            words = f"{name} {locked[name]} -> {entry[name]}"
            return words, words
    new = stream.stored_values()
    if new.dtype.kind not in "biufc" or entry["dtype"] == "text":
        return "values differ", ""
    rtol, atol = _limits(tolerance, entry["dtype"])
    if stored is not None:
        old = restore_values(stored, locked["dtype"])
        both = min(len(old), len(new)) if not stream.is_complete else len(new)
        if old[:both].shape == new[:both].shape:
            difference = _compare_values(old[:both], new[:both], rtol, atol)
            if difference is not None or stream.is_complete:
                return difference
    if sketch is None or sketch.dtype != np.float64 or sketch.shape != stream.sketch.sums.shape:
        return "values differ; too few are stored to compare them within a tolerance", ""
    return _compare_sketches(locked, stream, sketch, rtol, atol)


def _compare_sketches(locked: Entry, stream: Stream, sketch: Array, rtol: float, atol: float) -> tuple[str, str] | None:
    """Describe how the samples that are not stored differ, as far as their sketches show it."""
    differing = stream.sketch.find_differing(sketch, rtol, atol)
    if not differing:
        return None
    names = [str(i) if i < MAX_UNSHARED else f"{i} or later" for i in differing]
    shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    words = f"samples {shown} of {stream.count} differ"
    entry = stream.entry()
    for name in ("mean", "rms"):
        old, new = locked.get(name, math.nan), entry.get(name, math.nan)
        if not math.isclose(old, new, rel_tol=max(rtol, 1e-6), abs_tol=atol):
            words += f"; {name} {old:.6g} -> {new:.6g}"
    return words, words


def _limits(tolerance: Tolerance, dtype: str) -> tuple[float, float]:
    """Return the tolerance that the test has set, else that of `assert_close` for the dtype."""
    rtol, atol = tolerance.get("rtol"), tolerance.get("atol")
    return _DEFAULTS.get(dtype, (0.0, 0.0)) if rtol is None or atol is None else (rtol, atol)


def _compare_values(old: Array, new: Array, rtol: float, atol: float) -> tuple[str, str] | None:
    expected, actual = (torch.from_numpy(np.array(values)) for values in (old, new))
    try:
        torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol, equal_nan=True)
    except AssertionError as error:
        return _describe(old, new), " ".join(str(error).split())
    return None


def _describe(old: Array, new: Array) -> str:
    if old.size == 1:
        return f"{old.reshape(-1)[0]:.6g} -> {new.reshape(-1)[0]:.6g}"
    wide = np.complex128 if old.dtype.kind == "c" else np.float64
    change = np.abs(new.astype(wide) - old.astype(wide))
    largest = int(np.nanargmax(np.nan_to_num(change, nan=np.inf)))
    at = tuple(int(i) for i in np.unravel_index(largest, change.shape))
    words = f"{int((change != 0).sum())} of {change.size} values differ, by up to {change[at]:.3g} at {at}"
    if old.ndim == 2 and old.shape[1] > 1 and old.dtype.kind == "f":
        flipped = int((old.argmax(1) != new.argmax(1)).sum())
        words += f"; the argmax differs in {flipped} of {len(old)} samples" if flipped else ""
    return words
