"""Samples that were reordered, dropped, repeated or added."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator, Sequence

import numpy as np

from pytest_evalmode.lock.causes.cause import Array, Diagnosis, Step, join_steps


def compare_order(was: Sequence[Hashable], now: Sequence[Hashable]) -> Diagnosis | None:
    """Return a diagnosis if samples, given by their keys, were reordered, dropped, repeated or added, and no more."""
    index = match_samples(was, now)
    if index is not None:
        return join_steps("samples", order_steps(len(was), index))
    n, m = len(was), len(now)
    for where, part in (("end", now[:n]), ("start", now[m - n :])):
        if 0 < n < m and list(part) == list(was):
            return join_steps("samples", [Step("added", f"added ({m - n} new, at the {where})")])
    return None


def match_samples(was: Sequence[Hashable], now: Sequence[Hashable]) -> list[int] | None:
    """Return the locked index of each current sample; None if that is uncertain or the order is unchanged.

    Keys that recur, such as labels, are matched if all are present in another order, or if some were dropped, or
    repeated at the end.
    """
    if not was or not now or list(was) == list(now) or set(now) - set(was):
        return None
    matching = (each for each in _try_indices(was, now) if [was[i] for i in each] == list(now))
    return next(map(list, matching), None)


def _try_indices(was: Sequence[Hashable], now: Sequence[Hashable]) -> Iterator[Sequence[int]]:
    n, m, distinct = len(was), len(now), len(set(was))
    yield range(n)[::-1]
    yield [*range(n), *(i % n for i in range(m - n))]
    yield [*range(n), *[n - 1] * (m - n)]
    if distinct > 1 and m < n:
        yield range(m)
        yield range(n - m, n)
        if m == n - 1 or distinct >= 0.5 * n:  # with few classes, there are many ways to drop some labels
            kept = iter(range(n))
            yield [at for key in now if (at := next((i for i in kept if was[i] == key), None)) is not None]
    if distinct == n or Counter(was) == Counter(now):
        places: dict[Hashable, list[int]] = {}
        for i, key in enumerate(was):
            places.setdefault(key, []).append(i)
        used: Counter[Hashable] = Counter()
        index = []
        for key in now:
            index.append(places[key][used[key] % len(places[key])])
            used[key] += 1
        yield index


def sample_bytes(array: Array) -> list[Hashable]:
    """Return a key for each sample, in which `-0.0` equals `0.0`; texts are their own keys."""
    if array.dtype.kind == "U":
        return [str(row) for row in array]
    array = array + 0.0 if array.dtype.kind in "fc" else array
    return [np.ascontiguousarray(row).tobytes() for row in array]


def order_steps(n: int, index: Sequence[int]) -> list[Step]:
    """Return the steps that turn `n` samples into the samples at `index`."""
    counts = Counter(index)
    dropped = [i for i in range(n) if i not in counts]
    repeated = [i for i in counts if counts[i] > 1]
    steps = []
    if dropped:
        where = "at the end" if 0 < dropped[0] == n - len(dropped) else f"first: sample {dropped[0]}"
        steps.append(Step("dropped", f"dropped ({len(dropped)} of {n}, {where})"))
    at_end = not dropped and list(index[:n]) == list(range(n))
    if repeated:
        where = "at the end" if at_end else f"first: sample {repeated[0]}"
        steps.append(Step("repeated", f"repeated ({len(index) - len(counts)} extra, {where})"))
    if not at_end and list(index) != sorted(index):
        reverse = list(index) == list(range(n))[::-1]
        steps.append(Step("reordered", "given in reverse order" if reverse else "reordered"))
    return steps
