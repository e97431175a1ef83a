"""What is known of memory: the digests of tensors' bytes, for as long as the kernel says that none was written.

A digest belongs to an address and a size, not to a tensor.  What the tensor is called, whose it is and whether it is
the one that lay there before does not matter: bytes that nobody wrote are what they were.  So nothing of the user's is
held, but for a weak reference to the storage, which tells when there is no more reason to watch.

The order makes it sound: pages are armed, then read.  What is written in between is seen by the next scan.  And whoever
arms pages again makes all that was known of them void, as it can no longer be asked for.
"""

from __future__ import annotations

import ctypes
from bisect import bisect_left
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import starmap
from threading import RLock
from typing import Any

from torch import Tensor
from torch.multiprocessing import reductions

from pytest_evalmode.observe.state import devices, write_tracking
from pytest_evalmode.observe.state.memory_mappings import PAGE, Span
from pytest_evalmode.observe.state.write_tracking import WriteTracker

# Without type hints in torch.
StorageWeakRef: Any = reductions.StorageWeakRef

Range = tuple[int, int]
"""An address and a number of bytes."""

_PAYS = 1 << 25
"""After how many bytes read it pays to arm: to look up the mappings costs about as much as to read so many."""
_WRITTEN, _UNWRITTEN, _TIRED = 2, -1, 4
"""A write costs a fault a page, besides the read; who is written every time, or every second, is not armed again."""


@dataclass(eq=False, slots=True)
class TrackedBlock:
    """The bytes of a tensor that are watched; another each time that they are armed."""

    range: Range
    span: Span
    """The pages that hold nothing else.  Those at its ends may be shared, and what is there is compared each time."""
    storage: Any
    ends: tuple[bytes, ...]
    tired: int
    digest: bytes | None = None


@dataclass(slots=True)
class ByteCounts:
    """How the bytes of large tensors came to be known."""

    read: int = 0
    skipped: int = 0
    """Nobody had written to them."""


byte_counts = ByteCounts()


