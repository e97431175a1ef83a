"""Diagnosis of inputs that differ from their lock entry: `first_samples` stores samples, `diagnose` compares them.

Each module proposes one kind of change, such as a normalization or a flip. A change is reported only if applying it to
the locked samples reproduces the current ones.
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
    """Return how the current array differs from the locked one, or None if they are equal.

    Args:
        was: The locked array, of any shape; numbers, bools or strings.
        now: The current array.
        rtol: Relative tolerance. Without a tolerance, the arrays must be equal bit by bit and have the same dtype.
        atol: Absolute tolerance.
        vocabularies: The text of each token id, in the locked and in the current run. With it, a change of casing is
            recognized in tokenized text.

    Example:
        >>> diagnose([1.0, 2.0, 4.0], [1000.0, 2000.0, 4000.0]).headline
        'values were multiplied by 1000 (thousandths, or kilo)'
    """
    was, now = (each.astype(each.dtype.newbyteorder("=")) for each in (np.asarray(was), np.asarray(now)))
    if equal(was, now, rtol=rtol, atol=atol):
        return None
    if was.dtype.kind in "US" or now.dtype.kind in "US":
        same_kind = was.dtype.kind == now.dtype.kind
        return (text.explain_texts(was, now) if same_kind else None) or unrecognized_difference("texts", was, now)
    if was.size and now.size and was.dtype.kind in "biuf" and now.dtype.kind in "biuf":
        finite = _finite(was, now)
        diagnosis = _explain_non_finite(was, now) if finite is None else _explain(*finite, vocabularies)
        if diagnosis is not None:
            return diagnosis
    return unrecognized_difference("tokens" if text.is_tokens(was, now) else _noun(was, now), was, now)


def equal(was: Array, now: Array, *, rtol: float = 0.0, atol: float = 0.0) -> bool:
    """Return whether two arrays are equal: bit by bit and in dtype, or within a tolerance in any numeric dtype."""
    if was.shape != now.shape:
        return False
    if (rtol or atol) and was.dtype.kind in "biufc" and now.dtype.kind in "biufc":
        return bool(np.allclose(now.astype(complex), was.astype(complex), rtol=rtol, atol=atol, equal_nan=True))
    if was.dtype != now.dtype and not (was.dtype.kind == now.dtype.kind == "U"):
        return False
    return bool(np.array_equal(was, now, equal_nan=was.dtype.kind in "fc"))


def _explain(was: Array, now: Array, vocabularies: Vocabularies | None) -> Diagnosis | None:
    """Try the known causes, the most specific first."""
    if was.size > 1 and was.min() < was.max() and now.min() == now.max():
        words = f"replaced by one constant value ({now.flat[0]:.4g})"
        return diagnosis_of_steps(_noun(was, now), [Step("constant", words, {"value": float(now.flat[0])})])
    if text.is_tokens(was, now):
        return _explain_dtype(was, now) or text.explain_tokens(was, now, vocabularies) or _explain_table(was, now)
    images = image_layout.read_as_images(was)
    single = bool(images) and images[0].layout in ("CHW", "HWC", "HW")
    exact = _explain_dtype(was, now) or _explain_classes(was, now) or _explain_layout(was, now)
    # A single image has no samples: its first axis must not be mistaken for them.
    exact = exact or (None if single else _explain_sample_order(was, now))
    if exact is not None:
        return exact
    if images and image_layout.read_as_images(now):
        return search.explain_images(was, now)
    return _explain_table(was, now)


def _explain_dtype(was: Array, now: Array) -> Diagnosis | None:
    if was.dtype == now.dtype or not np.array_equal(was, now):
        return None
    words = f"given as {now.dtype}, not {was.dtype}, with the same values"
    return diagnosis_of_steps(_noun(was, now), [Step("dtype", words, {"dtype": (str(was.dtype), str(now.dtype))})])


def _explain_layout(was: Array, now: Array) -> Diagnosis | None:
    """Recognize the same values with permuted axes or in another shape."""
    for steps, a, b in image_layout.pair_layouts(was, now):
        if steps and np.array_equal(a.images, b.images):
            return diagnosis_of_steps("images", steps)
    step = image_layout.find_reshape(was, now)
    return None if step is None else diagnosis_of_steps(_noun(was, now), [step])


def _explain_sample_order(was: Array, now: Array) -> Diagnosis | None:
    index = sample_order.match_identical(was, now)
    return None if index is None else diagnosis_of_steps("samples", sample_order.order_steps(len(was), index))


def _explain_classes(was: Array, now: Array) -> Diagnosis | None:
    """Recognize labels whose classes were renumbered, one to one; few samples per class do not suffice."""
    if was.ndim != 1 or was.shape != now.shape or was.dtype.kind not in "iu" or now.dtype.kind not in "iu":
        return None
    pairs = text.find_id_mapping([tuple(was.tolist())], [tuple(now.tolist())])
    if pairs is None or len({new - old for old, new in pairs.items()}) == 1 or len(was) < 2 * len(np.unique(was)):
        return None
    shown = ", ".join(f"{old} -> {new}" for old, new in list(pairs.items())[:4]) + (", ..." if len(pairs) > 4 else "")
    words = f"renumbered in {len(pairs)} classes ({shown})"
    return diagnosis_of_steps("labels", [Step("classes", words, {"classes": dict(list(pairs.items())[:32])})])


def compare_classes(was: Sequence[int], now: Sequence[int], first: Array, first_now: Array) -> Diagnosis | None:
    """Return a diagnosis if the classes of labels were renumbered.

    Args:
        was: The digests of all locked labels.
        now: The digests of all current labels.
        first: The first locked labels: an integer array of shape (samples,).
        first_now: The first current labels, likewise.
    """
    if text.find_id_mapping([tuple(was)], [tuple(now)]) is None:
        return None
    n = min(len(first), len(first_now))
    return _explain_classes(first[:n], first_now[:n])


def _explain_non_finite(was: Array, now: Array) -> Diagnosis | None:
    """Recognize NaN or infinite values that were filled in, or finite ones that became NaN or infinite."""
    if was.shape != now.shape or was.dtype.kind != "f" or now.dtype.kind != "f":
        return None
    non_finite = [~np.isfinite(each) for each in (was, now)]
    either = non_finite[0] | non_finite[1]
    if non_finite[0].any() == non_finite[1].any() or not np.array_equal(was[~either], now[~either]):
        return None
    count = int(either.sum())
    places = f"{count} place{'s' * (count > 1)}"
    if non_finite[1].any():
        words = f"set to NaN or infinity in {places}"
        return diagnosis_of_steps(_noun(was, now), [Step("missing", words, {"not finite": count})])
    values = np.unique(now[either])
    by = f", by {format_numbers(values)}" if len(values) == 1 else ""
    words = f"replaced where they were NaN or infinite ({places}{by})"
    return diagnosis_of_steps(_noun(was, now), [Step("missing", words, {"filled": count})])


def _explain_table(was: Array, now: Array) -> Diagnosis | None:
    """Recognize changes of numbers that are not images: metrics, features, labels."""
    a, b = was.astype(float), now.astype(float)
    if a.shape != b.shape:
        step = _find_column_change(was, now)
        return None if step is None else diagnosis_of_steps("values", [step])
    tolerance = 8 * max(_epsilon(was), _epsilon(now))
    step = next((rounded for rounded, _ in rounding.try_roundings(a, b, 0.0)), None)
    step = step or units.find_unit_change(a, b, tolerance)
    if step is None and a.ndim == 2:
        step = (
            _find_column_change(was, now)
            or units.find_standardization(a, b, tolerance)
            or units.find_column_unit_changes(a, b, tolerance)
        )
    step = step or units.find_function(a, b, tolerance)
    return None if step is None else diagnosis_of_steps("values", [step])


def _find_column_change(was: Array, now: Array) -> Step | None:
    """Find columns of a table that were reordered or dropped."""
    if was.ndim != 2 or now.ndim != 2 or len(was) != len(now) or len(was) < 2:
        return None
    index = sample_order.match_identical(was.T, now.T)
    if index is None or len(set(index)) < len(index):
        return None
    details: dict[str, object] = {"order": tuple(index[:32])}
    dropped = sorted(set(range(was.shape[1])) - set(index))
    if dropped:
        columns = f"column{'s' * (len(dropped) > 1)} {', '.join(map(str, dropped[:5]))}"
        return Step("columns", f"given without {columns}", details)
    by = next((n for n in (1, -1) if index == list(np.roll(range(len(index)), n))), 0)
    how = f"moved by one to the {'right' if by > 0 else 'left'}" if by else "in another order"
    return Step("columns", f"given with the columns {how}", details)


def _epsilon(array: Array) -> float:
    return float(np.finfo(array.dtype).eps) if array.dtype.kind == "f" else 1e-12


def _finite(was: Array, now: Array) -> tuple[Array, Array] | None:
    """Replace NaN and infinity by 0; return None unless both arrays have the same ones in the same places."""
    if was.dtype.kind != "f" and now.dtype.kind != "f":
        return was, now
    non_finite = [~np.isfinite(each) for each in (was, now)]
    if not any(each.any() for each in non_finite):
        return was, now
    if was.shape != now.shape or not np.array_equal(was[non_finite[0]], now[non_finite[1]], equal_nan=True):
        return None
    if not np.array_equal(non_finite[0], non_finite[1]):
        return None
    return np.where(non_finite[0], 0, was), np.where(non_finite[1], 0, now)


def _noun(was: Array, now: Array) -> str:
    likeliest = [reading for array in (was, now) for reading in image_layout.read_as_images(array)[:1]]
    return "images" if any(reading.is_certain for reading in likeliest) else "values"
