"""The diagnosis of inputs: trivial differences first, then the causes of their kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pytest_evalmode.lock.causes import numbers, proof, statistics
from pytest_evalmode.lock.causes.cause import (
    RANDOM,
    Array,
    Cause,
    Diagnosis,
    Step,
    describe_unrecognized,
    difference,
    format_indices,
    format_numbers,
    join_steps,
)
from pytest_evalmode.lock.causes.images.explain import explain_images
from pytest_evalmode.lock.causes.images.layout import find_reshape, pair_layouts, read_as_images
from pytest_evalmode.lock.causes.order import compare_order, sample_bytes
from pytest_evalmode.lock.causes.proof import simplest
from pytest_evalmode.lock.causes.text import texts, tokens

_FEW = 0.25  # share of labels that differ, up to which no cause is searched for
_MAX_CLASSES = 256


@dataclass(frozen=True)
class Scope:
    """All samples, of which only some may be stored: their digests, and how many there are."""

    digests: tuple[Sequence[int], Sequence[int]]
    counts: tuple[int, int]
    is_single: bool
    """Whether the arrays are one image, whose first axis must not be mistaken for samples."""

    @property
    def has_digests(self) -> bool:
        return (len(self.digests[0]), len(self.digests[1])) == self.counts

    def keys(self, was: Array, now: Array) -> tuple[Sequence[Any], Sequence[Any]] | None:
        """Return a key for each of all samples; None if they are not known, or the dtypes or shapes differ."""
        if self.is_single or not was.ndim or not now.ndim or was.shape[1:] != now.shape[1:]:
            return None
        if self.has_digests:
            return self.digests
        both_text = was.dtype.kind == now.dtype.kind == "U"
        if (len(was), len(now)) != self.counts or (was.dtype != now.dtype and not both_text):
            return None
        return (list(map(str, was)), list(map(str, now))) if both_text else (sample_bytes(was), sample_bytes(now))

    def changed(self, was: Array | None = None, now: Array | None = None) -> list[int] | None:
        """Return the indices of all samples that differ; None if that is not known."""
        if self.is_single or self.counts[0] != self.counts[1]:
            return None
        if self.has_digests:
            return [i for i, (a, b) in enumerate(zip(*self.digests, strict=True)) if a != b]
        if was is None or now is None or was.shape != now.shape or not was.ndim or len(was) != self.counts[0]:
            return None
        if was.dtype.kind not in "biufc" or now.dtype.kind not in "biufc":
            return None
        return np.flatnonzero((difference(was, now) > 0).reshape(len(was), -1).any(1)).tolist()

    def words(self, was: Array, now: Array) -> str:
        """Say how many of all samples differ; empty if all do, or if that is not known."""
        changed = self.changed(was, now)
        if changed is None or self.counts[0] == 1 or len(changed) in (0, self.counts[0]):
            return ""
        return f"in {len(changed)} of {self.counts[0]} samples"


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

    Example:
        >>> diagnose([1.0, 2.0, 4.0], [1000.0, 2000.0, 4000.0]).headline
        'values were multiplied by 1000 (thousandths, or kilo)'
    """
    was, now = (each.astype(each.dtype.newbyteorder("=")) for each in (np.asarray(was), np.asarray(now)))
    counts = (count_was or _count(was), count_now or _count(now))
    scope = Scope((digests_was, digests_now), counts, _is_single(was, now))
    is_same = _equal(was, now, rtol, atol)
    if is_same and counts[0] == counts[1] and (rtol or atol or scope.changed() in ([], None)):
        return None
    order = _explain_order(was, now, scope)
    if order is not None:
        return order
    if indices is not None and (len(was), len(now)) != counts:
        was, now = was[: len(now)], now[: len(was)]
    if is_same:
        return _describe_others(scope, _noun_of(was, now))
    is_cropped = shape_was not in (None, was.shape[1:]) or shape_now not in (None, now.shape[1:])
    noun, found = _explain(was, now, scope, is_cropped)
    if found is not None:
        return found
    if counts[0] != counts[1] and was.shape[1:] == now.shape[1:] and was.ndim:
        words = f"values differ, cause not recognized: {counts[1]} samples, not {counts[0]}"
        return Diagnosis(words, (), {"was": counts[0], "now": counts[1]})
    return describe_unrecognized(noun, was, now, scope.words(was, now), is_tokens=noun == "tokens")


def _count(array: Array) -> int:
    return len(array) if array.ndim else 1


