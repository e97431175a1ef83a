"""The memory of this process: its mappings, and what lies near what in them."""

from __future__ import annotations

import mmap
import sys
from bisect import bisect_right
from collections.abc import Iterator
from typing import NamedTuple

PAGE = mmap.PAGESIZE

_NEAR = 16 * PAGE
"""So far apart, two spans are registered as one: each registration splits a mapping in up to three."""


class Span(NamedTuple):
    """Whole pages, from an address to another."""

    start: int
    end: int


class Mappings:
    """Those that are plainly private and anonymous, from `/proc/self/maps`."""

    def __init__(self) -> None:
        self._plain: list[Span] = []
        with open("/proc/self/maps", "rb") as file:
            lines = file.read().splitlines()
        self._number = len(lines)
        for line in lines:
            where, flags, _, _, inode, *name = line.split(None, 5)
            if flags != b"rw-p" or inode != b"0" or not (not name or name[0] == b"[heap]" or name[0][:6] == b"[anon:"):
                continue
            start, end = (int(part, 16) for part in where.split(b"-"))
            if self._plain and self._plain[-1].end == start:
                self._plain[-1] = Span(self._plain[-1].start, end)
            else:
                self._plain.append(Span(start, end))

    def contains(self, span: Span) -> bool:
        return self._of(span) is not None

    def group_by_mapping(self, spans: list[Span]) -> Iterator[list[Span]]:
        """Spans that can be registered as one: they are near, and so is all that lies between them."""
        for group in group_spans(spans, _NEAR):
            by_mapping: dict[Span | None, list[Span]] = {}
            for span in group:
                by_mapping.setdefault(self._of(span), []).append(span)
            yield from by_mapping.values()

    def registrations_left(self) -> int:
        """How many registrations may be made before this is asked again."""
        with open("/proc/sys/vm/max_map_count", "rb") as file:
            limit = int(file.read())
        return min(256, (limit // 2 - self._number) // 2)

    def _of(self, span: Span) -> Span | None:
        at = bisect_right(self._plain, Span(span.start, sys.maxsize)) - 1
        return self._plain[at] if at >= 0 and span.end <= self._plain[at].end else None


def group_spans(spans: list[Span], gap: int) -> Iterator[list[Span]]:
    """Sorted spans, together where no more than a gap lies between them."""
    group: list[Span] = []
    end = 0
    for span in spans:
        if group and span.start > end + gap:
            yield group
            group = []
        group.append(span)
        end = max(end, span.end)
    if group:
        yield group
