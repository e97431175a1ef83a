"""Samples in another order, dropped, repeated or replaced."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np

from pytest_evalmode.lock.inputs.diagnosis import Array, Diagnosis, Step, diagnosis_of_steps


def compare_order(was: Sequence[Hashable], now: Sequence[Hashable]) -> Diagnosis | None:
    """What became of the order of samples, each known by a key such as its digest; None if another sample came in."""
    index = match_samples(was, now)
    return (
        None if index is None or list(was) == list(now) else diagnosis_of_steps("samples", order_steps(len(was), index))
    )


def match_samples(was: Sequence[Hashable], now: Sequence[Hashable]) -> list[int] | None:
    """Which of the old samples each new one is; None if that is not certain, or nothing changed.

    Where values recur, as labels do, they tell less: it has to be the same ones in another order, or some left out.
    """
    old, new = Counter(was), Counter(now)
    if not was or not now or new.keys() - old.keys() or list(was) == list(now):
        return None
    if max(old.values()) > 1 and old != new:
        return _left_out(was, now) if len(old) > 1 else None
    held: dict[Hashable, list[int]] = {}
    for i, key in enumerate(was):
        held.setdefault(key, []).append(i)
    seen: Counter[Hashable] = Counter()
    index = []
    for key in now:
        index.append(held[key][seen[key] % len(held[key])])
        seen[key] += 1
    return index


def _left_out(was: Sequence[Hashable], now: Sequence[Hashable]) -> list[int] | None:
    """The places of the new samples among the old, if they stand there in this order."""
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


def rows(array: Array) -> list[bytes]:
    """A key for each sample: its bytes."""
    return [np.ascontiguousarray(row).tobytes() for row in array]


def match_identical(was: Array, now: Array) -> list[int] | None:
    """Which old sample each new one is, bit by bit."""
    return match_samples(rows(was), rows(now)) if was.ndim and now.ndim and was.shape[1:] == now.shape[1:] else None


def match_similar(a: Array, b: Array) -> list[int] | None:
    """Which old image each new one is, whatever was done to brightness, contrast and the order of channels."""
    if a.shape[2:] != b.shape[2:] or max(len(a), len(b)) < 2:
        return None
    old, new = _standardised(a), _standardised(b)
    likeness = new @ old.T
    index = [int(i) for i in likeness.argmax(1)]
    sure = likeness.max(1) > 0.8
    return index if sure.all() and not (len(a) == len(b) and index == list(range(len(a)))) else None


def _standardised(images: Array) -> Array:
    flat = np.asarray(images, float).mean(1).reshape(len(images), -1)
    flat = flat - flat.mean(1, keepdims=True)
    return np.asarray(flat / (np.linalg.norm(flat, axis=1, keepdims=True) + 1e-12))


def order_steps(n: int, index: Sequence[int]) -> list[Step]:
    """The steps that take `n` samples to those at `index`."""
    counts = Counter(index)
    dropped = [i for i in range(n) if i not in counts]
    repeated = [i for i in counts if counts[i] > 1]
    steps = []
    if dropped:
        words = f"given without {len(dropped)} of {n} (the first of these: {dropped[0]})"
        steps.append(Step("dropped", words, {"dropped": tuple(dropped[:32])}))
    if repeated:
        more = sum(counts[i] - 1 for i in repeated)
        words = f"given with {more} repeated (the first of these: {repeated[0]})"
        steps.append(Step("repeated", words, {"repeated": tuple(repeated[:32])}))
    if list(index) != sorted(index):
        reverse = list(index) == list(range(n))[::-1]
        words = "given in reverse order" if reverse else "reordered"
        steps.append(Step("reordered", words, {"order": tuple(index[:32])}))
    return steps
