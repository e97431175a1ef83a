"""Samples that were reordered, dropped or repeated."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np

from pytest_evalmode.lock.inputs.diagnosis import Array, Diagnosis, Step, diagnosis_of_steps


def compare_order(was: Sequence[Hashable], now: Sequence[Hashable]) -> Diagnosis | None:
    """Return a diagnosis if samples were reordered, dropped or repeated, but none is new.

    Args:
        was: A key for each locked sample, such as its digest.
        now: A key for each current sample.
    """
    index = match_samples(was, now)
    return None if index is None else diagnosis_of_steps("samples", order_steps(len(was), index))


def match_samples(was: Sequence[Hashable], now: Sequence[Hashable]) -> list[int] | None:
    """Return the locked index of each current sample; None if that is uncertain or the order is unchanged.

    Keys that recur, such as labels, are matched only if all are present in another order, or if some were dropped.
    """
    old, new = Counter(was), Counter(now)
    if not was or not now or new.keys() - old.keys() or list(was) == list(now):
        return None
    if max(old.values()) > 1 and old != new:
        return _match_in_order(was, now) if len(old) > 1 else None
    places: dict[Hashable, list[int]] = {}
    for i, key in enumerate(was):
        places.setdefault(key, []).append(i)
    seen: Counter[Hashable] = Counter()
    index = []
    for key in now:
        index.append(places[key][seen[key] % len(places[key])])
        seen[key] += 1
    return index


def _match_in_order(was: Sequence[Hashable], now: Sequence[Hashable]) -> list[int] | None:
    """Return the locked index of each current sample if only samples were dropped."""
    index = []
    at = 0
    for key in now:
        while at < len(was) and was[at] != key:
            at += 1
        if at == len(was):
            return None
        index.append(at)
        at += 1
    return index


def _sample_bytes(array: Array) -> list[bytes]:
    return [np.ascontiguousarray(row).tobytes() for row in array]


def match_identical(was: Array, now: Array) -> list[int] | None:
    """Return the locked index of each current sample, comparing them bit by bit.

    Args:
        was: The locked samples: shape (samples, ...), any dtype.
        now: The current samples: shape (samples, ...), any dtype.
    """
    if not was.ndim or not now.ndim or was.shape[1:] != now.shape[1:]:
        return None
    return match_samples(_sample_bytes(was), _sample_bytes(now))


def match_similar(a: Array, b: Array) -> list[int] | None:
    """Return the locked index of each current image, regardless of brightness, contrast and channel order.

    Args:
        a: The locked images: shape (samples, channels, rows, columns), any range.
        b: The current images: shape (samples, channels, rows, columns), any range.
    """
    if a.shape[2:] != b.shape[2:] or max(len(a), len(b)) < 2:
        return None
    old, new = _standardized(a), _standardized(b)
    correlation = new @ old.T
    index = [int(i) for i in correlation.argmax(1)]
    is_sure = correlation.max(1) > 0.8
    return index if is_sure.all() and not (len(a) == len(b) and index == list(range(len(a)))) else None


def _standardized(images: Array) -> Array:
    flat = np.asarray(images, float).mean(1).reshape(len(images), -1)
    flat = flat - flat.mean(1, keepdims=True)
    return np.asarray(flat / (np.linalg.norm(flat, axis=1, keepdims=True) + 1e-12))


def order_steps(n: int, index: Sequence[int]) -> list[Step]:
    """Return the steps that turn `n` samples into the samples at `index`."""
    counts = Counter(index)
    dropped = [i for i in range(n) if i not in counts]
    repeated = [i for i in counts if counts[i] > 1]
    steps = []
    if dropped:
        words = f"dropped ({len(dropped)} of {n}, first: sample {dropped[0]})"
        steps.append(Step("dropped", words, {"dropped": tuple(dropped[:32])}))
    if repeated:
        more = sum(counts[i] - 1 for i in repeated)
        words = f"repeated ({more} extra, first: sample {repeated[0]})"
        steps.append(Step("repeated", words, {"repeated": tuple(repeated[:32])}))
    if list(index) != sorted(index):
        reverse = list(index) == list(range(n))[::-1]
        words = "given in reverse order" if reverse else "reordered"
        steps.append(Step("reordered", words, {"order": tuple(index[:32])}))
    return steps
