"""Write tracking by the kernel: Linux 6.7 and newer report which pages of memory were written.

The constants are those of `linux/userfaultfd.h` and `linux/fs.h`, and each structure there is an array of 64-bit words;
see https://docs.kernel.org/admin-guide/mm/userfaultfd.html and https://docs.kernel.org/admin-guide/mm/pagemap.html.

A page counts as unwritten only if it is present, its mapping is still registered and the page is still protected.
Writes that bypass the page tables are not seen, such as those of a device to pinned memory, which callers leave out.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import platform
import sys
from array import array
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress

import torch

from pytest_evalmode import forks
from pytest_evalmode.observe.private_api import PAGEMAP, fcntl
from pytest_evalmode.observe.state.memory_mappings import PAGE, Mappings, Span, group_spans

_NR_USERFAULTFD = {"x86_64": 323, "aarch64": 282}

UFFD_USER_MODE_ONLY = 1
UFFD_API = 0xAA
UFFD_FEATURE_WP_UNPOPULATED = 1 << 13
UFFD_FEATURE_WP_ASYNC = 1 << 15
UFFDIO_REGISTER_MODE_WP = 1 << 1
UFFDIO_WRITEPROTECT_MODE_WP = 1 << 0

UFFDIO_API = 0xC018AA3F
UFFDIO_REGISTER = 0xC020AA00
UFFDIO_UNREGISTER = 0x8010AA01
UFFDIO_WRITEPROTECT = 0xC018AA06

PAGE_IS_WPALLOWED = 1 << 0
PAGE_IS_WRITTEN = 1 << 1
PAGE_IS_PRESENT = 1 << 3
PAGEMAP_SCAN = 0xC0606610

_SAME_SCAN = 1024 * PAGE
"""Spans up to this far apart are scanned at once: the pages between them cost less than another call."""
_REGIONS = 512
"""How many regions one scan can return; the kernel's own buffer has this size."""


