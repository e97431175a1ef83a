"""Inputs against those that were validated: `samples(batch)` to keep, `diagnose(was, now)` to tell what changed.

One file a question.  Each proposes what may have been done to the inputs; the search does it to what was validated, and
tells only what then is as it is now, in the fewest steps.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from pytest_evalmode.lock.inputs import layout, order, text, units
from pytest_evalmode.lock.inputs.diagnosis import Array, Diagnosis, Step, told, unexplained
from pytest_evalmode.lock.inputs.images import rounding, search
from pytest_evalmode.lock.inputs.order import compare_order
from pytest_evalmode.lock.inputs.samples import arrays, samples, words
from pytest_evalmode.lock.inputs.text.rows import Words

__all__ = ["Diagnosis", "arrays", "compare_order", "diagnose", "equal", "samples", "words"]


def diagnose(
    was: npt.ArrayLike,
    now: npt.ArrayLike,
    *,
    rtol: float = 0.0,
    atol: float = 0.0,
    words: tuple[Mapping[int, str], Mapping[int, str]] | None = None,
) -> Diagnosis | None:
    """How `now` differs from `was`, or None if it does not.

    Equal is equal bit by bit and in dtype, unless a tolerance is asked for.  `words` is what the ids of tokenised text
    stand for, then and now: with it a change of casing is told by name.
    """
    was, now = (each.astype(each.dtype.newbyteorder("=")) for each in (np.asarray(was), np.asarray(now)))
    if equal(was, now, rtol=rtol, atol=atol):
        return None
    if was.dtype.kind in "US" or now.dtype.kind in "US":
        both = was.dtype.kind == now.dtype.kind
        return (text.explain_texts(was, now) if both else None) or unexplained("texts", was, now)
    if was.size and now.size and was.dtype.kind in "biuf" and now.dtype.kind in "biuf":
        finite = _finite(was, now)
        found = None if finite is None else _explained(*finite, words)
        if found is not None:
            return found
    return unexplained("tokens" if text.is_tokens(was, now) else _noun(was, now), was, now)


def equal(was: Array, now: Array, *, rtol: float = 0.0, atol: float = 0.0) -> bool:
    """Whether both are the same: bit by bit and in dtype, or within a tolerance, where the dtype is free."""
    if was.shape != now.shape:
        return False
    if (rtol or atol) and was.dtype.kind in "biufc" and now.dtype.kind in "biufc":
        return bool(np.allclose(now.astype(complex), was.astype(complex), rtol=rtol, atol=atol, equal_nan=True))
    if was.dtype != now.dtype and not (was.dtype.kind == now.dtype.kind == "U"):
        return False
    return bool(np.array_equal(was, now, equal_nan=was.dtype.kind in "fc"))


def _explained(was: Array, now: Array, words: Words | None) -> Diagnosis | None:
    """By one of the known causes, the most particular first."""
    if was.size > 1 and was.min() < was.max() and now.min() == now.max():
        words_ = f"all of one value ({now.flat[0]:.4g})"
        return told(_noun(was, now), [Step("constant", words_, {"value": float(now.flat[0])})])
    if text.is_tokens(was, now):
        return _only_dtype(was, now) or text.explain(was, now, words) or _table(was, now)
    images = layout.readings(was)
    single = bool(images) and images[0].layout in ("CHW", "HWC", "HW")
    exact = _only_dtype(was, now) or _rearranged(was, now) or (None if single else _reordered(was, now))
    if exact is not None:
        return exact
    if images and layout.readings(now):
        return search.explain(was, now)
    return _table(was, now)


def _only_dtype(was: Array, now: Array) -> Diagnosis | None:
    if was.dtype == now.dtype or not np.array_equal(was, now):
        return None
    words = f"given as {now.dtype}, not {was.dtype}, with the same values"
    return told(_noun(was, now), [Step("dtype", words, {"dtype": (str(was.dtype), str(now.dtype))})])


def _rearranged(was: Array, now: Array) -> Diagnosis | None:
    """The same values, axes exchanged or the shape another."""
    for steps, a, b in layout.pairs(was, now):
        if steps and np.array_equal(a.images, b.images):
            return told("images", steps)
    step = layout.reshaped(was, now)
    return None if step is None else told(_noun(was, now), [step])


def _reordered(was: Array, now: Array) -> Diagnosis | None:
    index = order.exact(was, now)
    return None if index is None else told("samples", order.describe(len(was), index))


def _table(was: Array, now: Array) -> Diagnosis | None:
    """Numbers that are no images: metrics, features, labels."""
    a, b = was.astype(float), now.astype(float)
    if a.shape != b.shape:
        return None
    tolerance = 8 * max(_unit(was), _unit(now))
    step = next((each for each, _ in rounding.rounded(a, b, 0.0)), None) or units.rescaled(a, b, tolerance)
    if step is None and a.ndim == 2:
        columns = order.exact(was.T, now.T)
        if columns is not None and sorted(columns) == list(range(a.shape[1])):
            step = Step("columns", "given with columns in another order", {"order": tuple(columns[:32])})
        step = step or units.standardised(a, b, tolerance) or units.rescaled_columns(a, b, tolerance)
    return None if step is None else told("values", [step])


def _unit(array: Array) -> float:
    return float(np.finfo(array.dtype).eps) if array.dtype.kind == "f" else 1e-12


def _finite(was: Array, now: Array) -> tuple[Array, Array] | None:
    """Both without what is not finite, if the same places of both are not."""
    if was.dtype.kind != "f" and now.dtype.kind != "f":
        return was, now
    holes = [~np.isfinite(each) for each in (was, now)]
    if not any(each.any() for each in holes):
        return was, now
    if was.shape != now.shape or not np.array_equal(was[holes[0]], now[holes[1]], equal_nan=True):
        return None
    if not np.array_equal(holes[0], holes[1]):
        return None
    return np.where(holes[0], 0, was), np.where(holes[1], 0, now)


def _noun(was: Array, now: Array) -> str:
    return "images" if any(each.coloured for array in (was, now) for each in layout.readings(array)[:1]) else "values"
