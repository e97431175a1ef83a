"""Outputs and metrics against those that were locked, within the tolerance of `torch.testing.assert_close`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pytest_evalmode.lock.batches import Stream, holds
from pytest_evalmode.lock.file import Entry

if TYPE_CHECKING:
    Array = np.ndarray[Any, Any]

Tolerance = Mapping[str, float | None]


def difference(was: Entry, now: Stream, kept: Array | None, tolerance: Tolerance) -> tuple[str, str] | None:
    """How an output differs, in a few words and in `assert_close`'s own; None if it is close enough.

    What is kept is compared by value; of a larger one the rest by mean and root mean square.
    """
    new = now.entry()
    if holds(was, new):
        return None
    for name in ("shape", "samples", "dtype"):
        if was[name] != new[name]:
            words = f"{name} {was[name]} -> {new[name]}"
            return words, words
    live = now.values()
    if kept is not None and not now.whole:
        both = min(len(kept), len(live))
        kept, live = kept[:both], live[:both]
    if kept is None or kept.shape != live.shape:
        return "values differ, and none were kept to compare", ""
    if live.dtype.kind not in "biufc":
        return "values differ", ""
    far = _far(kept, live, tolerance)
    if far is not None:
        return far
    for name in ("mean", "rms") if not now.whole else ():
        rest = _far(np.asarray(was.get(name, 0.0)), np.asarray(new[name]), tolerance)
        if rest is not None:
            return f"{name} {was.get(name)} -> {new[name]}, over all {now.count} samples", rest[1]
    exact = now.whole or live.dtype.kind == "f"
    return None if exact else ("values differ", "")


def _far(was: Array, now: Array, tolerance: Tolerance) -> tuple[str, str] | None:
    old, new = (torch.from_numpy(np.array(values)) for values in (was, now))
    limits = dict(tolerance)
    if limits["rtol"] is None and limits["atol"] is None and _is_narrow(was) and _is_narrow(now):
        limits = {"rtol": 1.6e-2, "atol": 1e-5}  # what `assert_close` allows bfloat16, as which they came
    try:
        torch.testing.assert_close(new, old, rtol=limits["rtol"], atol=limits["atol"], equal_nan=True)
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


def _is_narrow(values: Array) -> bool:
    """Whether these are values of bfloat16, for which numpy has no type."""
    if values.dtype != np.float32 or values.size < 8:
        return False
    return not bool((np.ascontiguousarray(values).view(np.uint32) & 0xFFFF).any())