def _equal(was: Array, now: Array, rtol: float, atol: float) -> bool:
    """Return whether two arrays are equal: in value and dtype, or within a tolerance in any numeric dtype."""
    if was.shape != now.shape:
        return False
    if (rtol or atol) and was.dtype.kind in "biufc" and now.dtype.kind in "biufc":
        return bool(np.allclose(now.astype(complex), was.astype(complex), rtol=rtol, atol=atol, equal_nan=True))
    if was.dtype != now.dtype and not (was.dtype.kind == now.dtype.kind == "U"):
        return False
    return bool(np.array_equal(was, now, equal_nan=was.dtype.kind in "fc"))


def _is_single(was: Array, now: Array) -> bool:
    images = read_as_images(was) if was.dtype.kind in "biuf" and now.ndim == was.ndim else []
    return bool(images) and images[0].layout in ("CHW", "HWC", "HW")


def _noun_of(was: Array, now: Array) -> str:
    likeliest = [reading for array in (was, now) for reading in read_as_images(array)[:1]]
    return "images" if any(reading.is_certain for reading in likeliest) else "values"


def _explain_order(was: Array, now: Array, scope: Scope) -> Diagnosis | None:
    """Recognize samples that were reordered, dropped, repeated or added; labels may have been renumbered instead."""
    keys = scope.keys(was, now)
    if keys is None:
        return None
    changed = scope.changed(was, now)
    if was.ndim == 1 and was.dtype.kind in "biuf" and changed is not None and len(set(keys[0])) <= 0.5 * len(keys[0]):
        if len(dict(zip(*keys, strict=True))) == len(
            set(zip(*keys, strict=True))
        ):  # a label is always renumbered alike
            both = min(len(was), len(now))
            return _explain_labels(was[:both], now[:both])
        if len(changed) < _FEW * len(keys[0]):
            return None
    return compare_order(*keys)


def _describe_others(scope: Scope, noun: str) -> Diagnosis:
    """Describe a difference that is only in samples that are not stored."""
    changed = scope.changed() or []
    where = f"{len(changed)} of {scope.counts[0]} samples ({format_indices(changed)})" if changed else "samples"
    if scope.counts[0] != scope.counts[1]:
        where = f"{scope.counts[1]} samples, not {scope.counts[0]}"
    words = f"{noun} differ, cause not recognized: {where}, of which none is stored"
    return Diagnosis(words, (), {"samples": changed[:32]})


def _explain(was: Array, now: Array, scope: Scope, is_cropped: bool) -> tuple[str, Diagnosis | None]:
    """Return the noun for the values, and the diagnosis by the causes of their kind; None if none is proven."""
    rows = tokens.read_ragged(was, now)
    if rows is not None:
        return "tokens", tokens.explain_ragged(*rows)
    kinds = was.dtype.kind + now.dtype.kind
    if kinds in ("UU", "SS"):
        return "texts", texts.explain_texts(was, now)
    if set(kinds) - set("biuf") or not was.size or not now.size:
        return "texts" if set(kinds) & set("US") else _noun_of(was, now), None
    noun = _noun_of(was, now)
    trivial = _explain_trivial(noun, was, now, is_cropped)
    if trivial is not None:
        return noun, trivial
    if tokens.is_tokens(was, now):
        return "tokens", tokens.explain_tokens(was, now)
    finite = _replace_non_finite(was, now)
    return noun, None if finite is None else _explain_numbers(noun, *finite, scope, is_cropped)


def _explain_trivial(noun: str, was: Array, now: Array, is_cropped: bool) -> Diagnosis | None:
    """Recognize another dtype, NaN, one constant value, another layout or shape, and rounding."""
    if was.dtype != now.dtype and np.array_equal(was, now, equal_nan="f" in (was.dtype.kind + now.dtype.kind)):
        words = f"given as {now.dtype}, not {was.dtype}, with the same values"
        return join_steps(noun, [Step("dtype", words, {"dtype": (str(was.dtype), str(now.dtype))})])
    finite = _replace_non_finite(was, now)
    if finite is None:
        return _explain_non_finite(noun, was, now)
    was, now = finite
    if was.size > 1 and was.min() < was.max() and now.min() == now.max():
        where = " in the center, which is stored" if is_cropped else ""
        words = f"replaced by one constant value ({now.flat[0]:.4g}){where}"
        return join_steps(noun, [Step("constant", words, {"value": float(now.flat[0])})])
    if tokens.is_tokens(was, now):
        return None
    for steps, a, b in pair_layouts(was, now):
        if steps and np.array_equal(a.images, b.images):
            return join_steps("images", steps)
    step = find_reshape(was, now)
    if step is None and was.shape == now.shape and was.ndim:
        step = proof.explain_rounding(was, now)
    return None if step is None else join_steps(noun, [step])


