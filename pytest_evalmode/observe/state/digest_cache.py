"""Digests of memory that stay valid for as long as the kernel reports no write to it.

A digest belongs to an address and a size, not to a tensor, and keeps no tensor alive.  Pages are tracked first and read
after that, so a write in between is reported by the next scan.
"""

from __future__ import annotations

import ctypes
from bisect import bisect_left
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import starmap
from typing import Any

from torch import Tensor

from pytest_evalmode import forks
from pytest_evalmode.observe.private_api import StorageWeakRef
from pytest_evalmode.observe.state import devices, write_tracking
from pytest_evalmode.observe.state.memory_mappings import PAGE, Span
from pytest_evalmode.observe.state.write_tracking import WriteTracker

Range = tuple[int, int]
"""An address and a size in bytes."""

_MIN_BYTES = 1 << 25
"""Tracking starts at this many trackable bytes: reading them costs about as much as looking up the mappings."""
_WRITE_PENALTY, _NO_WRITE_BONUS, _MAX_PENALTY = 2, -1, 4
"""A tracked write costs a page fault, so memory that is written every time, or every other time, is not tracked."""


@dataclass(eq=False, slots=True)
class TrackedBlock:
    """The bytes of a tensor whose writes are tracked.  Each time that tracking starts anew, a new block is made."""

    range: Range
    span: Span
    """Its whole pages, which are tracked.  Other tensors may share the partial pages at its ends."""
    storage: Any
    partial_content: tuple[bytes, ...]
    """The bytes in its partial pages, which are compared each time."""
    penalty: int
    is_tracked: bool = True
    """False if the kernel cannot track it, or if it is written too often."""
    digest: bytes | None = None


class DigestCache:
    """The digests that are known in this process; none if the kernel does not track writes."""

    def __init__(self) -> None:
        self._lock = forks.new_lock(self)
        self._tracker: WriteTracker | None = None
        self._blocks: dict[Range, TrackedBlock] = {}
        self._pending_bytes = 0
        """How many trackable bytes were read since tracking last started."""

    def find_digests(self, ranges: Collection[Range]) -> dict[Range, bytes]:
        """Return the digests that are still valid.  The caller keeps the tensors alive."""
        if not ranges or write_tracking.tracker() is None:  # a forked child never waits for the lock
            return {}
        with self._lock:
            blocks = self._drop_written(self._known(ranges))
            return {r: digest for r, content, digest in blocks if content == _partial_content(r)}

    def are_unchanged(self, ranges: Collection[Range]) -> bool:
        """Return whether all digests are still valid.  The caller compares the content of the `partial_pages`."""
        if not ranges or write_tracking.tracker() is None:
            return not ranges
        with self._lock:
            blocks = self._known(ranges)
            return len(blocks) == len(ranges) == len(self._drop_written(blocks))

    def _known(self, ranges: Iterable[Range]) -> list[TrackedBlock]:
        self._forget_old_tracker()
        return [block for r in ranges if (block := self._blocks.get(r)) is not None and block.digest is not None]

    def _forget_old_tracker(self) -> None:
        tracker = write_tracking.tracker()
        if tracker is not self._tracker:
            self._tracker = tracker
            self._blocks.clear()

    def _drop_written(self, blocks: list[TrackedBlock]) -> list[tuple[Range, tuple[bytes, ...], bytes]]:
        """Drop the digests of blocks that were written; return the ranges, partial contents and digests of the rest."""
        unwritten = write_tracking.ask(WriteTracker.find_unwritten, {block.span for block in blocks})
        for block in blocks:
            if block.span in unwritten:
                block.penalty = max(0, block.penalty + _NO_WRITE_BONUS)
            else:
                block.penalty += _WRITE_PENALTY
                block.digest = None
        return [(block.range, block.partial_content, block.digest) for block in blocks if block.digest is not None]

    def track(self, tensors: Mapping[Range, Tensor]) -> list[TrackedBlock]:
        """Track writes to tensors that are about to be read.  The caller sets the `digest` of each block returned."""
        if not tensors or write_tracking.tracker() is None:
            return []
        with self._lock:
            self._forget_old_tracker()
            wanted = {r: tensor for r, tensor in tensors.items() if not self._is_untracked(r, tensor)}
            self._pending_bytes += sum(size for _, size in wanted)
            if self._pending_bytes < _MIN_BYTES:
                return []
            self._pending_bytes = 0
            self._drop_dead()
            in_use = devices.accelerator_in_use()
            blocks = [
                self._block(r, StorageWeakRef(tensor.untyped_storage()))
                for r, tensor in wanted.items()
                if not (in_use and tensor.is_pinned())  # the kernel does not see writes of a device
            ]
            eligible = {b.span for b in blocks if b.penalty < _MAX_PENALTY and b.span.start < b.span.end}
            self._invalidate(eligible)
            tracked = write_tracking.ask(WriteTracker.track, eligible)
            for block in blocks:
                block.is_tracked = block.penalty < _MAX_PENALTY and block.span in tracked
                self._blocks[block.range] = block
            write_tracking.ask(WriteTracker.untrack, {b.span for b in blocks if b.penalty >= _MAX_PENALTY})
            return [block for block in blocks if block.is_tracked]

    def _block(self, range_: Range, storage: Any) -> TrackedBlock:
        span = _whole_pages(range_)
        last = self._blocks.get(range_)
        penalty = last.penalty if last is not None and last.storage.cdata == storage.cdata else 0
        return TrackedBlock(range_, span, storage, _partial_content(range_), penalty)

    def _is_untracked(self, range_: Range, tensor: Tensor) -> bool:
        block = self._blocks.get(range_)
        if block is None or block.is_tracked or block.storage.expired():
            return False
        return bool(block.storage.cdata == tensor.untyped_storage()._cdata)

    def _invalidate(self, spans: Collection[Span]) -> None:
        """Drop the digests of blocks that overlap with pages whose tracking starts anew, such as a view's pages.

        The kernel can no longer report earlier writes to these pages.
        """
        latest = 0
        extents: list[tuple[int, int]] = []  # each start, in order, with the latest end of all spans up to it
        for start, end in sorted(spans):
            latest = max(latest, end)
            extents.append((start, latest))
        for block in list(self._blocks.values()):
            at = bisect_left(extents, (block.span.end, 0)) - 1
            if at >= 0 and extents[at][1] > block.span.start:
                # Replace it: a reader that still has the old block will set a digest there.
                self._blocks[block.range] = replace(block, digest=None, penalty=block.penalty + _WRITE_PENALTY)

    def _drop_dead(self) -> None:
        """Stop tracking blocks whose storage was freed."""
        dead = [block for block in list(self._blocks.values()) if block.storage.expired()]
        for block in dead:
            del self._blocks[block.range]
        write_tracking.ask(WriteTracker.untrack, {block.span for block in dead if block.is_tracked})


def _whole_pages(range_: Range) -> Span:
    address, size = range_
    return Span(-(-address // PAGE) * PAGE, (address + size) // PAGE * PAGE)


def partial_pages(range_: Range) -> tuple[Range, Range]:
    """Return the ranges before the first whole page and after the last one."""
    start, end = _whole_pages(range_)
    address, size = range_
    return (address, start - address), (end, address + size - end)


def _partial_content(range_: Range) -> tuple[bytes, ...]:
    return tuple(starmap(ctypes.string_at, partial_pages(range_)))


_cache = DigestCache()
find_digests, are_unchanged, track = _cache.find_digests, _cache.are_unchanged, _cache.track
