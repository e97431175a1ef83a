"""Causes of changed labels: classes under other numbers, in lists and in maps."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from pytest_evalmode.lock.inputs.diagnosis import Array, Cause, Step

_MAX_CLASSES = 256
_MIN_PER_CLASS = 2  # samples, or pixels, of each class that was renumbered


def is_labels(was: Array, now: Array) -> bool:
    """Return whether both arrays are integers with few values: a list of labels, or label maps."""
    return all(
        each.dtype.kind in "iu" and each.ndim != 2 and np.unique(each).size <= min(_MAX_CLASSES, each.size // 2)
        for each in (was, now)
    ) and not (was.dtype == now.dtype == np.uint8 and was.ndim >= 3 and np.unique(was).size >= 32)


def find_class_mapping(a: Array, b: Array) -> Iterator[dict[int, int]]:
    """Yield the new number of each class that was renumbered, if each class has one new number.

    Args:
        a: The locked labels: whole numbers of any shape.
        b: The current labels, of the same shape.
    """
    if a.shape != b.shape:
        return
    pairs, counts = np.unique(np.stack([a.ravel(), b.ravel()]), axis=1, return_counts=True)
    mapping = {int(old): int(new) for old, new in pairs.T}
    changed = {old: new for old, new in mapping.items() if old != new}
    is_frequent = all(n >= _MIN_PER_CLASS for (old, new), n in zip(pairs.T, counts, strict=True) if old != new)
    if len(mapping) == pairs.shape[1] and changed and is_frequent and len(set(mapping.values())) > 1:
        yield changed


def _renumber(a: Array, mapping: dict[int, int]) -> Array:
    values, at = np.unique(a, return_inverse=True)
    return np.asarray([mapping.get(int(value), int(value)) for value in values], a.dtype)[at].reshape(a.shape)


def _describe(_: Array, __: Array, mapping: dict[int, int]) -> Step:
    shown = ", ".join(f"{old} -> {new}" for old, new in list(mapping.items())[:4]) + (", ..." * (len(mapping) > 4))
    merged = len(set(mapping.values())) < len(mapping)
    words = f"renumbered in {len(mapping)} class{'es' * (len(mapping) > 1)} ({shown})"
    return Step(
        "classes", f"{words}, some of them merged" if merged else words, {"classes": dict(list(mapping.items())[:32])}
    )


CAUSES = (Cause(find_class_mapping, _renumber, _describe, len, is_confirmed=True),)