def _explain_non_finite(noun: str, was: Array, now: Array) -> Diagnosis | None:
    """Recognize NaN or infinite values that were filled in, or finite ones that became NaN or infinite."""
    if was.shape != now.shape or was.dtype.kind != "f" or now.dtype.kind != "f":
        return None
    before, after = ~np.isfinite(was), ~np.isfinite(now)
    either = before | after
    if before.any() == after.any() or not np.array_equal(was[~either], now[~either]):
        return None
    count = int(either.sum())
    places = f"{count} place{'s' * (count > 1)}"
    if after.any():
        return join_steps(noun, [Step("missing", f"set to NaN or infinity in {places}", {"not finite": count})])
    values = np.unique(now[either])
    by = f", by {format_numbers(values)}" if len(values) == 1 else ""
    return join_steps(
        noun, [Step("missing", f"replaced where they were NaN or infinite ({places}{by})", {"filled": count})]
    )


def _replace_non_finite(was: Array, now: Array) -> tuple[Array, Array] | None:
    """Replace NaN and infinity by 0; None unless both arrays have the same ones in the same places."""
    before, after = ~np.isfinite(was), ~np.isfinite(now)
    if not before.any() and not after.any():
        return was, now
    if not np.array_equal(before, after) or not np.array_equal(was[before], now[after], equal_nan=True):
        return None
    return np.where(before, 0, was), np.where(after, 0, now)


def _explain_numbers(noun: str, was: Array, now: Array, scope: Scope, is_cropped: bool) -> Diagnosis | None:
    """Try the causes for labels, images, and other numbers."""
    suffix = ""
    if was.shape == now.shape and was.ndim:
        suffix = scope.words(was, now)
        differing = np.flatnonzero((difference(was, now) > 0).reshape(len(was), -1).any(1))
        if was.ndim == 1 and len(differing) < _FEW * len(was):
            return None
        if suffix and len(differing) < len(was) and was.ndim > 1:
            was, now = was[differing], now[differing]
        suffix = f" ({suffix})" if suffix else ""
    if _are_labels(was, now) and (noun != "images" or np.uint8 not in (was.dtype, now.dtype)):
        found = _explain_labels(was, now) if was.ndim > 1 or not scope.has_digests else None
        if found is not None:
            return found
    causes = (*statistics.PLACES, *numbers.POINTWISE, *statistics.STATISTICS, *statistics.COLUMNS)
    if read_as_images(was) and read_as_images(now):
        is_series = noun == "values" and was.ndim == now.ndim == 3
        steps = _prove(causes, was, now) if is_series else None
        images = explain_images(was, now, is_cropped=is_cropped) if steps is None else None
        if images is not None:
            return join_steps(*images, _describe_scope(images[1], suffix))
        if noun == "images" or is_series:
            return None if steps is None else join_steps(noun, steps, suffix)
    steps = _prove(causes, was, now)
    return None if steps is None else join_steps(noun, steps, suffix)


def _prove(causes: Sequence[Cause], was: Array, now: Array) -> list[Step] | None:
    return simplest(proof.prove(causes, proof.Pair(was, now)))


def _describe_scope(steps: list[Step], suffix: str) -> str:
    """Say how many samples changed, and that this is typical for a random augmentation."""
    if "augmented" in steps[-1].details:
        return ""
    is_typical = suffix and any(step.kind in ("flip", "rotation", "shift", "crop", "brightness") for step in steps)
    return f"{suffix}: {RANDOM}" if is_typical else suffix


def _are_labels(was: Array, now: Array) -> bool:
    """Return whether both arrays are integers with few values: a list of labels, or label maps."""
    return all(
        each.dtype.kind in "iu" and each.ndim != 2 and np.unique(each).size <= min(_MAX_CLASSES, each.size // 2)
        for each in (was, now)
    ) and not (was.dtype == now.dtype == np.uint8 and was.ndim >= 3 and np.unique(was).size >= 32)


def _explain_labels(was: Array, now: Array) -> Diagnosis | None:
    is_whole = was.dtype.kind in "biu"
    steps = _prove((numbers.CLASSES,) * is_whole + numbers.POINTWISE, was, now)
    noun = "labels" if is_whole and steps and steps[0].kind == "classes" else "values"
    return None if steps is None else join_steps(noun, steps)
