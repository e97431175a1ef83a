"""The diagnosis of inputs: trivial differences first, then the causes of their kind."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

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
    join_steps,
)
from pytest_evalmode.lock.causes.images.explain import explain_images
from pytest_evalmode.lock.causes.images.layout import pair_layouts, read_as_images
from pytest_evalmode.lock.causes.order import compare_order, sample_bytes
from pytest_evalmode.lock.causes.text import texts, tokens

_FEW = 0.25  # share of labels that differ, up to which no cause is searched for
_MAX_CLASSES = 256
_MAX_CLASSES_OF_BYTES = 32  # uint8 arrays with more values are pictures, not label maps


@dataclass(frozen=True)
class Scope:
    """All samples as locked and as they are now, of which only some may be stored."""

    counts: tuple[int, int]
    keys: tuple[Sequence[Hashable], Sequence[Hashable]] | None
    """A key for each of all samples, such as its digest; None if they are not known."""
    digests: tuple[Sequence[int], Sequence[int]]
    """Those that are known, of the first samples."""
    is_cropped: bool
    """Whether only the centers of images are stored."""

    @cached_property
    def changed(self) -> list[int] | None:
        """The indices of all samples that differ; None if that is not known."""
        if self.keys is None or self.counts[0] != self.counts[1]:
            return None
        return [i for i, (a, b) in enumerate(zip(*self.keys, strict=True)) if a != b]

    @property
    def is_mapping(self) -> bool:
        """Whether each value became one other wherever it occurs, as far as the samples are known."""
        pairs = set(zip(*(self.keys or self.digests), strict=False))
        return len(dict(pairs)) == len(pairs)

    @property
    def words(self) -> str:
        """How many of all samples differ; empty if all do, or if that is not known."""
        changed = self.changed
        if changed is None or self.counts[0] == 1 or len(changed) in (0, self.counts[0]):
            return ""
        return f"in {len(changed)} of {self.counts[0]} samples"


def diagnose(
    was: npt.ArrayLike,
    now: npt.ArrayLike,
    *,
    indices: Sequence[int] | None = None,
    digests: tuple[Sequence[int], Sequence[int]] = ((), ()),
    counts: tuple[int, int] | None = None,
    shapes: tuple[tuple[int, ...], tuple[int, ...]] | None = None,
    rtol: float = 0.0,
    atol: float = 0.0,
) -> Diagnosis | None:
    """Return how the current samples differ from the locked ones, or None if they are equal.

    Args:
        was: The locked samples, of shape (samples, ...), or a scalar; numbers, bools or strings.
        now: The current samples, likewise.
        indices: Which of all samples these are, as many as are locked; None for all.
        digests: Those of the first of all samples, as locked and as they are now.
        counts: The numbers of all samples; by default, those of the samples given.
        shapes: The shapes of a whole sample, if only the centers of images are given.
        rtol, atol: Tolerances. Without one, the arrays must be equal and have the same dtype.

    Example:
        >>> diagnose([1.0, 2.0, 4.0], [1000.0, 2000.0, 4000.0]).headline
        'values were multiplied by 1000 (thousandths, or kilo)'
    """
    was, now = (each.astype(each.dtype.newbyteorder("=")) for each in (np.asarray(was), np.asarray(now)))
    lengths = _count(was), _count(now)
    counts = counts or lengths
    is_cropped = shapes not in (None, (was.shape[1:], now.shape[1:]))
    scope = Scope(counts, _keys(was, now, digests, counts), digests, is_cropped)
    is_same = _equal(was, now, rtol, atol)
    if is_same and counts[0] == counts[1] and (rtol or atol or not scope.changed):
        return None
    order = _explain_order(was, now, scope)
    if order is not None:
        return order
    if is_same:
        return _describe_others(scope, _noun_of(was, now))
    noun, found = _explain(was, now, scope)
    other_count = f"{counts[1]} samples, not {counts[0]}" if counts[0] != counts[1] else ""
    if found is not None:
        are_common = lengths[0] == lengths[1]  # the samples that are stored of both, not all
        more = f"; {other_count}" if other_count and are_common and found.kinds else ""
        return replace(found, headline=f"{found.headline}{more}")
    if other_count and was.shape[1:] == now.shape[1:] and was.ndim:
        return Diagnosis(f"values differ, cause not recognized: {other_count}", (), {})
    if lengths == counts:
        indices = None
    return describe_unrecognized(noun, was, now, scope.words, indices=indices, is_tokens=noun == "tokens")


def _count(array: Array) -> int:
    return len(array) if array.ndim else 1


def _keys(
    was: Array, now: Array, digests: tuple[Sequence[int], Sequence[int]], counts: tuple[int, int]
) -> tuple[Sequence[Hashable], Sequence[Hashable]] | None:
    """Return a key for each of all samples: the digests, or the stored values; None for one image, or too few."""
    images = read_as_images(was) if was.dtype.kind in "biuf" and now.ndim == was.ndim else []
    is_single = bool(images) and images[0].layout in ("CHW", "HWC", "HW")
    if is_single or not was.ndim or not now.ndim or was.shape[1:] != now.shape[1:]:
        return None
    if (len(digests[0]), len(digests[1])) == counts:
        return digests
    return (sample_bytes(was), sample_bytes(now)) if (len(was), len(now)) == counts else None


def _equal(was: Array, now: Array, rtol: float, atol: float) -> bool:
    """Return whether two arrays are equal: in value and dtype, or within a tolerance in any numeric dtype."""
    if was.shape != now.shape:
        return False
    if (rtol or atol) and was.dtype.kind in "biufc" and now.dtype.kind in "biufc":
        return bool(np.allclose(now.astype(complex), was.astype(complex), rtol=rtol, atol=atol, equal_nan=True))
    if was.dtype != now.dtype and not (was.dtype.kind == now.dtype.kind == "U"):
        return False
    return bool(np.array_equal(was, now, equal_nan=was.dtype.kind in "fc"))


def _noun_of(was: Array, now: Array) -> str:
    likeliest = [reading for array in (was, now) for reading in read_as_images(array)[:1]]
    return "images" if any(reading.is_certain for reading in likeliest) else "values"


def _explain_order(was: Array, now: Array, scope: Scope) -> Diagnosis | None:
    """Recognize samples that were reordered, dropped, repeated or added; labels may have been renumbered instead."""
    if scope.keys is None or not (was.dtype == now.dtype or was.dtype.kind == now.dtype.kind == "U"):
        return None
    old, changed = scope.keys[0], scope.changed
    have_labels = was.ndim == 1 and was.dtype.kind in "biuf" and len(set(old)) <= 0.5 * len(old)
    if have_labels and changed is not None and (scope.is_mapping or len(changed) < _FEW * len(old)):
        return None
    return compare_order(*scope.keys)


def _describe_others(scope: Scope, noun: str) -> Diagnosis:
    """Describe a difference that is only in samples that are not stored."""
    if scope.changed:
        where = f"{len(scope.changed)} of {scope.counts[0]} samples (first: sample {scope.changed[0]})"
    else:
        where = f"{scope.counts[1]} samples, not {scope.counts[0]}"
    return Diagnosis(f"{noun} differ, cause not recognized: {where}, of which none is stored", (), {})


def _explain(was: Array, now: Array, scope: Scope) -> tuple[str, Diagnosis | None]:
    """Return the noun for the values, and the diagnosis by the causes of their kind; None if none is proven."""
    rows = tokens.read_ragged(was, now)
    if rows is not None:
        return "tokens", tokens.explain_ragged(*rows)
    kinds = {was.dtype.kind, now.dtype.kind}
    if kinds in ({"U"}, {"S"}):
        return "texts", texts.explain_texts(was, now)
    noun = _noun_of(was, now)
    if kinds - set("biuf") or not was.size or not now.size:
        return "texts" if kinds & set("US") else noun, None
    are_tokens = tokens.is_tokens(was, now)
    step = next(_find_trivial(was, now, scope.is_cropped, are_tokens), None)
    if step is not None:
        return noun, join_steps("images" if step.kind == "layout" else noun, [step])
    if are_tokens:
        return "tokens", tokens.explain_tokens(was, now)
    finite = _replace_non_finite(was, now)
    return noun, None if finite is None else _explain_numbers(noun, *finite, scope)


def _find_trivial(was: Array, now: Array, is_cropped: bool, are_tokens: bool) -> Iterator[Step]:
    """Recognize another dtype, NaN, one constant value, another layout or shape, and rounding."""
    if was.dtype != now.dtype and np.array_equal(was, now, equal_nan=True):
        yield Step("dtype", f"given as {now.dtype}, not {was.dtype}, with the same values")
    finite = _replace_non_finite(was, now)
    if finite is None:
        yield from _find_non_finite(was, now)
        return
    was, now = finite
    if was.size > 1 and was.min() < was.max() and now.min() == now.max():
        where = " in the center, which is stored" if is_cropped else ""
        yield Step("constant", f"replaced by one constant value ({now.flat[0]:.4g}){where}")
    if are_tokens:
        return
    for steps, a, b in pair_layouts(was, now):
        if np.array_equal(a.images, b.images):
            yield from steps
    if was.shape != now.shape and np.array_equal(was.ravel(), now.ravel()):
        yield Step("shape", f"given in shape {now.shape}, not {was.shape}, with the values in the same order")
    if was.shape == now.shape and was.ndim and (rounding := proof.explain_rounding(was, now)) is not None:
        yield rounding


def _find_non_finite(was: Array, now: Array) -> Iterator[Step]:
    """Recognize NaN or infinite values that were filled in, or finite ones that became NaN or infinite."""
    if was.shape != now.shape or was.dtype.kind != "f" or now.dtype.kind != "f":
        return
    before, after = ~np.isfinite(was), ~np.isfinite(now)
    either = before | after
    if before.any() == after.any() or not np.array_equal(was[~either], now[~either]):
        return
    count = int(either.sum())
    places = f"{count} place{'s' * (count > 1)}"
    words = "set to NaN or infinity in {}" if after.any() else "replaced where they were NaN or infinite ({})"
    yield Step("missing", words.format(places))


def _replace_non_finite(was: Array, now: Array) -> tuple[Array, Array] | None:
    """Replace NaN and infinity by 0; None unless both arrays have the same ones in the same places."""
    before, after = ~np.isfinite(was), ~np.isfinite(now)
    if not before.any() and not after.any():
        return was, now
    if not np.array_equal(before, after) or not np.array_equal(was[before], now[after], equal_nan=True):
        return None
    return np.where(before, 0, was), np.where(after, 0, now)


def _explain_numbers(noun: str, was: Array, now: Array, scope: Scope) -> Diagnosis | None:
    """Try the causes for labels, images, and other numbers."""
    is_picture = noun == "images" and np.uint8 in (was.dtype, now.dtype)
    if not is_picture and _are_labels(was, now) and (was.ndim > 1 or scope.is_mapping):
        steps = _prove((numbers.CLASSES, *numbers.POINTWISE), was, now)
        if steps is not None:
            return join_steps("labels" if steps[0].kind == "classes" else "values", steps)
    suffix = ""
    if was.shape == now.shape and was.ndim:
        differing = np.flatnonzero((difference(was, now) > 0).reshape(len(was), -1).any(1))
        if was.ndim == 1 and len(differing) < _FEW * len(was):
            return None
        if scope.words:
            suffix = f" ({scope.words})"
            was, now = (was[differing], now[differing]) if was.ndim > 1 else (was, now)
    causes = (*statistics.PLACES, *numbers.POINTWISE, *statistics.STATISTICS, *statistics.COLUMNS)
    are_images = bool(read_as_images(was) and read_as_images(now))
    is_series = noun == "values" and was.ndim == now.ndim == 3
    steps = _prove(causes, was, now) if is_series or not are_images else None
    if steps is None and are_images:
        images = explain_images(was, now, is_cropped=scope.is_cropped)
        if images is not None:
            return join_steps(*images, _describe_scope(images[1], suffix))
        steps = _prove(causes, was, now) if noun == "values" and not is_series else None
    return None if steps is None else join_steps(noun, steps, suffix)


def _are_labels(was: Array, now: Array) -> bool:
    """Return whether both arrays are integers with few values: a list of labels, or label maps."""
    if was.dtype.kind + now.dtype.kind not in ("ii", "iu", "ui", "uu") or was.ndim == 2 or now.ndim == 2:
        return False
    are_bytes = np.uint8 in (was.dtype, now.dtype) and was.ndim > 1
    most = _MAX_CLASSES_OF_BYTES if are_bytes else _MAX_CLASSES
    return all(np.unique(each).size <= min(most, each.size // 2) for each in (was, now))


def _prove(causes: Sequence[Cause], was: Array, now: Array) -> list[Step] | None:
    return proof.simplest(proof.prove(causes, proof.Pair(was, now)))


def _describe_scope(steps: list[Step], suffix: str) -> str:
    """Say how many samples changed, and that this is typical for a random augmentation."""
    if steps[-1].words.endswith(RANDOM):
        return ""
    is_typical = suffix and any(step.kind in ("flip", "rotation", "shift", "brightness") for step in steps)
    return f"{suffix}: {RANDOM}" if is_typical else suffix
