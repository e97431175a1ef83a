"""The batches that a test passes to the lock under one name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Any

from torch import Tensor

from pytest_evalmode.lock.arrays.batch_arrays import BatchArray, named_arrays
from pytest_evalmode.lock.arrays.stream import Budget, Stream, kept_indices
from pytest_evalmode.lock.arrays.tolerance import Tolerance
from pytest_evalmode.lock.lock_file import Entry, LockError

if TYPE_CHECKING:
    from pytest_evalmode.trace import Site

MetricFunction = Callable[[Any], object]
"""The type of `again=`: computes metrics from a batch of inputs."""

_SMALL = 1 << 16  # bytes up to which all samples of exact inputs are stored
_MAX_SAMPLES = 64
_DTYPES = "bool float16 float32 float64 int8 int16 int32 int64 uint8 uint16 uint32 uint64 complex64 complex128".split()


def check_tolerance(kind: str, rtol: float | None, atol: float | None) -> None:
    """Raise LockError if only one of the two tolerances is given."""
    if (rtol is None) != (atol is None):
        got = f"got rtol={rtol!r}, atol={atol!r}"
        raise LockError(f"evalmode_lock.{kind}(): pass both rtol and atol, or neither ({got})")


@dataclass(slots=True)
class NamedBatches:
    """All batches of inputs or outputs of one name, with a stream for each of their arrays."""

    kind: str
    """`inputs` or `outputs`."""
    name: str
    at: Site | None
    tolerance: Tolerance
    first_batch: object
    budget: Budget
    """What the test may store."""
    locked: Mapping[str, Entry] = field(default_factory=dict)
    """The locked arrays, of which the same samples are selected."""
    select_anew: bool = False
    """Whether other samples may be selected than the locked ones."""
    again: MetricFunction | None = None
    streams: dict[str, Stream] = field(default_factory=dict)
    _plain: Stream | None = None
    """The stream of batches that are one tensor, which are then added without a search for arrays."""

    def add(self, batch: object) -> None:
        """Add a batch: arrays and tensors of any shape, nested in any way; raise LockError for anything else."""
        if self._plain is not None and type(batch) is Tensor and batch.ndim:
            try:
                array = batch.numpy()
            except (TypeError, RuntimeError):  # on a device, sparse, with gradients: not as plain as the first
                pass
            else:
                self._plain.add(array)
                return
        try:
            arrays = named_arrays(batch)
        except TypeError as error:
            raise LockError(f"evalmode_lock.{self.kind}(): {error}") from None
        new = {path: each for path, each in arrays.items() if path not in self.streams}
        if new:
            self._start(new)
        for path, (array, _) in arrays.items():
            self.streams[path].add(array if array.ndim else array[None])
        if type(batch) is Tensor and batch.ndim and str(batch.dtype) == f"torch.{array.dtype.name}":
            self._plain = self.streams[path]

    def _start(self, arrays: Mapping[str, BatchArray]) -> None:
        """Create the streams of new arrays, the smallest first: the larger ones can use what these leave.

        Exact inputs reserve half of what the test may still store.
        """
        to_share = self.budget.left // 2
        for n, (path, (array, dtype)) in enumerate(sorted(arrays.items(), key=lambda item: item[1].array.nbytes)):
            if array.dtype.name not in _DTYPES and array.dtype.kind not in "USM":
                raise LockError(
                    f"evalmode_lock.{self.kind}(): {path} has dtype {array.dtype}, which cannot be stored; convert it"
                )
            shape = array.shape[1:]
            is_exact = self._is_exact(array.dtype.kind)
            locked = None if self.select_anew else self.locked.get(path)
            budget, indices = self.budget, None
            room = min(to_share // (len(arrays) - n), max(array.itemsize * prod(shape) * _MAX_SAMPLES, _SMALL))
            if locked is not None:
                room, indices = locked["room"], kept_indices(locked)
            if is_exact and self.kind == "inputs":
                self.budget.take(room if locked is None else 0)
                budget = Budget(min(room, _SMALL))
            to_share -= room
            self.streams[path] = Stream(dtype, shape, array.ndim == 0, is_exact, room, budget, indices)

    def _is_exact(self, kind: str) -> bool:
        """Return whether an array is compared bit by bit: the default of `assert_close` for anything but floats."""
        if None in self.tolerance:
            return self.kind == "inputs" or kind not in "fc"
        return not any(self.tolerance) or kind not in "biufc"

    def entry(self) -> Entry:
        """Return the lock entry; raise LockError if values do not fit that must be compared within a tolerance."""
        for path, stream in self.streams.items():
            if not stream.is_exact and stream.stored()[1] is not None:
                raise LockError(
                    f"evalmode_lock.{self.kind}(): {self.name!r} ({path}) has {stream.count} samples of shape "
                    f"{stream.shape}: too many to store, so they cannot be compared within a tolerance. Lock less (a "
                    "metric, `logits.argmax(-1)` or `logits[:100]`), or pass rtol=0, atol=0 to compare bit by bit"
                )
        return {"arrays": {path: stream.entry() for path, stream in self.streams.items()}}

    @property
    def has_all_samples(self) -> bool:
        """Whether this run has at least as many samples of each array as the lock."""
        locked = self.locked.items()
        return all(path in self.streams and self.streams[path].count >= entry["samples"] for path, entry in locked)
