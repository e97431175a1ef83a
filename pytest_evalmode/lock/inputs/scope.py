"""Which samples are stored, and how many of all samples differ."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pytest_evalmode.lock.inputs import sample_order
from pytest_evalmode.lock.inputs.diagnosis import Array, difference


class Scope:
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
