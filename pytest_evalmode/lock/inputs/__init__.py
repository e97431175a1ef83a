"""Diagnosis of inputs that differ from their lock entry: `Selection` stores samples, `diagnose` compares them.

Trivial differences come first: order, dtype, NaN, rounding. Then each kind of data has a table of causes, and a cause is
named only if applying it to the locked samples reproduces the current ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from pytest_evalmode.lock.inputs import image_layout, labels, numbers, proof, sample_order, text
from pytest_evalmode.lock.inputs.batch_arrays import arrays, vocabulary_of
from pytest_evalmode.lock.inputs.diagnosis import (
    RANDOM,
    Array,
    Diagnosis,
    Step,
    diagnosis_of_steps,
    difference,
    format_indices,
    format_numbers,
    unrecognized_difference,
)
from pytest_evalmode.lock.inputs.images import search
from pytest_evalmode.lock.inputs.legacy import compare_classes, first_samples
from pytest_evalmode.lock.inputs.samples import Selection, choose_samples
from pytest_evalmode.lock.inputs.sample_order import compare_order
from pytest_evalmode.lock.inputs.text import is_tokens
from pytest_evalmode.lock.inputs.text.rows import Vocabularies

__all__ = [
    "Diagnosis",
    "Selection",
    "arrays",
    "choose_samples",
    "compare_classes",
    "compare_order",
    "diagnose",
    "equal",
    "first_samples",
    "is_tokens",
    "vocabulary_of",
]

_FEW = 0.25  # share of labels that differ, up to which no cause is searched for


def diagnose(
    was: npt.ArrayLike,
    now: npt.ArrayLike,
    *,
    indices: Sequence[int] | None = None,
    digests_was: Sequence[int] = (),
    digests_now: Sequence[int] = (),
    count_was: int | None = None,
    count_now: int | None = None,
    shape_was: tuple[int, ...] | None = None,
    shape_now: tuple[int, ...] | None = None,
    rtol: float = 0.0,
    atol: float = 0.0,
    vocabularies: tuple[Mapping[int, str], Mapping[int, str]] | None = None,
) -> Diagnosis | None:
    """Return how the current samples differ from the locked ones, or None if they are equal.

    Args:
        was: The locked samples, of shape (samples, ...), or a scalar; numbers, bools or strings.
        now: The current samples, likewise.
        indices: Which of all samples `was` and `now` are; by default all, or the first.
        digests_was: A digest of each locked sample, also of those that are not in `was`.
        digests_now: A digest of each current sample.
        count_was: The number of all locked samples; by default that of `was`.
        count_now: The number of all current samples; by default that of `now`.
        shape_was: The shape of a whole locked sample, if `was` has only the centers of images.
        shape_now: The shape of a whole current sample.
        rtol: Relative tolerance. Without a tolerance, the arrays must be equal and have the same dtype.
        atol: Absolute tolerance.
        vocabularies: The text of each token id, in the locked and in the current run. With it, a change of casing is
            recognized in tokenized text.

    Example:
        >>> diagnose([1.0, 2.0, 4.0], [1000.0, 2000.0, 4000.0]).headline
        'values were multiplied by 1000 (thousandths, or kilo)'
    """
    was, now = (each.astype(each.dtype.newbyteorder("=")) for each in (np.asarray(was), np.asarray(now)))
    count_was, count_now = count_was or _count(was), count_now or _count(now)
    scope = _Scope(indices, list(digests_was), list(digests_now), count_was, count_now, is_single(was, now))
    is_same = equal(was, now, rtol=rtol, atol=atol)
    if is_same and count_was == count_now and (rtol or atol or scope.changed() in ([], None)):
        return None
    order = _explain_order(was, now, scope)
    if order is not None:
        return order
    if indices is not None and (len(was), len(now)) != (count_was, count_now):
        was, now = was[: len(now)], now[: len(was)]
    if is_same:
        return _only_others(scope, _noun(was, now))
    is_cropped = shape_was not in (None, was.shape[1:]) or shape_now not in (None, now.shape[1:])
    rows = text.read_ragged(was, now)
    if rows is not None:
        return text.explain_ragged(*rows, vocabularies)
    if was.dtype.kind in "US" or now.dtype.kind in "US":
        same_kind = was.dtype.kind == now.dtype.kind
        explained = text.explain_texts(was, now) if same_kind else None
        return explained or unrecognized_difference("texts", was, now, scope.words())
    if was.size and now.size and was.dtype.kind in "biuf" and now.dtype.kind in "biuf":
        diagnosis = _explain(was, now, scope, vocabularies, is_cropped)
        if diagnosis is not None:
            return diagnosis
    if count_was != count_now and was.shape[1:] == now.shape[1:] and was.ndim:
        words = f"values differ, cause not recognized: {count_now} samples, not {count_was}"
        return Diagnosis(words, (), {"was": count_was, "now": count_now})
    tokens = is_tokens(was, now)
    return unrecognized_difference(
        "tokens" if tokens else _noun(was, now), was, now, scope.words(was, now), is_tokens=tokens
    )


def equal(was: Array, now: Array, *, rtol: float = 0.0, atol: float = 0.0) -> bool:
    """Return whether two arrays are equal: in value and dtype, or within a tolerance in any numeric dtype."""
    if was.shape != now.shape:
        return False
    if (rtol or atol) and was.dtype.kind in "biufc" and now.dtype.kind in "biufc":
        return bool(np.allclose(now.astype(complex), was.astype(complex), rtol=rtol, atol=atol, equal_nan=True))
    if was.dtype != now.dtype and not (was.dtype.kind == now.dtype.kind == "U"):
        return False
    return bool(np.array_equal(was, now, equal_nan=was.dtype.kind in "fc"))


class _Scope:
    """Which samples are stored, and how many of all samples differ."""

    def __init__(
        self,
        indices: Sequence[int] | None,
        digests_was: list[int],
        digests_now: list[int],
        count_was: int,
        count_now: int,
        single: bool,
    ) -> None:
        self.indices = indices
        self.digests = digests_was, digests_now
        self.counts = count_was, count_now
        self.single = single
        self.has_digests = (len(digests_was), len(digests_now)) == self.counts

    def keys(self, was: Array, now: Array) -> tuple[Sequence[object], Sequence[object]] | None:
        """Return a key for each of all samples; None if they are not known, or the dtypes or shapes differ."""
        if self.single or not was.ndim or not now.ndim or was.shape[1:] != now.shape[1:]:
            return None
        if self.has_digests:
            return self.digests
        both_text = was.dtype.kind == now.dtype.kind == "U"
        if (len(was), len(now)) != self.counts or (was.dtype != now.dtype and not both_text):
            return None
        if both_text:
            return was.reshape(len(was), -1).tolist() if was.ndim > 1 else was.tolist(), now.tolist()
        return sample_order.sample_bytes(was), sample_order.sample_bytes(now)

    def is_mapping(self, keys: tuple[Sequence[object], Sequence[object]] | None) -> bool:
        """Return whether equal locked samples are always equal now."""
        return keys is None or len(dict(zip(*keys, strict=True))) == len(set(zip(*keys, strict=True)))

    def changed(self, was: Array | None = None, now: Array | None = None) -> list[int] | None:
        """Return the indices of all samples that differ; None if that is not known."""
        if self.single or self.counts[0] != self.counts[1]:
            return None
        if self.has_digests:
            return [i for i, (a, b) in enumerate(zip(*self.digests, strict=True)) if a != b]
        if was is None or now is None or was.shape != now.shape or not was.ndim or len(was) != self.counts[0]:
            return None
        if was.dtype.kind not in "biufc" or now.dtype.kind not in "biufc":
            return None
        return np.flatnonzero((difference(was, now) > 0).reshape(len(was), -1).any(1)).tolist()

    def words(self, was: Array | None = None, now: Array | None = None) -> str:
        """Say how many of all samples differ; empty if all do, or if that is not known."""
        changed = self.changed(was, now)
        if changed is None or self.counts[0] == 1 or len(changed) in (0, self.counts[0]):
            return ""
        return f"in {len(changed)} of {self.counts[0]} samples"


def is_single(was: Array, now: Array) -> bool:
    """Return whether the arrays are one image, whose first axis must not be mistaken for samples."""
    images = image_layout.read_as_images(was) if was.dtype.kind in "biuf" and now.ndim == was.ndim else []
    return bool(images) and images[0].layout in ("CHW", "HWC", "HW")


def _explain_order(was: Array, now: Array, scope: _Scope) -> Diagnosis | None:
    """Recognize samples that were reordered, dropped, repeated or added; labels may have been renumbered instead."""
    keys = scope.keys(was, now)
    if keys is None:
        return None
    is_list = was.ndim == 1 and len(set(keys[0])) <= 0.5 * len(keys[0])
    changed = scope.changed(was, now)
    if is_list and changed is not None and was.dtype.kind in "biuf":
        if scope.is_mapping(keys):
            both = min(len(was), len(now))
            return _explain_labels(was[:both], now[:both])
        if len(changed) < _FEW * len(keys[0]):
            return None
    return compare_order(*keys)  # type: ignore[arg-type]


def _only_others(scope: _Scope, noun: str) -> Diagnosis:
    """Describe a difference that is only in samples that are not stored."""
    changed = scope.changed() or []
    where = f"{len(changed)} of {scope.counts[0]} samples ({format_indices(changed)})" if changed else "samples"
    if scope.counts[0] != scope.counts[1]:
        where = f"{scope.counts[1]} samples, not {scope.counts[0]}"
    return Diagnosis(
        f"{noun} differ, cause not recognized: {where}, of which none is stored", (), {"samples": changed[:32]}
    )


def _explain(
    was: Array, now: Array, scope: _Scope, vocabularies: Vocabularies | None, is_cropped: bool
) -> Diagnosis | None:
    """Try the trivial differences, then the causes for the kind of the data."""
    noun = _noun(was, now)
    if was.dtype != now.dtype and np.array_equal(was, now, equal_nan="f" in (was.dtype.kind + now.dtype.kind)):
        words = f"given as {now.dtype}, not {was.dtype}, with the same values"
        return diagnosis_of_steps(noun, [Step("dtype", words, {"dtype": (str(was.dtype), str(now.dtype))})])
    finite = _finite(was, now)
    if finite is None:
        return _explain_non_finite(was, now)
    was, now = finite
    if was.size > 1 and was.min() < was.max() and now.min() == now.max():
        where = " in the center, which is stored" if is_cropped else ""
        words = f"replaced by one constant value ({now.flat[0]:.4g}){where}"
        return diagnosis_of_steps(noun, [Step("constant", words, {"value": float(now.flat[0])})])
    if is_tokens(was, now):
        return text.explain_tokens(was, now, vocabularies)
    layout = _explain_layout(was, now)
    if layout is not None:
        return layout
    suffix = ""
    if was.shape == now.shape and was.ndim:
        rounded = proof.explain_rounding(was, now)
        if rounded is not None and "max" in rounded.details:
            return Diagnosis(f"{noun} {rounded.words}", ("rounding",), rounded.details)
        if rounded is not None:
            return diagnosis_of_steps(noun, [rounded])
        suffix = scope.words(was, now)
        differing = np.flatnonzero((difference(was, now) > 0).reshape(len(was), -1).any(1))
        if was.ndim == 1 and len(differing) < _FEW * len(was):
            return None
        if suffix and 0 < len(differing) < len(was) and was.ndim > 1:
            was, now = was[differing], now[differing]
        suffix = f" ({suffix})" if suffix else ""
    if labels.is_labels(was, now) and (noun != "images" or np.uint8 not in (was.dtype, now.dtype)):
        diagnosis = _explain_labels(was, now) if was.ndim > 1 or not scope.has_digests else None
        if diagnosis is not None:
            return diagnosis
    if image_layout.read_as_images(was) and image_layout.read_as_images(now):
        if noun == "values" and was.ndim == now.ndim == 3:
            steps = proof.simplest(proof.prove(numbers.CAUSES, proof.Pair(was, now)))
            if steps is not None:
                return diagnosis_of_steps(noun, steps, suffix)
        explained = search.explain_images(was, now, is_cropped=is_cropped)
        if explained is not None:
            return diagnosis_of_steps(*explained, _scope_words(explained[1], suffix))
        if noun == "images":
            return None
    steps = proof.simplest(proof.prove(numbers.CAUSES, proof.Pair(was, now)))
    return None if steps is None else diagnosis_of_steps(noun, steps, suffix)


def _scope_words(steps: list[Step], suffix: str) -> str:
    """Say how many samples changed, and that this is typical for a random augmentation."""
    if "augmented" in steps[-1].details:
        return ""
    is_typical = suffix and any(step.kind in ("flip", "rotation", "shift", "crop", "brightness") for step in steps)
    return f"{suffix}: {RANDOM}" if is_typical else suffix


def _explain_labels(was: Array, now: Array) -> Diagnosis | None:
    causes = [*labels.CAUSES, *numbers.POINTWISE] if was.dtype.kind in "biu" else numbers.POINTWISE
    steps = proof.simplest(proof.prove(causes, proof.Pair(was, now)))
    noun = "labels" if was.dtype.kind in "biu" and steps and steps[0].kind == "classes" else "values"
    return None if steps is None else diagnosis_of_steps(noun, steps)


def _explain_layout(was: Array, now: Array) -> Diagnosis | None:
    """Recognize the same values with permuted axes or in another shape."""
    for steps, a, b in image_layout.pair_layouts(was, now):
        if steps and np.array_equal(a.images, b.images):
            return diagnosis_of_steps("images", steps)
    step = image_layout.find_reshape(was, now)
    return None if step is None else diagnosis_of_steps(_noun(was, now), [step])


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


def _finite(was: Array, now: Array) -> tuple[Array, Array] | None:
    """Replace NaN and infinity by 0; None unless both arrays have the same ones in the same places."""
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


def _count(array: Array) -> int:
    return len(array) if array.ndim else 1


def _noun(was: Array, now: Array) -> str:
    likeliest = [reading for array in (was, now) for reading in image_layout.read_as_images(array)[:1]]
    return "images" if any(reading.is_certain for reading in likeliest) else "values"
