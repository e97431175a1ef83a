"""The batches that a test passes to the lock under one name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pytest_evalmode.lock.arrays.stream import Stream, extend_streams
from pytest_evalmode.lock.arrays.tolerance import Tolerance
from pytest_evalmode.lock.lock_file import Entry
from pytest_evalmode.trace import Site

MetricFunction = Callable[[Any], object]
"""The type of `again=`: computes metrics from a batch of inputs."""


@dataclass(slots=True)
class NamedBatches:
    """All batches of inputs or outputs of one name, with a stream for each of their arrays."""

    kind: str
    """`inputs` or `outputs`."""
    name: str
    at: Site | None
    tolerance: Tolerance
    first_batch: object
    again: MetricFunction | None = None
    streams: dict[str, Stream] = field(default_factory=dict)

    def add(self, batch: object, tolerance: Tolerance, max_bytes: Mapping[str, int] | int, bytes_left: int) -> int:
        """Add a batch, and return how many bytes of it are stored; arguments as in `extend_streams`."""
        is_input = self.kind == "inputs"
        is_exact = is_input and tolerance["rtol"] is None
        return extend_streams(self.streams, batch, max_bytes, bytes_left, few_samples=is_input, exact=is_exact)

    def entry(self) -> Entry:
        """Return the lock entry."""
        return {"arrays": {path: stream.entry() for path, stream in self.streams.items()}}

    def has_all_samples(self, locked: Mapping[str, Entry]) -> bool:
        """Return whether this run has at least as many samples of each array as the lock."""
        return all(
            path in self.streams and self.streams[path].count >= entry["samples"] for path, entry in locked.items()
        )
