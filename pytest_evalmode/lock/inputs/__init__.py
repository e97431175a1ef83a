"""Diagnosis of inputs that differ from their lock entry: `Selection` stores samples, `diagnose` compares them.

Trivial differences come first: order, dtype, NaN, rounding. Then each kind of data has a table of causes; a cause is
named only if applying it to the locked samples reproduces the current ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from pytest_evalmode.lock.inputs import image_layout, labels, numbers, proof, text, trivial
from pytest_evalmode.lock.inputs.batch_arrays import arrays, vocabulary_of
from pytest_evalmode.lock.inputs.diagnosis import (
    RANDOM,
    Array,
    Diagnosis,
    Step,
    diagnosis_of_steps,
    difference,
    format_indices,
    unrecognized_difference,
)
from pytest_evalmode.lock.inputs.images import search
from pytest_evalmode.lock.inputs.sample_order import compare_order
from pytest_evalmode.lock.inputs.samples import Selection, choose_samples
from pytest_evalmode.lock.inputs.scope import Scope
from pytest_evalmode.lock.inputs.text import is_tokens
from pytest_evalmode.lock.inputs.text.rows import Vocabularies

__all__ = [
    "Diagnosis",
    "Selection",
    "arrays",
    "choose_samples",
    "diagnose",
    "equal",
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
    scope = Scope(indices, list(digests_was), list(digests_now), count_was, count_now, is_single(was, now))
    is_same = equal(was, now, rtol=rtol, atol=atol)
    if is_same and count_was == count_now and (rtol or atol or scope.changed() in ([], None)):
        return None
    order = _explain_order(was, now, scope)
    if order is not None:
        return order
    if indices is not None and (len(was), len(now)) != (count_was, count_now):
        was, now = was[: len(now)], now[: len(was)]
    if is_same:
        return _only_others(scope, trivial.noun_of(was, now))
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
        "tokens" if tokens else trivial.noun_of(was, now), was, now, scope.words(was, now), is_tokens=tokens
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


def is_single(was: Array, now: Array) -> bool:
    """Return whether the arrays are one image, whose first axis must not be mistaken for samples."""
    images = image_layout.read_as_images(was) if was.dtype.kind in "biuf" and now.ndim == was.ndim else []
    return bool(images) and images[0].layout in ("CHW", "HWC", "HW")


def _explain_order(was: Array, now: Array, scope: Scope) -> Diagnosis | None:
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
    return compare_order(*keys)


def _only_others(scope: Scope, noun: str) -> Diagnosis:
    """Describe a difference that is only in samples that are not stored."""
    changed = scope.changed() or []
    where = f"{len(changed)} of {scope.counts[0]} samples ({format_indices(changed)})" if changed else "samples"
    if scope.counts[0] != scope.counts[1]:
        where = f"{scope.counts[1]} samples, not {scope.counts[0]}"
    return Diagnosis(
        f"{noun} differ, cause not recognized: {where}, of which none is stored", (), {"samples": changed[:32]}
    )


def _explain(
    was: Array, now: Array, scope: Scope, vocabularies: Vocabularies | None, is_cropped: bool
) -> Diagnosis | None:
    """Try the trivial differences, then the causes for the kind of the data."""
    noun = trivial.noun_of(was, now)
    if was.dtype != now.dtype and np.array_equal(was, now, equal_nan="f" in (was.dtype.kind + now.dtype.kind)):
        words = f"given as {now.dtype}, not {was.dtype}, with the same values"
        return diagnosis_of_steps(noun, [Step("dtype", words, {"dtype": (str(was.dtype), str(now.dtype))})])
    finite = trivial.replace_non_finite(was, now)
    if finite is None:
        return trivial.explain_non_finite(was, now)
    was, now = finite
    if was.size > 1 and was.min() < was.max() and now.min() == now.max():
        where = " in the center, which is stored" if is_cropped else ""
        words = f"replaced by one constant value ({now.flat[0]:.4g}){where}"
        return diagnosis_of_steps(noun, [Step("constant", words, {"value": float(now.flat[0])})])
    if is_tokens(was, now):
        return text.explain_tokens(was, now, vocabularies)
    layout = trivial.explain_layout(was, now)
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


def _count(array: Array) -> int:
    return len(array) if array.ndim else 1
