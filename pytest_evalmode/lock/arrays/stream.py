"""One array of inputs or outputs over all batches: its digest, and the first samples, which are stored.

The digest covers the samples in order, so the batch size does not matter.
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
from pytest_evalmode.lock.inputs.batch_arrays import named_arrays
from pytest_evalmode.lock.inputs.legacy import trim_samples
from pytest_evalmode.lock.lock_file import Entry, LockError

if TYPE_CHECKING:
    Array = np.ndarray[Any, Any]

_MAX_DIGESTS = 4096
_MAX_SAMPLES = 64


@dataclass(slots=True)
class Stream:
    """One array of a batch, over all batches."""

    dtype: str
    shape: tuple[int, ...]
    """The shape of one sample; of the first, if they vary."""
    max_bytes: int
    """How many bytes of samples may be stored."""
    is_scalar: bool
    """Whether this is a single number, not an array of samples."""
    few_samples: bool
    """Whether a few stored samples suffice; if not even one fits, the center of the first is stored."""
    exact: bool
    """Whether samples are compared bit for bit, by a digest of each; otherwise within a tolerance, by sketches."""
    count: int = 0
    stored_parts: list[Array] = field(default_factory=list)
    digests: list[int] = field(default_factory=list)
    sketch: Sketch = field(default_factory=Sketch)
    is_complete: bool = True
    """Whether all samples are stored."""
    _digest: Any = field(default_factory=xxh3_128)
    _sum: float = 0.0
    _sum_of_squares: float = 0.0
    _value_count: int = 0

    def add(self, samples: Array, bytes_left: int) -> int:
        """Add samples.

        Args:
            samples: An array of shape (samples, ...).
            bytes_left: How many bytes the test may still store.

        Returns:
            How many bytes were stored.
        """
        if samples.shape[1:] != self.shape:
            self._digest.update(str(samples.shape[1:]).encode())
        rows = [_bytes(row) for row in samples] if samples.dtype.kind in "US" else None
        self._digest.update(b"".join(rows) if rows is not None else _bytes(samples))
        if self.exact:
            first = samples[: _MAX_DIGESTS - len(self.digests)]
            self.digests += [xxh3_64_intdigest(_bytes(row)) for row in first]
        elif samples.dtype.kind in "biufc":
            self.sketch.add(samples)
        if samples.dtype.kind in "biuf" and samples.size:
            wide = samples.astype(np.float64)
            self._sum += float(wide.sum())
            self._sum_of_squares += float((wide * wide).sum())
            self._value_count += samples.size
        stored_bytes = self._store(samples, bytes_left) if self.is_complete else 0
        self.count += len(samples)
        return stored_bytes

    def _store(self, samples: Array, bytes_left: int) -> int:
        bytes_left = min(bytes_left, self.max_bytes - sum(each.nbytes for each in self.stored_parts))
        if samples.shape[1:] != self.shape:
            part = samples[:0]
        elif self.few_samples and not self.stored_parts:
            part = trim_samples(samples, bytes_left)
        else:
            size = samples[:1].nbytes
            n = max(0, bytes_left // size if size else len(samples))
            part = samples[: min(n, _MAX_SAMPLES - self.count) if self.few_samples else n]
        self.is_complete = part.shape == samples.shape
        if part.size:
            self.stored_parts.append(part.copy())
        return part.nbytes

    def stored_values(self) -> Array:
        """Return the stored samples, of shape (samples, ...)."""
        return np.concatenate(self.stored_parts) if self.stored_parts else np.zeros((0,), np.float32)

    @property
    def mean(self) -> float:
        return self._sum / max(self._value_count, 1)

    @property
    def rms(self) -> float:
        return math.sqrt(self._sum_of_squares / max(self._value_count, 1))

    def entry(self) -> Entry:
        """Return the lock entry of this array."""
        entry: Entry = {
            "dtype": self.dtype,
            "shape": str(self.shape),
            "samples": self.count,
            "digest": self._digest.hexdigest(),
            "room": self.max_bytes,
        }
        if not self.few_samples and self._value_count:
            entry |= {"mean": self.mean, "rms": self.rms}
        if self.is_scalar and self.count == 1 and self.stored_parts and self.stored_parts[0].dtype.kind in "biuf":
            entry["value"] = self.stored_parts[0].reshape(-1)[0].item()
        return entry


def extend_streams(
    streams: dict[str, Stream],
    batch: object,
    max_bytes: Mapping[str, int] | int,
    bytes_left: int,
    *,
    few_samples: bool = True,
    exact: bool = True,
) -> int:
    """Add a batch to the streams of its arrays.

    Args:
        streams: The streams by path; extended in place.
        batch: Arrays and tensors of any shape, nested in any way.
        max_bytes: How many bytes may be stored of each array, or of all new arrays together.
        bytes_left: How many bytes the test may still store.
        few_samples: `Stream.few_samples` of new streams.
        exact: `Stream.exact` of new streams.

    Returns:
        How many bytes were stored.

    Raises:
        LockError: If the batch contains anything but arrays.
    """
    try:
        batch_arrays = named_arrays(batch)
    except TypeError as error:
        raise LockError(f"evalmode_lock: {error}") from None
    to_share = max_bytes if isinstance(max_bytes, int) else 0
    stored_bytes = 0
    # Smallest first: the rest of their share goes to the larger arrays.
    for i, name in enumerate(sorted(batch_arrays, key=lambda name: batch_arrays[name].array.nbytes)):
        array, dtype = batch_arrays[name]
        samples = array if array.ndim else array[None]
        stream = streams.get(name)
        if stream is None:
            n = len(batch_arrays) - i
            share = max_bytes.get(name, 0) if isinstance(max_bytes, Mapping) else to_share // n
            stream = Stream(dtype, samples.shape[1:], share, array.ndim == 0, few_samples, exact)
            streams[name] = stream
        added = stream.add(samples, bytes_left - stored_bytes)
        stored_bytes += added
        to_share -= added
    return stored_bytes


def _bytes(array: Array) -> bytes:
    """Return the elements in order; strings as JSON, so that the width of the array's dtype does not matter."""
    if array.dtype.kind in "US":
        return json.dumps(array.tolist()).encode()
    return np.ascontiguousarray(array).tobytes()
