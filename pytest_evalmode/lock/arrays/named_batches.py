"""What comes under one name, batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pytest_evalmode.lock.arrays.stream import Stream, extend_streams
from pytest_evalmode.lock.arrays.tolerance import Tolerance
from pytest_evalmode.lock.lock_file import Entry
from pytest_evalmode.trace import Site

MetricFunction = Callable[[Any], object]
"""What makes an output anew of inputs."""


@dataclass(slots=True)
class NamedBatches:
    """Inputs or outputs of one name: a stream for each of their arrays."""

    kind: str
    """`inputs` or `outputs`."""
    name: str
    at: Site | None
    tolerance: Tolerance
    first_batch: object
    """The batch that came first."""
    again: MetricFunction | None = None
    streams: dict[str, Stream] = field(default_factory=dict)

    def add(self, batch: object, tolerance: Tolerance, room: Mapping[str, int] | int, left: int) -> int:
        """A batch has come: tell how many bytes more are kept.  `room` and `left` as in `extend`."""
        is_input = self.kind == "inputs"
        is_exact = is_input and tolerance["rtol"] is None
        return extend_streams(self.streams, batch, room, left, few_samples=is_input, exact=is_exact)

    def entry(self) -> Entry:
        """What is locked of it."""
        return {"arrays": {path: stream.entry() for path, stream in self.streams.items()}}

    def has_all_samples(self, was: Mapping[str, Entry]) -> bool:
        """Whether of each array that was locked there have come as many samples."""
        return all(path in self.streams and self.streams[path].count >= entry["samples"] for path, entry in was.items())
