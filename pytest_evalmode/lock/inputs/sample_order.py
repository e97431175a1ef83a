"""Samples that were reordered, dropped, repeated or added."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np

from pytest_evalmode.lock.inputs.diagnosis import Array, Diagnosis, Step, diagnosis_of_steps, format_indices


def compare_order(was: Sequence[Hashable], now: Sequence[Hashable]) -> Diagnosis | None:
    """Return a diagnosis if samples were reordered, dropped, repeated or added, and nothing else changed.

    Args:
        was: A key for each locked sample, such as its digest.
        now: A key for each current sample.
    """
    index = match_samples(was, now)
    if index is not None:
        return diagnosis_of_steps("samples", order_steps(len(was), index))
    n, m = len(was), len(now)
    if n < m and n and list(now[:n]) == list(was):
        return diagnosis_of_steps("samples", [Step("added", f"added ({m - n} new, at the end)", {"added": m - n})])
    if n < m and n and list(now[m - n :]) == list(was):
        return diagnosis_of_steps("samples", [Step("added", f"added ({m - n} new, at the start)", {"added": m - n})])
    return None


def match_samples(was: Sequence[Hashable], now: Sequence[Hashable]) -> list[int] | None:
    """Return the locked index of each current sample; None if that is uncertain or the order is unchanged.

    Keys that recur, such as labels, are matched if all are present in another order, or if some were dropped, or
    repeated at the end.
    """
    old, new = Counter(was), Counter(now)
    n = len(was)
    if not was or not now or new.keys() - old.keys() or list(was) == list(now):
        return None
    if list(now) == list(was)[::-1]:
        return list(range(n))[::-1]
    if n < len(now) and list(now[:n]) == list(was):
        return _match_padding(was, now)
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


def _match_padding(was: Sequence[Hashable], now: Sequence[Hashable]) -> list[int] | None:
    """Return the index if the samples that follow repeat the first ones, or the last one."""
    n, m = len(was), len(now)
    first, last = [*range(n), *(i % n for i in range(m - n))], [*range(n), *[n - 1] * (m - n)]
    for index in (first, last):
        if [was[i] for i in index] == list(now):
            return index
    if len(set(was)) < n:
        return None
    places = {key: i for i, key in enumerate(was)}
    return [places[key] for key in now]


def _match_in_order(was: Sequence[Hashable], now: Sequence[Hashable]) -> list[int] | None:
    """Return the locked index of each current sample if only samples were dropped."""
    n, m = len(was), len(now)
    for start in (0, n - m):
        if 0 < m < n and list(was[start : start + m]) == list(now):
            return list(range(start, start + m))
    if m < n - 1 and len(set(was)) < 0.5 * n:
        return None  # few classes: many ways to drop some labels fit
    index = []
    at = 0
    for key in now:
        while at < n and was[at] != key:
            at += 1
        if at == n:
            return None
        index.append(at)
        at += 1
    return index


def match_identical(was: Array, now: Array) -> list[int] | None:
    """Return the locked index of each current sample, comparing them bit by bit.

    Args:
        was: The locked samples: shape (samples, ...), any dtype.
        now: The current samples: shape (samples, ...), any dtype.
    """
    if not was.ndim or not now.ndim or was.shape[1:] != now.shape[1:]:
        return None
    return match_samples(sample_bytes(was), sample_bytes(now))


def sample_bytes(array: Array) -> list[bytes]:
    return [np.ascontiguousarray(row).tobytes() for row in array]


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
        words = f"dropped ({len(dropped)} of {n}, {_where(dropped, n)})"
        steps.append(Step("dropped", words, {"dropped": tuple(dropped[:32])}))
    if repeated:
        more = sum(counts[i] - 1 for i in repeated)
        at_end = not dropped and list(index[:n]) == list(range(n))
        where = "at the end" if at_end else f"first: sample {repeated[0]}"
        steps.append(Step("repeated", f"repeated ({more} extra, {where})", {"repeated": tuple(repeated[:32])}))
        index = list(range(n)) if at_end else index
    if list(index) != sorted(index):
        reverse = list(index) == list(range(n))[::-1]
        moved = [i for i, each in enumerate(index) if i != each]
        few = f" (samples {format_indices(moved)})" if not dropped and not repeated and len(moved) < 0.1 * n else ""
        words = "given in reverse order" if reverse else f"reordered{few}"
        steps.append(Step("reordered", words, {"order": tuple(index[:32])}))
    return steps


def _where(dropped: list[int], n: int) -> str:
    is_run = dropped[-1] - dropped[0] + 1 == len(dropped)
    if is_run and dropped[-1] == n - 1 and dropped[0] > 0:
        return "at the end"
    return f"first: sample {dropped[0]}"
