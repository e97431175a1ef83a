"""Sketches of samples, which compare outputs within a tolerance without storing them.

A sketch is the sum of a sample's values times fixed pseudorandom weights in [-1, 1]. If every value is within its
tolerance, two sketches differ by at most `_BOUND` times the root of the summed squared tolerances (Hoeffding's
inequality; exceeded by chance once in 10^13). Other values, or a different order of them, differ by far more.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    Array = np.ndarray[Any, Any]

_BOUND = 8.0
MAX_UNSHARED = 4096
"""How many samples have a sketch of their own."""
_SAMPLES_PER_SKETCH = 64
_VALUES_AT_ONCE = 1 << 20
_ROUNDING = 1e-12
"""The largest relative error in float64 from summing in a different order."""


@dataclass(slots=True)
class Sketch:
    """The sketches of all samples of a stream.

    The first `MAX_UNSHARED` samples have a sketch each. After that, 64 samples share one, as a weighted sum of theirs,
    and the last one is shared by all remaining samples.
    """

    sums: Array = field(default_factory=lambda: np.zeros(0))
    squares: Array = field(default_factory=lambda: np.zeros(0))
    sample_counts: Array = field(default_factory=lambda: np.zeros(0))
    """How many samples each sketch covers."""
    size: int = 0
    """How many values the largest sample has."""
    count: int = 0

    def add(self, samples: Array) -> None:
        """Add samples: numbers of shape (samples, ...)."""
        size = int(np.prod(samples.shape[1:], dtype=np.int64)) * (2 if samples.dtype.kind == "c" else 1)
        self.size = max(self.size, size)
        weights = _weights(np.arange(size))
        step = max(1, _VALUES_AT_ONCE // max(size, 1))
        for start in range(0, len(samples), step):
            rows = _rows(samples[start : start + step])
            self._add(rows @ weights, (rows * rows).sum(1))

    def _add(self, values: Array, squares: Array) -> None:
        indices = np.arange(self.count, self.count + len(values))
        is_unshared = indices < MAX_UNSHARED
        shared = np.minimum(MAX_UNSHARED + (indices - MAX_UNSHARED) // _SAMPLES_PER_SKETCH, 2 * MAX_UNSHARED - 1)
        sketches = np.where(is_unshared, indices, shared)
        self.sums = _add_at(self.sums, sketches, values * np.where(is_unshared, 1.0, _weights(indices)))
        self.squares = _add_at(self.squares, sketches, squares)
        self.sample_counts = _add_at(self.sample_counts, sketches, np.ones(len(values)))
        self.count += len(values)

    def find_differing(self, stored: Array, rtol: float, atol: float) -> list[int]:
        """Return the indices of samples beyond the tolerance; for a shared sketch, the index of its first sample.

        Args:
            stored: The stored `sums`, float64 of shape (sketches,).
            rtol: The relative tolerance.
            atol: The absolute tolerance.
        """
        # A shared sketch weights its samples once more, so the bound applies twice.
        bound = np.where(np.arange(len(self.sums)) < MAX_UNSHARED, _BOUND, _BOUND**2)
        values = self.sample_counts * self.size
        allowed = bound * (atol * np.sqrt(values) + (rtol + _ROUNDING) * np.sqrt(self.squares))
        differing = map(int, np.flatnonzero(~(np.abs(self.sums - stored) <= allowed)))
        return [i if i < MAX_UNSHARED else MAX_UNSHARED + (i - MAX_UNSHARED) * _SAMPLES_PER_SKETCH for i in differing]


def _add_at(sums: Array, indices: Array, values: Array) -> Array:
    extended: Array = np.bincount(indices, values, minlength=len(sums))
    extended[: len(sums)] += sums
    return extended


def _rows(samples: Array) -> Array:
    """Return a row of float64 values per sample; NaN and infinities become fixed values."""
    flat = np.ascontiguousarray(samples).reshape(len(samples), -1)
    flat = flat.view(flat.real.dtype) if flat.dtype.kind == "c" else flat
    rows: Array = np.nan_to_num(flat.astype(np.float64), nan=0.7, posinf=1.7, neginf=-1.7)
    return rows


def _weights(indices: Array) -> Array:
    """Return a fixed weight in [-1, 1] for each index (splitmix64)."""
    mixed = (indices.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    weights: Array = (mixed ^ (mixed >> np.uint64(31))) / 2.0**63 - 1.0
    return weights
