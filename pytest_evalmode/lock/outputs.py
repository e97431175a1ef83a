"""Outputs and metrics against those that were locked, within the tolerance of `torch.testing.assert_close`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pytest_evalmode.lock.batches import Stream, holds, restored
from pytest_evalmode.lock.file import Entry
from pytest_evalmode.lock.inputs.samples import arrays, like
from pytest_evalmode.lock.sketches import MOST

if TYPE_CHECKING:
    Array = np.ndarray[Any, Any]

Tolerance = Mapping[str, float | None]
Again = Callable[[Any], object]
"""What makes an output anew of inputs."""
_DEFAULTS = {
    "float16": (1e-3, 1e-5),
    "bfloat16": (1.6e-2, 1e-5),
    "float32": (1.3e-6, 1e-5),
    "float64": (1e-7, 1e-7),
    "complex64": (1.3e-6, 1e-5),
    "complex128": (1e-7, 1e-7),
}
"""What `assert_close` allows by default; bfloat16 is kept as float32, and so it must be told."""


def difference(
    was: Entry, now: Stream, kept: Array | None, sketch: Array | None, tolerance: Tolerance
) -> tuple[str, str] | None:
    """How an output differs, in a few words and in `assert_close`'s own; None if it is close enough.

    What is kept is compared by value; of a larger one the rest by the sketches of its samples.
    """
    new = now.entry()
    if holds(was, new):
        return None
    for name in ("shape", "samples", "dtype"):
        if was[name] != new[name]:
            words = f"{name} {was[name]} -> {new[name]}"
            return words, words
    live = now.values()
    if live.dtype.kind not in "biufc" or new["dtype"] == "text":
        return "values differ", ""
    rtol, atol = _limits(tolerance, new["dtype"])
    if kept is not None:
        kept = restored(kept, was["dtype"])
        both = min(len(kept), len(live)) if not now.whole else len(live)
        if kept[:both].shape == live[:both].shape:
            far = _far(kept[:both], live[:both], rtol, atol)
            if far is not None or now.whole:
                return far
    if sketch is None or sketch.dtype != np.float64 or sketch.shape != now.sketch.sums.shape:
        return "values differ, and too few were kept to compare them within a tolerance", ""
    return _further(was, now, sketch, rtol, atol)


def _further(was: Entry, now: Stream, sketch: Array, rtol: float, atol: float) -> tuple[str, str] | None:
    """How the samples differ of which no values were kept."""
    apart = now.sketch.apart(sketch, rtol, atol)
    if not apart:
        return None
    names = [str(i) if i < MOST else f"some from {i} on" for i in apart]
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


def first_of_both(
    was: Mapping[str, Entry], now: Mapping[str, Stream], kept: Mapping[str, Array]
) -> tuple[Mapping[str, Array], Mapping[str, Array]] | None:
    """The first samples of inputs, as they were locked and as they are now; None where these were not kept whole."""
    old = {path: restored(kept[path], was[path]["dtype"]) for path in was if path in kept}
    new = {path: stream.values() for path, stream in now.items()}
    if old.keys() != new.keys() or old.keys() != was.keys():
        return None
    # What is larger than its room was cut: that is no input.
    whole = all(
        str(old[path].shape[1:]) == was[path]["shape"] and new[path].shape[1:] == now[path].shape for path in old
    )
    n = min((len(values) for values in (*old.values(), *new.values())), default=0)
    if not n or not whole or any(stream.single for stream in now.values()):
        return None
    return {path: values[:n] for path, values in old.items()}, {path: values[:n] for path, values in new.items()}


def tried(
    again: Again, batch: object, old: Mapping[str, Array], new: Mapping[str, Array], locked: Mapping[str, Entry]
) -> str:
    """What metrics are with the inputs that were locked, and with this run's; empty where they are no numbers.

    `locked` is what the metrics were, if these are all the inputs.
    """
    n = len(next(iter(old.values())))
    try:
        with torch.random.fork_rng(), torch.no_grad():
            with_old, with_new = (arrays(again(like(batch, values))) for values in (old, new))
    except Exception as error:  # of a function of the test's own, on fewer samples than it is used to
        return f"again= failed on the first {n} samples: {type(error).__name__}: {error}"
    numbers = [name for name, value in with_old.items() if value.size == 1 and name in with_new]
    said = []
    for name in numbers:
        first, last = with_old[name].item(), with_new[name].item()
        words = f"{first:.6g} with the inputs that were locked, {last:.6g} with this run's"
        value = locked.get(name, {}).get("value", last)
        if value != last and 0 <= (share := (first - last) / (value - last)) <= 1.005:
            words += f": they explain {'all' if share > 0.995 else f'{share:.0%}'} of it"
        said.append(words if len(with_old) == 1 else f"{name}: {words}")
    return f"made again of the first {n} samples: {'; '.join(said)}" if said else ""