class WriteTracker:
    """Asks the kernel which pages were written.  Raises OSError if the kernel does not support or allow that."""

    def __init__(self) -> None:
        self._uffd = -1
        self._pagemap = -1
        self._registrations_left = 0
        number = _NR_USERFAULTFD.get(platform.machine())
        if fcntl is None or sys.platform != "linux" or number is None or sys.maxsize < 1 << 32:
            raise OSError(errno.ENOSYS, "writes are not tracked on this platform")
        libc = ctypes.CDLL(None, use_errno=True)
        self._uffd = libc.syscall(ctypes.c_long(number), ctypes.c_long(UFFD_USER_MODE_ONLY | os.O_CLOEXEC))
        if self._uffd < 0:
            raise OSError(ctypes.get_errno(), "userfaultfd")
        try:
            features = UFFD_FEATURE_WP_ASYNC | UFFD_FEATURE_WP_UNPOPULATED
            fcntl.ioctl(self._uffd, UFFDIO_API, _words(UFFD_API, features, 0))
            self._pagemap = os.open(PAGEMAP, os.O_RDONLY | os.O_CLOEXEC)
            self._self_test()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Stop tracking all memory, which the kernel does when the descriptor is closed."""
        fds, self._uffd, self._pagemap = (self._uffd, self._pagemap), -1, -1
        for fd in fds:
            if fd >= 0:
                os.close(fd)

    def track(self, spans: Collection[Span]) -> set[Span]:
        """Track writes from now on, and return the spans for which that works: private anonymous memory."""
        if not spans:
            return set()
        return {span for group in self._register(sorted(spans)) for span in group if self._protect(span)}

    def find_unwritten(self, spans: Iterable[Span]) -> set[Span]:
        """Return the spans in which no page was written since their tracking started."""
        unwritten: set[Span] = set()
        for group in group_spans(sorted(spans), _SAME_SCAN):
            starts, ends = self._scan(group[0].start, max(span.end for span in group))
            for span in group:
                at = bisect_right(ends, span.start)
                if at == len(ends) or starts[at] >= span.end:
                    unwritten.add(span)
        return unwritten

    def untrack(self, spans: Iterable[Span]) -> set[Span]:
        """Stop tracking writes to these spans; none of them is tracked then."""
        for start, end in spans:  # it fails if the memory was freed since, or is registered elsewhere
            self._succeeds(UFFDIO_UNREGISTER, start, end - start)
        return set()

    def _register(self, spans: list[Span]) -> Iterator[list[Span]]:
        """Register the spans, and yield them in groups: each registration splits mappings, whose number is limited."""
        mappings = Mappings()
        for group in mappings.group_by_mapping(spans):
            if self._registrations_left <= 0:
                self._registrations_left = mappings.registrations_left()
            if self._registrations_left <= 0:
                return
            start, end = group[0].start, max(span.end for span in group)
            # It fails if another userfaultfd has the memory, or if this kind of memory cannot be protected.
            if self._succeeds(UFFDIO_REGISTER, start, end - start, UFFDIO_REGISTER_MODE_WP, 0):
                self._registrations_left -= 1
                yield group

    def _protect(self, span: Span) -> bool:
        return self._succeeds(UFFDIO_WRITEPROTECT, span.start, span.end - span.start, UFFDIO_WRITEPROTECT_MODE_WP)

    def _succeeds(self, request: int, *words: int) -> bool:
        """Return whether the kernel grants a request; raise if it does not know the descriptor anymore."""
        try:
            fcntl.ioctl(self._uffd, request, _words(*words))
        except OSError as error:
            if error.errno == errno.EBADF:
                raise
            return False
        return True

    def _scan(self, start: int, end: int) -> tuple[list[int], list[int]]:
        """Return the starts and ends of all regions that were written, are not present or are not registered."""
        regions = array("Q", bytes(24 * _REGIONS))
        wanted = PAGE_IS_WPALLOWED | PAGE_IS_PRESENT
        starts: list[int] = []
        ends: list[int] = []
        while start < end:
            # Size, flags, start, end, walk_end, vector, its length, max_pages; masks: inverted, all, any, returned.
            scan = _words(96, 0, start, end, 0, regions.buffer_info()[0], _REGIONS, 0)
            scan += _words(wanted, 0, wanted | PAGE_IS_WRITTEN, PAGE_IS_WPALLOWED)
            found = regions[: 3 * fcntl.ioctl(self._pagemap, PAGEMAP_SCAN, scan)].tolist()
            starts += found[0::3]
            ends += found[1::3]
            start, last = scan[4], start
            if start <= last:
                raise OSError(errno.EIO, "PAGEMAP_SCAN made no progress")
        return starts, ends

    def _self_test(self) -> None:
        """Check on pages of our own that every write is reported, and nothing else."""
        with mmap.mmap(-1, 8 * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
            tensor = torch.frombuffer(memory, dtype=torch.uint8)
            address = tensor.data_ptr()
            ctypes.memset(address, 1, 8 * PAGE)
            pages = [Span(start, start + PAGE) for start in range(address, address + 8 * PAGE, PAGE)]
            tracked = self.track(pages) == set(pages) and self.find_unwritten(pages) == set(pages)
            tensor[PAGE].fill_(1)  # the value that it has already
            ctypes.memset(address + 3 * PAGE, 1, 1)
            memory.madvise(mmap.MADV_DONTNEED, 5 * PAGE, PAGE)
            reported = self.find_unwritten(pages) == {pages[i] for i in (0, 2, 4, 6, 7)}
            again = self._protect(pages[1]) and pages[1] in self.find_unwritten(pages)
            self.untrack(pages[6:])
            released = self.find_unwritten(pages[6:]) == set()
            del tensor
        if not (tracked and reported and again and released):
            raise OSError(errno.ENOTSUP, "the kernel does not report every write")


def _words(*values: int) -> array[int]:
    return array("Q", values)


_lock = forks.new_lock(sys.modules[__name__])
_tracker: WriteTracker | None = None
_is_initialized = False


def tracker() -> WriteTracker | None:
    """Return the tracker of this process; None if the kernel does not support it, and in a child after a fork."""
    global _tracker, _is_initialized
    if not _is_initialized:
        with _lock:
            if not _is_initialized:
                with suppress(OSError):
                    _tracker = WriteTracker()
                _is_initialized = True
    return _tracker


def ask(question: Callable[[WriteTracker, set[Span]], set[Span]], spans: set[Span]) -> set[Span]:
    """Ask the tracker of this process.  Nothing is tracked if there is none, or once the kernel fails."""
    current = tracker()
    try:
        return question(current, spans) if current is not None and spans else set()
    except OSError:
        disable()
        return set()


def disable() -> None:
    """Stop tracking until `reset()`: everything is read from now on."""
    global _tracker, _is_initialized
    old, _tracker, _is_initialized = _tracker, None, True
    if old is not None:
        old.close()


def reset() -> None:
    """Stop tracking; the next call of `tracker()` opens a new one."""
    global _is_initialized
    disable()
    _is_initialized = False


# A child's memory is not registered, and its descriptors refer to the parent, whose tracking they would keep on.
forks.run_in_child(disable)
