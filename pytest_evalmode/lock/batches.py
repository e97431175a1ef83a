"""Inputs or outputs as they come, batch by batch: each of their arrays digested sample by sample, the first kept.

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

from pytest_evalmode.lock.file import Entry, LockError
from pytest_evalmode.lock.inputs import Diagnosis, compare_classes, compare_order, diagnose, text
from pytest_evalmode.lock.inputs.samples import few, given
from pytest_evalmode.lock.pictures import pictures
from pytest_evalmode.lock.sketches import Sketch

if TYPE_CHECKING:
    Array = np.ndarray[Any, Any]

_MOST_DIGESTS = 4096
_FIELDS = {"dtype": str, "shape": str, "samples": int, "digest": str, "room": int}


@dataclass(slots=True)
class Stream:
    """One array of a batch, over all batches."""

    dtype: str
    shape: tuple[int, ...]
    """Of one sample; of the first, where they vary."""
    room: int
    """How many bytes may be kept."""
    single: bool
    """Whether this is one number, not an array of samples."""
    fewest: bool
    """Whether a few samples will do, the middle of the first where a whole one has no room."""
    exact: bool
    """Whether it is to be the same bit by bit; else each sample has a sketch, not a digest of its own."""
    count: int = 0
    kept: list[Array] = field(default_factory=list)
    digests: list[int] = field(default_factory=list)
    sketch: Sketch = field(default_factory=Sketch)
    total: float = 0.0
    squares: float = 0.0
    numbers: int = 0
    whole: bool = True
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
        kept = self._keep(samples, left) if self.whole else 0
        self.count += len(samples)
        return kept

    def _keep(self, samples: Array, left: int) -> int:
        left = min(left, self.room - sum(each.nbytes for each in self.kept))
        if samples.shape[1:] != self.shape:
            kept = samples[:0]
        elif self.fewest and not self.kept:
            kept = few(samples, left)
        else:
            size = samples[:1].nbytes
            most = max(0, left // size if size else len(samples))
            kept = samples[: min(most, 64 - self.count) if self.fewest else most]
        self.whole = kept.shape == samples.shape
        if kept.size:
            self.kept.append(kept.copy())
        return kept.nbytes

    def values(self) -> Array:
        """What is kept."""
        return np.concatenate(self.kept) if self.kept else np.zeros((0,), np.float32)

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
            "room": self.room,
        }
        if not self.fewest and self.numbers:
            found |= {"mean": self.mean, "rms": self.rms}
        if self.single and self.count == 1 and self.kept and self.kept[0].dtype.kind in "biuf":
            found["value"] = self.kept[0].reshape(-1)[0].item()
        return found


def extend(
    streams: dict[str, Stream],
    batch: object,
    room: Mapping[str, int] | int,
    left: int,
    *,
    fewest: bool = True,
    exact: bool = True,
) -> int:
    """Add a batch to the streams of its arrays, and tell how many bytes more are kept, no more than are `left`.

    `room` is what may be kept of each array, or of all those that are new.  Raises LockError on what holds no arrays.
    """
    try:
        found = given(batch)
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
            stream = Stream(dtype, samples.shape[1:], own, array.ndim == 0, fewest, exact)
            streams[name] = stream
        kept = stream.add(samples, left - taken)
        taken += kept
        to_share -= kept
    return taken


def packed(streams: Mapping[str, Stream]) -> dict[str, Array]:
    """What is kept of the streams, as safetensors can hold it."""
    found: dict[str, Array] = {}
    for name, stream in streams.items():
        if stream.kept:
            found[name] = _stored(stream.values())
        if not stream.whole and stream.digests:
            found[f"{name}#digests"] = np.asarray(stream.digests, np.uint64)
        if not stream.whole and stream.sketch.count:
            found[f"{name}#sketch"] = stream.sketch.sums
    return found


def room_of(arrays_: Mapping[str, Any]) -> dict[str, int]:
    """What was kept of each array, as it is locked."""
    return {name: entry["room"] for name, entry in arrays_.items()}


def checked(entry: Entry, where: str) -> dict[str, Entry]:
    """The arrays of a locked entry.  Raises LockError, which begins with `where`, where they are none."""
    found = entry.get("arrays")
    right = isinstance(found, dict) and all(
        isinstance(array, dict) and all(type(array.get(name)) is kind for name, kind in _FIELDS.items())
        for array in found.values()
    )
    if not isinstance(found, dict) or not right:
        raise LockError(f"{where} describes no arrays; delete it and run pytest --evalmode-update-lock")
    return found


def holds(was: Entry, now: Entry) -> bool:
    """Whether an array is what was locked, bit by bit."""
    return all(was[name] == now[name] for name in ("dtype", "shape", "samples", "digest"))


def difference(
    was: Entry,
    now: Stream,
    kept: Array | None,
    digests: Array | None,
    *,
    rtol: float = 0.0,
    atol: float = 0.0,
) -> tuple[str, Mapping[str, object]]:
    """How an array differs, in words, and in details."""
    new = now.entry()
    found = _diagnosis(was, now, kept, digests, rtol=rtol, atol=atol)
    if found is not None:
        recast = was["dtype"] != new["dtype"] and "dtype" not in found.kinds
        and_recast = f"; given as {new['dtype']}, not {was['dtype']}" if recast else ""
        return f"{found.headline}{and_recast}", {"kinds": list(found.kinds), **found.details}
    for name in ("dtype", "shape", "samples"):
        if was[name] != new[name]:
            return f"values differ: {name} {new[name]}, not {was[name]}", {}
    others = [i for i, (a, b) in enumerate(zip(_list(digests), now.digests, strict=False)) if a != b]
    if others:
        shown = ", ".join(map(str, others[:5])) + (", ..." if len(others) > 5 else "")
        return f"{len(others)} of {now.count} samples differ ({shown})", {"samples": others[:32]}
    return f"values differ after the first {max(len(_list(digests)), len(now.values()))} samples", {}


def drawn(was: Entry, now: Stream, kept: Array | None) -> dict[str, Any] | None:
    """What there is to look at of an array that differs."""
    if kept is None or "text" in (was["dtype"], now.dtype):
        return None
    old, live = restored(kept, was["dtype"]), now.values()
    return None if text.is_tokens(old, live) else pictures(old, live)


def _diagnosis(
    was: Entry, now: Stream, kept: Array | None, digests: Array | None, *, rtol: float, atol: float
) -> Diagnosis | None:
    live = now.values()
    if kept is None or not live.size:
        return None
    old = restored(kept, was["dtype"])
    complete = digests is None and now.whole and len(old) == was["samples"]
    if not complete:
        cut = old.shape[1:] != now.shape or live.shape[1:] != now.shape
        if not cut and digests is not None and len(digests) == was["samples"] and len(now.digests) == now.count:
            # Labels of a few classes come in another order as easily as they are given other numbers.
            found = compare_classes(_list(digests), now.digests, old, live) if now.shape == () else None
            found = found or compare_order(_list(digests), now.digests)
            if found is not None:
                return found
        if not cut:
            both = min(len(old), len(live))
            old, live = old[:both], live[:both]
    if now.single and not complete:
        return None
    return diagnose(old, live, rtol=rtol, atol=atol)


def _list(digests: Array | None) -> list[int]:
    return [] if digests is None else [int(digest) for digest in digests]


def _bytes(array: Array) -> bytes:
    """The elements in order; of texts, what they say, however wide the array is."""
    if array.dtype.kind in "US":
        return json.dumps(array.tolist()).encode()
    return np.ascontiguousarray(array).tobytes()


def _stored(values: Array) -> Array:
    if values.dtype.kind in "US":
        return np.frombuffer(json.dumps(values.astype(str).tolist()).encode(), np.uint8)
    if values.dtype.kind == "c":
        return np.stack([values.real, values.imag], -1)
    return values.view(np.int64) if values.dtype.kind == "M" else values


def restored(kept: Array, dtype: str) -> Array:
    """What was kept of an array, as it was before it was packed."""
    if dtype == "text" and kept.dtype == np.uint8:
        try:
            return np.asarray(json.loads(kept.tobytes()), dtype=str)
        except (ValueError, RecursionError):
            return kept
    if dtype.startswith("complex") and kept.ndim and kept.shape[-1] == 2:
        return np.asarray(kept[..., 0] + 1j * kept[..., 1])
    return kept.view(dtype) if dtype.startswith("datetime64") and kept.dtype == np.int64 else kept
