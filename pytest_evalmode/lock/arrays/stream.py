"""One array of inputs or outputs over all batches: its digest, and the samples that are stored.

The digest covers the samples in order, so the batch size does not matter. `-0.0` and `0.0` have the same digest, and so
do all NaN.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from xxhash import xxh3_64, xxh3_64_intdigest, xxh3_128

from pytest_evalmode.lock.arrays.samples import Selection
from pytest_evalmode.lock.lock_file import Entry, LockError

if TYPE_CHECKING:
    Array = np.ndarray[Any, Any]

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
    _part_bytes: int = 0
    _selection: Selection | None = None
    _digest: Any = field(default_factory=xxh3_128)
    _shape: tuple[int, ...] | None = None
    _dtype: np.dtype[Any] | None = None
    _pending: list[Array] = field(default_factory=list)
    _pending_bytes: int = 0

    def add(self, samples: Array) -> None:
        """Add samples: an array of shape (samples, ...). Small batches are gathered first, which is faster."""
        self.count += len(samples)
        shape, dtype, size = samples.shape[1:], samples.dtype, samples.nbytes
        if shape != self._shape or (dtype is not self._dtype and dtype != self._dtype and dtype.kind not in "US"):
            self.flush()
            form = (shape, dtype if dtype.kind not in "US" else "text")
            if self._dtype is not None or shape != self.shape:
                self._digest.update(str(form).encode())
            self._shape, self._dtype = shape, dtype
        if size > _PENDING_BYTES:
            self.flush()
            self._add(samples)
            return
        self._pending.append(samples.copy())
        self._pending_bytes += size + _PENDING_BYTES // _MAX_PENDING  # many empty samples are many, too
        if self._pending_bytes > _PENDING_BYTES:
            self.flush()

    def flush(self) -> None:
        """Process the batches that were gathered."""
        if self._pending:
            pending, self._pending, self._pending_bytes = self._pending, [], 0
            self._add(pending[0] if len(pending) == 1 else np.concatenate(pending))

    def _add(self, samples: Array) -> None:
        for rows in _blocks(samples):
            self._hash(rows)
        self._store(samples)
        if self.is_exact:
            if self._selection is None:
                self._selection = Selection(self.room, self.indices)
            self._selection.add(samples)

    def _hash(self, rows: Array) -> None:
        wanted = self.is_exact and len(self.digests) < _MAX_DIGESTS
        if rows.dtype.kind in "US":
            texts = [json.dumps(row.tolist()).encode() for row in rows]
            self._digest.update(b"".join(texts))
            if wanted:
                self.digests += map(xxh3_64_intdigest, texts[: _MAX_DIGESTS - len(self.digests)])
            return
        if len(rows) == 1 and rows.nbytes > _BLOCK_BYTES:
            one = xxh3_64()
            for values in _blocks(rows.reshape(-1)):  # a copy, if the row is not contiguous
                data = _canonical(values)
                self._digest.update(data)
                one.update(data)
            self.digests += [one.intdigest()] if wanted else []
            return
        data = _canonical(rows)
        self._digest.update(data)
        if wanted:
            first = data[: _MAX_DIGESTS - len(self.digests)]
            flat: Any = first.reshape(len(first), -1) if first.size else np.zeros((len(first), 0), np.uint8)
            self.digests += [xxh3_64_intdigest(row) for row in (flat.view(np.uint8) if flat.size else flat)]

    def _store(self, samples: Array) -> None:
        if self._parts is None:
            return
        same_shape = samples.shape[1:] == self.shape
        if same_shape and self.budget.take(samples.nbytes):
            self._parts.append(samples.copy())
            self._part_bytes += samples.nbytes
        else:
            self.budget.left += self._part_bytes
            self._parts = None

    @property
    def is_complete(self) -> bool:
        """Whether all samples are stored."""
        self.flush()
        return self._parts is not None

    def stored(self) -> tuple[Array, list[int] | None]:
        """Return the stored samples, of shape (samples, ...), and which of all samples they are; None for all."""
        self.flush()
        if self._parts is not None:
            return (np.concatenate(self._parts) if self._parts else np.zeros((0,), np.float32)), None
        if self._selection is None:
            return np.zeros((0,), np.float32), []
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
    is_valid = isinstance(arrays, dict) and all(
        isinstance(array, dict)
        and all(type(array.get(name)) is kind for name, kind in _FIELDS.items())
        and (array.get("kept") is None or _kept(array) is not None)
        for array in arrays.values()
    )
    if not isinstance(arrays, dict) or not is_valid:
        raise LockError(f"{where} has no valid arrays; run pytest --evalmode-update-lock")
    return arrays


def kept_indices(locked: Entry) -> list[int] | None:
    """Return which samples of a locked array are stored; None for all."""
    return None if locked.get("kept") is None else _kept(locked)


def matches(locked: Entry, entry: Entry) -> bool:
    """Return whether two entries are of the same values, bit for bit."""
    return all(locked[name] == entry[name] for name in ("dtype", "shape", "samples", "digest"))


def _kept(entry: Entry) -> list[int] | None:
    try:
        return [int(each) for each in str(entry["kept"]).split(",") if each]
    except ValueError:
        return None


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
