"""One array of inputs or outputs, over all batches: digested sample by sample, the first of them kept.

The digest of a stream is that of its samples in order, so that the size of the batches is of no account.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from xxhash import xxh3_64_intdigest, xxh3_128

from pytest_evalmode.lock.arrays.sketches import Sketch
from pytest_evalmode.lock.inputs.batch_arrays import named_arrays, trim_samples
from pytest_evalmode.lock.lock_file import Entry, LockError

if TYPE_CHECKING:
    Array = np.ndarray[Any, Any]

_MOST_DIGESTS = 4096


@dataclass(slots=True)
class Stream:
    """One array of a batch, over all batches."""

    dtype: str
    shape: tuple[int, ...]
    """Of one sample; of the first, where they vary."""
    max_bytes: int
    """How many bytes may be kept."""
    is_scalar: bool
    """Whether this is one number, not an array of samples."""
    few_samples: bool
    """Whether a few samples will do, the middle of the first where a whole one has no room."""
    exact: bool
    """Whether it is to be the same bit by bit; else each sample has a sketch, not a digest of its own."""
    count: int = 0
    stored_parts: list[Array] = field(default_factory=list)
    digests: list[int] = field(default_factory=list)
    sketch: Sketch = field(default_factory=Sketch)
    total: float = 0.0
    squares: float = 0.0
    numbers: int = 0
    is_complete: bool = True
    """Whether all is kept."""
    _digest: Any = field(default_factory=xxh3_128)

    def add(self, samples: Array, left: int) -> int:
        """Further samples, along the first dimension; of `left` bytes those are told that were taken to keep some."""
        if samples.shape[1:] != self.shape:
            self._digest.update(str(samples.shape[1:]).encode())
        rows = [_bytes(row) for row in samples] if samples.dtype.kind in "US" else None
        self._digest.update(b"".join(rows) if rows is not None else _bytes(samples))
        if self.exact:
            first = samples[: _MOST_DIGESTS - len(self.digests)]
            self.digests += [xxh3_64_intdigest(_bytes(row)) for row in first]
        elif samples.dtype.kind in "biufc":
            self.sketch.add(samples)
        if samples.dtype.kind in "biuf" and samples.size:
            wide = samples.astype(np.float64)
            self.total += float(wide.sum())
            self.squares += float((wide * wide).sum())
            self.numbers += samples.size
        kept = self._keep(samples, left) if self.is_complete else 0
        self.count += len(samples)
        return kept

    def _keep(self, samples: Array, left: int) -> int:
        left = min(left, self.max_bytes - sum(each.nbytes for each in self.stored_parts))
        if samples.shape[1:] != self.shape:
            kept = samples[:0]
        elif self.few_samples and not self.stored_parts:
            kept = trim_samples(samples, left)
        else:
            size = samples[:1].nbytes
            most = max(0, left // size if size else len(samples))
            kept = samples[: min(most, 64 - self.count) if self.few_samples else most]
        self.is_complete = kept.shape == samples.shape
        if kept.size:
            self.stored_parts.append(kept.copy())
        return kept.nbytes

    def stored_values(self) -> Array:
        """What is kept."""
        return np.concatenate(self.stored_parts) if self.stored_parts else np.zeros((0,), np.float32)

    @property
    def mean(self) -> float:
        return self.total / max(self.numbers, 1)

    @property
    def rms(self) -> float:
        return math.sqrt(self.squares / max(self.numbers, 1))

    def entry(self) -> Entry:
        """What is locked of it, in the lock file itself."""
        found: Entry = {
            "dtype": self.dtype,
            "shape": str(self.shape),
            "samples": self.count,
            "digest": self._digest.hexdigest(),
            "room": self.max_bytes,
        }
        if not self.few_samples and self.numbers:
            found |= {"mean": self.mean, "rms": self.rms}
        if self.is_scalar and self.count == 1 and self.stored_parts and self.stored_parts[0].dtype.kind in "biuf":
            found["value"] = self.stored_parts[0].reshape(-1)[0].item()
        return found


def extend_streams(
    streams: dict[str, Stream],
    batch: object,
    room: Mapping[str, int] | int,
    left: int,
    *,
    few_samples: bool = True,
    exact: bool = True,
) -> int:
    """Add a batch to the streams of its arrays, and tell how many bytes more are kept, no more than are `left`.

    `room` is what may be kept of each array, or of all those that are new.  Raises LockError on what holds no arrays.
    """
    try:
        found = named_arrays(batch)
    except TypeError as error:
        raise LockError(f"evalmode_lock: {error}") from None
    to_share = room if isinstance(room, int) else 0
    taken = 0
    for i, name in enumerate(sorted(found, key=lambda name: found[name].array.nbytes)):
        array, dtype = found[name]
        samples = array if array.ndim else array[None]
        stream = streams.get(name)
        if stream is None:
            own = room.get(name, 0) if isinstance(room, Mapping) else to_share // (len(found) - i)
            stream = Stream(dtype, samples.shape[1:], own, array.ndim == 0, few_samples, exact)
            streams[name] = stream
        kept = stream.add(samples, left - taken)
        taken += kept
        to_share -= kept
    return taken


def _bytes(array: Array) -> bytes:
    """The elements in order; of texts, what they say, however wide the array is."""
    if array.dtype.kind in "US":
        return json.dumps(array.tolist()).encode()
    return np.ascontiguousarray(array).tobytes()
