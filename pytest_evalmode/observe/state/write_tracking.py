"""Which pages of memory were written: Linux 6.7 and newer can tell, without a signal, a thread or a privilege.

Names are those of `linux/userfaultfd.h` and `linux/fs.h`; what they do is told in
https://docs.kernel.org/admin-guide/mm/userfaultfd.html and https://docs.kernel.org/admin-guide/mm/pagemap.html.

A page of living memory counts as unwritten if it is there, if its mapping is still registered and if it is itself still
protected.  A mapping that was moved, replaced or let go, a page that was dropped, swapped out or never there, a
descriptor that somebody closed: all look like a write.

What is not seen is who writes past the page tables into what was handed to it before: a device, or a read with O_DIRECT
that is under way.  The caller leaves out what is pinned.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import platform
import sys
from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator
from threading import Lock

import torch

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
"""So far apart, two spans are asked for at once: the pages between them cost less than another call."""
_REGIONS = 512
"""How many stretches a scan returns at once; the kernel's own buffer holds so many."""


class uffdio_api(ctypes.Structure):  # noqa: N801
    _fields_ = [("api", ctypes.c_uint64), ("features", ctypes.c_uint64), ("ioctls", ctypes.c_uint64)]


class uffdio_range(ctypes.Structure):  # noqa: N801
    _fields_ = [("start", ctypes.c_uint64), ("len", ctypes.c_uint64)]


class uffdio_register(ctypes.Structure):  # noqa: N801
    _fields_ = [("range", uffdio_range), ("mode", ctypes.c_uint64), ("ioctls", ctypes.c_uint64)]


class uffdio_writeprotect(ctypes.Structure):  # noqa: N801
    _fields_ = [("range", uffdio_range), ("mode", ctypes.c_uint64)]


class page_region(ctypes.Structure):  # noqa: N801
    _fields_ = [("start", ctypes.c_uint64), ("end", ctypes.c_uint64), ("categories", ctypes.c_uint64)]


class pm_scan_arg(ctypes.Structure):  # noqa: N801
    _fields_ = [
        (name, ctypes.c_uint64)
        for name in (
            "size",
            "flags",
            "start",
            "end",
            "walk_end",
            "vec",
            "vec_len",
            "max_pages",
            "category_inverted",
            "category_mask",
            "category_anyof_mask",
            "return_mask",
        )
    ]