class DigestCache:
    """The blocks of this process."""

    def __init__(self, tracker: WriteTracker) -> None:
        self.tracker = tracker
        self._lock = RLock()
        self._blocks: dict[Range, TrackedBlock] = {}
        self._left: dict[Range, Any] = {}
        """What is not armed: it cannot be, or it is written all the time."""
        self._unarmed = 0
        """How many bytes have been read that could be armed, since anything was."""

    def find_digests(self, ranges: Iterable[Range]) -> dict[Range, bytes]:
        """The digests that hold still, of memory that is in use."""
        with self._lock:
            asked = [block for r in ranges if (block := self._blocks.get(r)) is not None and block.digest is not None]
            self._ask(asked)
            return {
                block.range: block.digest
                for block in asked
                if block.digest is not None and block.ends == _content(block.range)
            }

    def are_unchanged(self, ranges: Collection[Range]) -> bool:
        """Whether the digests of all hold still, but for what the ends hold, which the caller compares."""
        with self._lock:
            asked = [block for r in ranges if (block := self._blocks.get(r)) is not None and block.digest is not None]
            if len(asked) == len(ranges):
                self._ask(asked)
            return len(asked) == len(ranges) and all(block.digest is not None for block in asked)

    def _ask(self, asked: list[TrackedBlock]) -> None:
        """Forget the digests of what was written."""
        unwritten = self.tracker.find_unwritten({block.span for block in asked})
        for block in asked:
            if block.span in unwritten:
                block.tired = max(0, block.tired + _UNWRITTEN)
            else:
                block.tired += _WRITTEN
                block.digest = None

    def track(self, tensors: Mapping[Range, Tensor]) -> list[TrackedBlock]:
        """Watch what is about to be read, as far as it can be; who reads a block then gives it its digest."""
        with self._lock:
            wanted = {r: tensor for r, tensor in tensors.items() if not self._is_left(r, tensor)}
            self._unarmed += sum(size for _, size in wanted)
            if self._unarmed < _PAYS:
                return []
            self._unarmed = 0
            self._let_go()
            in_use = devices.accelerator_in_use()
            blocks = [
                self._block(r, StorageWeakRef(tensor.untyped_storage()))
                for r, tensor in wanted.items()
                if not (in_use and tensor.is_pinned())
            ]
            eager = [block for block in blocks if block.tired < _TIRED and block.span.start < block.span.end]
            self._void([block.span for block in eager])
            armed = self.tracker.track({block.span for block in eager})
            for block in blocks:
                if block.tired < _TIRED and block.span in armed:
                    self._blocks[block.range] = block
                else:
                    self._left[block.range] = block.storage
                    self._blocks.pop(block.range, None)
            self.tracker.untrack(block.span for block in blocks if block.tired >= _TIRED)
            return [block for block in blocks if self._blocks.get(block.range) is block]

    def _block(self, range_: Range, storage: Any) -> TrackedBlock:
        span = _whole_pages(range_)
        last = self._blocks.get(range_)
        tired = last.tired if last is not None and last.storage.cdata == storage.cdata else 0
        return TrackedBlock(range_, span, storage, _content(range_), tired)

    def _is_left(self, range_: Range, tensor: Tensor) -> bool:
        left = self._left.get(range_)
        return bool(left and not left.expired() and left.cdata == tensor.untyped_storage()._cdata)

    def _void(self, spans: list[Span]) -> None:
        """Forget the digests of what lies on pages that are armed anew: of a view, say, into a tensor."""
        latest = 0
        reach: list[tuple[int, int]] = []  # the starts in order, each with the last end of those up to it
        for start, end in sorted(spans):
            latest = max(latest, end)
            reach.append((start, latest))
        for block in list(self._blocks.values()):
            at = bisect_left(reach, (block.span.end, 0)) - 1
            if at >= 0 and reach[at][1] > block.span.start:
                # Another in its place: who is reading this one may give it a digest yet.
                self._blocks[block.range] = replace(block, digest=None, tired=block.tired + _WRITTEN)

    def _let_go(self) -> None:
        """Watch no longer what has died."""
        dead = [block for block in self._blocks.values() if block.storage.expired()]
        for block in dead:
            del self._blocks[block.range]
        self.tracker.untrack(block.span for block in dead)
        self._left = {range_: storage for range_, storage in self._left.items() if not storage.expired()}


def _whole_pages(range_: Range) -> Span:
    address, size = range_
    return Span(-(-address // PAGE) * PAGE, (address + size) // PAGE * PAGE)


def partial_pages(range_: Range) -> tuple[Range, Range]:
    """What lies before the first whole page and behind the last."""
    start, end = _whole_pages(range_)
    address, size = range_
    return (address, start - address), (end, address + size - end)


def _content(range_: Range) -> tuple[bytes, ...]:
    return tuple(starmap(ctypes.string_at, partial_pages(range_)))


_memory: DigestCache | None = None


def get_cache() -> DigestCache | None:
    """What is known in this process; None where the kernel does not track writes."""
    global _memory
    tracker = write_tracking.tracker()
    if tracker is None:
        _memory = None
    elif _memory is None or _memory.tracker is not tracker:
        _memory = DigestCache(tracker)
    return _memory


def find_digests(ranges: Collection[Range]) -> dict[Range, bytes]:
    """The digests that hold still; the caller keeps the tensors that lie there."""
    at_hand = get_cache()
    try:
        return at_hand.find_digests(ranges) if at_hand is not None and ranges else {}
    except OSError:
        write_tracking.disable()
        return {}


def are_unchanged(ranges: Collection[Range]) -> bool:
    """Whether the digests of all hold still, but for what the `ends` hold, which the caller compares."""
    at_hand = get_cache()
    try:
        return not ranges or (at_hand is not None and at_hand.are_unchanged(ranges))
    except OSError:
        write_tracking.disable()
        return False


def track(tensors: Mapping[Range, Tensor]) -> list[TrackedBlock]:
    """Watch what is about to be read; whoever does gives each block its digest."""
    at_hand = get_cache()
    try:
        return at_hand.track(tensors) if at_hand is not None and tensors else []
    except OSError:
        write_tracking.disable()
        return []
