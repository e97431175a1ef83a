"""Memory mappings of this process, and groups of page ranges that can be registered together."""

from __future__ import annotations

import mmap
import sys
from bisect import bisect_right
from collections.abc import Iterator
from typing import NamedTuple

from pytest_evalmode.observe.private_api import MAPS, MAX_MAP_COUNT

PAGE = mmap.PAGESIZE

_MAX_GAP = 16 * PAGE
"""Spans up to this far apart are registered as one, since each registration splits a mapping into up to three."""


class Span(NamedTuple):
    """A range of whole pages, from `start` up to `end`."""

    start: int
    end: int


class Mappings:
    """The private anonymous mappings in `/proc/self/maps`."""

    def __init__(self) -> None:
        self._mappings: list[Span] = []
        with open(MAPS, "rb") as file:
            lines = file.read().splitlines()
        self._count = len(lines)
        for line in lines:
            addresses, flags, _, _, inode = line.split(None, 5)[:5]
            if flags != b"rw-p" or inode != b"0":
                continue
            start, end = (int(part, 16) for part in addresses.split(b"-"))
            if self._mappings and self._mappings[-1].end == start:
                self._mappings[-1] = Span(self._mappings[-1].start, end)
            else:
                self._mappings.append(Span(start, end))

    def group_by_mapping(self, spans: list[Span]) -> Iterator[list[Span]]:
        """Group sorted spans that can be registered as one: they are close, in the same mapping.  Drop all others."""
        for group in group_spans(spans, _MAX_GAP):
            by_mapping: dict[Span | None, list[Span]] = {}
            for span in group:
                by_mapping.setdefault(self._mapping_of(span), []).append(span)
            by_mapping.pop(None, None)
            yield from by_mapping.values()

    def registrations_left(self) -> int:
        """Return how many registrations are allowed before this must be called again."""
        with open(MAX_MAP_COUNT, "rb") as file:
            limit = int(file.read())
        return min(256, (limit // 2 - self._count) // 2)

    def _mapping_of(self, span: Span) -> Span | None:
        at = bisect_right(self._mappings, Span(span.start, sys.maxsize)) - 1
        return self._mappings[at] if at >= 0 and span.end <= self._mappings[at].end else None


def group_spans(spans: list[Span], gap: int) -> Iterator[list[Span]]:
    """Group sorted spans with at most `gap` bytes between them."""
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