class WriteTracker:
    """What the kernel is asked; an `OSError` means that it cannot, or will not."""

    def __init__(self) -> None:
        self._uffd = -1
        self._pagemap = -1
        self._room = 0
        number = _NR_USERFAULTFD.get(platform.machine())
        if sys.platform != "linux" or number is None or sys.maxsize < 1 << 32:
            raise OSError(errno.ENOSYS, "writes are not tracked on this platform")
        libc = ctypes.CDLL(None, use_errno=True)
        self._uffd = libc.syscall(ctypes.c_long(number), ctypes.c_long(UFFD_USER_MODE_ONLY | os.O_CLOEXEC))
        if self._uffd < 0:
            raise OSError(ctypes.get_errno(), "userfaultfd")
        try:
            features = UFFD_FEATURE_WP_ASYNC | UFFD_FEATURE_WP_UNPOPULATED
            fcntl.ioctl(self._uffd, UFFDIO_API, uffdio_api(UFFD_API, features))
            self._pagemap = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
            self._test()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let go of all memory: the kernel does, when the descriptor is closed."""
        fds, self._uffd, self._pagemap = (self._uffd, self._pagemap), -1, -1
        for fd in fds:
            if fd >= 0:
                os.close(fd)

    def track(self, spans: Collection[Span]) -> set[Span]:
        """Have writes noticed from now on; those that can be, which are plain private memory of nobody else's."""
        if not spans:
            return set()
        mappings = Mappings()
        plain = [span for span in sorted(spans) if mappings.contains(span)]
        return {span for group in self._registered(plain, mappings) for span in group if self._protect(span)}

    def find_unwritten(self, spans: Iterable[Span]) -> set[Span]:
        """Those of which no page was written since they were armed."""
        found: set[Span] = set()
        for group in group_spans(sorted(spans), _SAME_SCAN):
            starts, ends = self._doubtful(group[0].start, max(span.end for span in group))
            for span in group:
                at = bisect_right(ends, span.start)
                if at == len(ends) or starts[at] >= span.end:
                    found.add(span)
        return found

    def untrack(self, spans: Iterable[Span]) -> None:
        """Have no write noticed any more."""
        for start, end in spans:
            try:
                fcntl.ioctl(self._uffd, UFFDIO_UNREGISTER, uffdio_range(start, end - start))
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.ENOMEM):  # freed since, or somebody else's now
                    raise

    def _registered(self, spans: list[Span], mappings: Mappings) -> Iterator[list[Span]]:
        """The spans by registration.  Each has the kernel split mappings, of which a process may have only so many."""
        for group in mappings.group_by_mapping(spans):
            if self._room <= 0:
                self._room = mappings.registrations_left()
            if self._room <= 0:
                return
            start, end = group[0].start, max(span.end for span in group)
            register = uffdio_register(uffdio_range(start, end - start), UFFDIO_REGISTER_MODE_WP)
            try:
                fcntl.ioctl(self._uffd, UFFDIO_REGISTER, register)
            except OSError as error:
                if error.errno == errno.EBADF:
                    raise
                continue  # another userfaultfd has it, or it is of a kind that cannot be protected
            self._room -= 1
            yield group

    def _protect(self, span: Span) -> bool:
        protect = uffdio_writeprotect(uffdio_range(span.start, span.end - span.start), UFFDIO_WRITEPROTECT_MODE_WP)
        try:
            fcntl.ioctl(self._uffd, UFFDIO_WRITEPROTECT, protect)
        except OSError as error:
            if error.errno == errno.EBADF:
                raise
            return False
        return True

    def _doubtful(self, start: int, end: int) -> tuple[list[int], list[int]]:
        """Where stretches of pages begin and end that were written, are not there, or are not registered."""
        vec = (page_region * _REGIONS)()
        words = memoryview(vec).cast("B").cast("Q")
        arg = pm_scan_arg(
            size=ctypes.sizeof(pm_scan_arg),
            vec=ctypes.addressof(vec),
            vec_len=_REGIONS,
            category_inverted=PAGE_IS_WPALLOWED | PAGE_IS_PRESENT,
            category_anyof_mask=PAGE_IS_WPALLOWED | PAGE_IS_PRESENT | PAGE_IS_WRITTEN,
            return_mask=PAGE_IS_WPALLOWED,
        )
        starts: list[int] = []
        ends: list[int] = []
        while start < end:
            arg.start, arg.end, arg.walk_end = start, end, 0
            found = words[: 3 * fcntl.ioctl(self._pagemap, PAGEMAP_SCAN, arg)].tolist()
            starts += found[0::3]
            ends += found[1::3]
            if arg.walk_end <= start:
                raise OSError(errno.EIO, "PAGEMAP_SCAN made no step")
            start = arg.walk_end
        return starts, ends

    def _test(self) -> None:
        """See on pages of our own that what is written is seen, and nothing else is."""
        with mmap.mmap(-1, 8 * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
            tensor = torch.frombuffer(memory, dtype=torch.uint8)
            address = tensor.data_ptr()
            ctypes.memset(address, 1, 8 * PAGE)
            pages = [Span(start, start + PAGE) for start in range(address, address + 8 * PAGE, PAGE)]
            armed = self.track(pages) == set(pages) and self.find_unwritten(pages) == set(pages)
            tensor[PAGE].fill_(1)  # what it was already
            ctypes.memset(address + 3 * PAGE, 1, 1)
            memory.madvise(mmap.MADV_DONTNEED, 5 * PAGE, PAGE)
            seen = self.find_unwritten(pages) == {pages[i] for i in (0, 2, 4, 6, 7)}
            again = self._protect(pages[1]) and pages[1] in self.find_unwritten(pages)
            self.untrack(pages[6:])
            released = self.find_unwritten(pages[6:]) == set()
            del tensor
        if not (armed and seen and again and released):
            raise OSError(errno.ENOTSUP, "the kernel does not see what is written")


_lock = Lock()
_tracker: WriteTracker | None = None
_asked = False


def tracker() -> WriteTracker | None:
    """The one of this process; None where the kernel has it not, and in a child after a fork."""
    global _tracker, _asked
    if not _asked:
        with _lock:
            if not _asked:
                _tracker = _open()
                _asked = True
    return _tracker


def disable() -> None:
    """Read everything from now on, and let go of what is armed."""
    global _tracker, _asked
    was, _tracker, _asked = _tracker, None, True
    if was is not None:
        was.close()


def reset() -> None:
    """Let go of what is armed; who asks for a tracker after that gets another."""
    global _asked
    disable()
    _asked = False


def _open() -> WriteTracker | None:
    wish = os.environ.get("EVALMODE_WRITES", "on")
    if wish not in ("on", "off"):
        raise ValueError(f"EVALMODE_WRITES is {wish!r}: use 'on', to have the kernel track writes, or 'off'")
    if wish == "off":
        return None
    try:
        return WriteTracker()
    except OSError:
        return None


if hasattr(os, "register_at_fork"):
    # A child's memory is not registered, and its descriptors look at the parent, whose memory they would keep armed.
    os.register_at_fork(after_in_child=disable)
