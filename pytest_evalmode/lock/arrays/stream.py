"""One array of inputs or outputs over all batches: its digest, and the samples that are stored.

The digest covers the samples in order, so the batch size does not matter. `-0.0` and `0.0` have the same digest, and so
do all NaN.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from xxhash import xxh3_64, xxh3_64_intdigest, xxh3_128

from pytest_evalmode.lock.arrays.samples import Selection
from pytest_evalmode.lock.causes.cause import Array
from pytest_evalmode.lock.lock_file import Entry, LockError

_MAX_DIGESTS = 4096
_BLOCK_BYTES = 1 << 20
_PENDING_BYTES = 1 << 16
_MAX_PENDING = 512
_FIELDS = {"dtype": str, "shape": str, "samples": int, "digest": str, "room": int}


@dataclass(slots=True)
class Budget:
    """How many bytes may still be stored."""

    left: int

    def take(self, size: int) -> bool:
        """Take some bytes; return whether there were enough."""
        enough = size <= self.left
        self.left -= size if enough else 0
        return enough


@dataclass(slots=True)
class Stream:
    """One array of a batch, over all batches."""

    dtype: str
    shape: tuple[int, ...]
    """The shape of one sample; of the first, if they vary."""
    is_scalar: bool
    """Whether this is a single number, not an array of samples."""
    is_exact: bool
    """Whether samples are compared bit by bit, by digests; otherwise all are stored, to compare within a tolerance."""
    room: int
    """How many bytes a selection of samples may have, if not all are stored."""
    budget: Budget
    """From which all samples are stored, as long as they fit."""
    indices: Sequence[int] | None = None
    """The samples to select; None to choose them."""
    count: int = 0
    digests: list[int] = field(default_factory=list)
    """Of the first samples."""
    _parts: list[Array] | None = field(default_factory=list)
    _selection: Selection = field(init=False)
    _digest: Any = field(default_factory=xxh3_128)
    _form: tuple[tuple[int, ...], Any] | None = None
    """The shape and dtype of a sample of the last batch."""
    _pending: list[bytes] = field(default_factory=list)
    _pending_bytes: int = 0
    _processed: int = 0

    def __post_init__(self) -> None:
        self._selection = Selection(self.room, self.indices)

    def add(self, samples: Array) -> None:
        """Add samples: an array of shape (samples, ...). Small batches of numbers are gathered, which is faster."""
        is_text, size = samples.dtype.kind in "US", samples.nbytes
        form = (samples.shape[1:], "text" if is_text else samples.dtype)  # whatever the longest text
        if form != self._form:
            self.flush()
            if self._form is not None or samples.shape[1:] != self.shape:
                self._digest.update(str(form).encode())
            self._form = form
        if is_text or size > _PENDING_BYTES:
            self.flush()
            self.count += len(samples)
            self._process(samples)
            return
        self._pending.append(samples.tobytes())
        self.count += len(samples)
        self._pending_bytes += size + _PENDING_BYTES // _MAX_PENDING  # many empty samples are many, too
        if self._pending_bytes > _PENDING_BYTES:
            self.flush()

    def flush(self) -> None:
        """Process the batches that were gathered."""
        pending, self._pending, self._pending_bytes = self._pending, [], 0
        if pending and self._form is not None:
            shape, dtype = self._form
            self._process(np.ndarray((self.count - self._processed, *shape), dtype, b"".join(pending)))

    def _process(self, samples: Array) -> None:
        self._processed += len(samples)
        for rows in _blocks(samples):
            self._hash(rows)
        if self._parts is not None and samples.shape[1:] == self.shape and self.budget.take(samples.nbytes):
            self._parts.append(samples.copy())
        elif self._parts is not None:
            self.budget.left += sum(part.nbytes for part in self._parts)
            self._parts = None
        if self.is_exact:
            self._selection.add(samples)

    def _hash(self, rows: Array) -> None:
        wanted = _MAX_DIGESTS - len(self.digests) if self.is_exact else 0
        if rows.dtype.kind in "US":
            texts = [json.dumps(row.tolist()).encode() for row in rows]
            self._digest.update(b"".join(texts))
            self.digests += map(xxh3_64_intdigest, texts[:wanted])
        elif len(rows) == 1 and rows.nbytes > _BLOCK_BYTES:
            one = xxh3_64()
            for values in _blocks(rows.reshape(-1)):  # a copy, if the row is not contiguous
                data = _canonical(values)
                self._digest.update(data)
                one.update(data)
            self.digests += [one.intdigest()][:wanted]
        else:
            data = _canonical(rows)
            self._digest.update(data)
            self.digests += [xxh3_64_intdigest(row.tobytes()) for row in data[:wanted]]

    def stored(self) -> tuple[Array, list[int] | None]:
        """Return the stored samples, of shape (samples, ...), and which of all samples they are; None for all."""
        self.flush()
        if self._parts is not None:
            return (np.concatenate(self._parts) if self._parts else np.zeros((0,), np.float32)), None
        return self._selection.values, self._selection.indices

    def entry(self) -> Entry:
        """Return the lock entry of this array."""
        values, indices = self.stored()
        entry: Entry = {
            "dtype": self.dtype,
            "shape": str(self.shape),
            "samples": self.count,
            "digest": self._digest.hexdigest(),
            "room": self.room,
        }
        if indices is not None:
            entry["kept"] = ",".join(map(str, indices))
        if self.is_scalar and self.count == 1 and values.dtype.kind in "biuf" and values.size == 1:
            entry["value"] = values.reshape(-1)[0].item()
        return entry


def parse_arrays(entry: Entry, where: str) -> dict[str, Entry]:
    """Return the arrays of an entry, by path; raise LockError, naming the entry by `where`, if one is invalid."""
    arrays = entry.get("arrays")
    if not isinstance(arrays, dict) or not all(map(_is_valid, arrays.values())):
        raise LockError(f"{where} has no valid arrays; run pytest --evalmode-update-lock")
    return arrays


def _is_valid(array: object) -> bool:
    if not isinstance(array, dict) or any(type(array.get(name)) is not kind for name, kind in _FIELDS.items()):
        return False
    try:
        return all(0 <= i < 1 << 63 for i in kept_indices(array) or ())
    except ValueError:
        return False


def kept_indices(locked: Entry) -> list[int] | None:
    """Return which samples of a locked array are stored; None for all."""
    kept = locked.get("kept")
    return None if kept is None else [int(each) for each in str(kept).split(",") if each]


def matches(locked: Entry, entry: Entry) -> bool:
    """Return whether two entries are of the same values, bit for bit."""
    return all(locked[name] == entry[name] for name in ("dtype", "shape", "samples", "digest"))


def _blocks(samples: Array) -> Iterator[Array]:
    """Yield the samples in blocks that fit the processor's cache; one sample may be larger."""
    size = max(1, samples.nbytes // max(1, len(samples)))
    step = max(1, _BLOCK_BYTES // size)
    yield from (samples[i : i + step] for i in range(0, len(samples), step))


def _canonical(values: Array) -> Any:
    """Return values as a contiguous array in which equal numbers have the same bytes."""
    values = np.ascontiguousarray(values)
    if values.dtype.kind in "fc":
        values = values + values.dtype.type(0)  # -0.0 becomes 0.0
        missing = np.isnan(values)
        if missing.any():
            values[missing] = np.nan
    return values.view(np.int64) if values.dtype.kind == "M" else values
