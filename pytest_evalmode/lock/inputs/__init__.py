"""Inputs against those that were validated: `samples(batch)` to keep, `diagnose(was, now)` to tell what changed.

One file a question.  Each proposes what may have been done to the inputs; the search does it to what was validated, and
tells only what then is as it is now, in the fewest steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from pytest_evalmode.lock.inputs import image_layout, sample_order, text, units
from pytest_evalmode.lock.inputs.batch_arrays import arrays, first_samples, vocabulary_of
from pytest_evalmode.lock.inputs.diagnosis import (
    Array,
    Diagnosis,
    Step,
    diagnosis_of_steps,
    format_numbers,
    unrecognized_difference,
)
from pytest_evalmode.lock.inputs.images import rounding, search
from pytest_evalmode.lock.inputs.sample_order import compare_order
from pytest_evalmode.lock.inputs.text.rows import Vocabularies

__all__ = [
    "Diagnosis",
    "arrays",
    "compare_classes",
    "compare_order",
    "diagnose",
    "equal",
    "first_samples",
    "vocabulary_of",
]


def diagnose(
    was: npt.ArrayLike,
    now: npt.ArrayLike,
    *,
    rtol: float = 0.0,
    atol: float = 0.0,
    vocabularies: tuple[Mapping[int, str], Mapping[int, str]] | None = None,
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
        return (text.explain_texts(was, now) if both else None) or unrecognized_difference("texts", was, now)
    if was.size and now.size and was.dtype.kind in "biuf" and now.dtype.kind in "biuf":
        finite = _finite(was, now)
        found = _filled(was, now) if finite is None else _explained(*finite, vocabularies)
        if found is not None:
            return found
    return unrecognized_difference("tokens" if text.is_tokens(was, now) else _noun(was, now), was, now)


def equal(was: Array, now: Array, *, rtol: float = 0.0, atol: float = 0.0) -> bool:
    """Whether both are the same: bit by bit and in dtype, or within a tolerance, where the dtype is free."""
    if was.shape != now.shape:
        return False
    if (rtol or atol) and was.dtype.kind in "biufc" and now.dtype.kind in "biufc":
        return bool(np.allclose(now.astype(complex), was.astype(complex), rtol=rtol, atol=atol, equal_nan=True))
    if was.dtype != now.dtype and not (was.dtype.kind == now.dtype.kind == "U"):
        return False
    return bool(np.array_equal(was, now, equal_nan=was.dtype.kind in "fc"))


def _explained(was: Array, now: Array, words: Vocabularies | None) -> Diagnosis | None:
    """By one of the known causes, the most particular first."""
    if was.size > 1 and was.min() < was.max() and now.min() == now.max():
        words_ = f"all of one value ({now.flat[0]:.4g})"
        return diagnosis_of_steps(_noun(was, now), [Step("constant", words_, {"value": float(now.flat[0])})])
    if text.is_tokens(was, now):
        return _only_dtype(was, now) or text.explain_tokens(was, now, words) or _table(was, now)
    images = image_layout.read_as_images(was)
    single = bool(images) and images[0].layout in ("CHW", "HWC", "HW")
    exact = _only_dtype(was, now) or _classes(was, now) or _rearranged(was, now)
    exact = exact or (None if single else _reordered(was, now))
    if exact is not None:
        return exact
    if images and image_layout.read_as_images(now):
        return search.explain_images(was, now)
    return _table(was, now)


def _only_dtype(was: Array, now: Array) -> Diagnosis | None:
    if was.dtype == now.dtype or not np.array_equal(was, now):
        return None
    words = f"given as {now.dtype}, not {was.dtype}, with the same values"
    return diagnosis_of_steps(_noun(was, now), [Step("dtype", words, {"dtype": (str(was.dtype), str(now.dtype))})])


def _rearranged(was: Array, now: Array) -> Diagnosis | None:
    """The same values, axes exchanged or the shape another."""
    for steps, a, b in image_layout.pair_layouts(was, now):
        if steps and np.array_equal(a.images, b.images):
            return diagnosis_of_steps("images", steps)
    step = image_layout.find_reshape(was, now)
    return None if step is None else diagnosis_of_steps(_noun(was, now), [step])


def _reordered(was: Array, now: Array) -> Diagnosis | None:
    index = sample_order.match_identical(was, now)
    return None if index is None else diagnosis_of_steps("samples", sample_order.order_steps(len(was), index))


def _classes(was: Array, now: Array) -> Diagnosis | None:
    """Labels whose classes have other numbers: each became one other, and often enough that chance does not do it."""
    if was.ndim != 1 or was.shape != now.shape or was.dtype.kind not in "iu" or now.dtype.kind not in "iu":
        return None
    pairs = text.find_id_mapping([tuple(was.tolist())], [tuple(now.tolist())])
    if pairs is None or len({new - old for old, new in pairs.items()}) == 1 or len(was) < 2 * len(np.unique(was)):
        return None
    shown = ", ".join(f"{old} -> {new}" for old, new in list(pairs.items())[:4]) + (", ..." if len(pairs) > 4 else "")
    words = f"given with {len(pairs)} classes under other numbers ({shown})"
    return diagnosis_of_steps("labels", [Step("classes", words, {"classes": dict(list(pairs.items())[:32])})])


def compare_classes(was: Sequence[int], now: Sequence[int], first: Array, first_now: Array) -> Diagnosis | None:
    """The same of labels by their digests, all of them, and the first by their values."""
    if text.find_id_mapping([tuple(was)], [tuple(now)]) is None:
        return None
    n = min(len(first), len(first_now))
    return _classes(first[:n], first_now[:n])


def _filled(was: Array, now: Array) -> Diagnosis | None:
    """Values that were not finite, and are numbers now; or the reverse."""
    if was.shape != now.shape or was.dtype.kind != "f" or now.dtype.kind != "f":
        return None
    holes = [~np.isfinite(each) for each in (was, now)]
    either = holes[0] | holes[1]
    if holes[0].any() == holes[1].any() or not np.array_equal(was[~either], now[~either]):
        return None
    count = int(either.sum())
    if holes[1].any():
        return diagnosis_of_steps(
            _noun(was, now), [Step("missing", f"given with {count} not finite", {"not finite": count})]
        )
    values = np.unique(now[either])
    by = f" (by {format_numbers(values)})" if len(values) == 1 else ""
    words = f"filled in at the {count} places that were not finite{by}"
    return diagnosis_of_steps(_noun(was, now), [Step("missing", words, {"filled": count})])


def _table(was: Array, now: Array) -> Diagnosis | None:
    """Numbers that are no images: metrics, features, labels."""
    a, b = was.astype(float), now.astype(float)
    if a.shape != b.shape:
        step = _columns(was, now)
        return None if step is None else diagnosis_of_steps("values", [step])
    tolerance = 8 * max(_unit(was), _unit(now))
    step = next((each for each, _ in rounding.try_roundings(a, b, 0.0)), None) or units.find_unit_change(
        a, b, tolerance
    )
    if step is None and a.ndim == 2:
        step = (
            _columns(was, now)
            or units.find_standardization(a, b, tolerance)
            or units.find_column_unit_changes(a, b, tolerance)
        )
    step = step or units.find_function(a, b, tolerance)
    return None if step is None else diagnosis_of_steps("values", [step])


def _columns(was: Array, now: Array) -> Step | None:
    """Columns of a table in another order, or left out."""
    if was.ndim != 2 or now.ndim != 2 or len(was) != len(now) or len(was) < 2:
        return None
    found = sample_order.match_identical(was.T, now.T)
    if found is None or len(set(found)) < len(found):
        return None
    details: dict[str, object] = {"order": tuple(found[:32])}
    gone = sorted(set(range(was.shape[1])) - set(found))
    if gone:
        return Step("columns", f"given without column{'s' * (len(gone) > 1)} {', '.join(map(str, gone[:5]))}", details)
    by = next((n for n in (1, -1) if found == list(np.roll(range(len(found)), n))), 0)
    way = f"moved by one to the {'right' if by > 0 else 'left'}" if by else "in another order"
    return Step("columns", f"given with columns {way}", details)


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
    return (
        "images"
        if any(each.is_certain for array in (was, now) for each in image_layout.read_as_images(array)[:1])
        else "values"
    )
