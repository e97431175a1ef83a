"""Numbers that are too many to keep, to be compared within a tolerance all the same: a sketch of each sample.

A sketch is the sum of a sample's numbers, each times a weight in [-1, 1] that looks drawn at random.  Where every
number is within its tolerance, two sketches differ by no more than `_SURE` times the root of the sum of the tolerances'
squares (Hoeffding; by chance once in 10^13).  Other samples, or the same in another order, differ by far more.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    Array = np.ndarray[Any, Any]

_SURE = 8.0
MAX_UNSHARED = 4096
_SHARE = 64
_AT_ONCE = 1 << 20
_ROUNDING = 1e-12
"""What summing in another order makes of a number in float64, at most."""


@dataclass(slots=True)
class Sketch:
    """The sketches of a stream's samples.

    From the 4096th sample on, 64 share one, in which each has a weight again; the last is for all that come later.
    """

    sums: Array = field(default_factory=lambda: np.zeros(0))
    squares: Array = field(default_factory=lambda: np.zeros(0))
    shares: Array = field(default_factory=lambda: np.zeros(0))
    """How many samples are in each."""
    size: int = 0
    """How many numbers there are in the largest sample."""
    count: int = 0

    def add(self, samples: Array) -> None:
        """Further samples, along the first dimension."""
        each = int(np.prod(samples.shape[1:], dtype=np.int64)) * (2 if samples.dtype.kind == "c" else 1)
        self.size = max(self.size, each)
        weights = _weights(np.arange(each))
        step = max(1, _AT_ONCE // max(each, 1))
        for start in range(0, len(samples), step):
            table = _table(samples[start : start + step])
            self._add(table @ weights, (table * table).sum(1))

    def _add(self, values: Array, squares: Array) -> None:
        places = np.arange(self.count, self.count + len(values))
        own = places < MAX_UNSHARED
        at = np.where(own, places, np.minimum(MAX_UNSHARED + (places - MAX_UNSHARED) // _SHARE, 2 * MAX_UNSHARED - 1))
        self.sums = _summed(self.sums, at, values * np.where(own, 1.0, _weights(places)))
        self.squares = _summed(self.squares, at, squares)
        self.shares = _summed(self.shares, at, np.ones(len(values)))
        self.count += len(values)

    def find_differing(self, was: Array, rtol: float, atol: float) -> list[int]:
        """The samples that are further from what they were than a tolerance allows; of those that share, the first."""
        sure = np.where(np.arange(len(self.sums)) < MAX_UNSHARED, _SURE, _SURE**2)
        allowed = sure * (atol * np.sqrt(self.shares * self.size) + (rtol + _ROUNDING) * np.sqrt(self.squares))
        far = np.flatnonzero(~(np.abs(self.sums - was) <= allowed))
        return [int(i) if i < MAX_UNSHARED else MAX_UNSHARED + (int(i) - MAX_UNSHARED) * _SHARE for i in far]


def _summed(sums: Array, at: Array, values: Array) -> Array:
    found: Array = np.bincount(at, values, minlength=len(sums))
    found[: len(sums)] += sums
    return found


def _table(samples: Array) -> Array:
    """A row of float64 a sample; what is not finite has a value of its own."""
    flat = np.ascontiguousarray(samples).reshape(len(samples), -1)
    flat = flat.view(flat.real.dtype) if flat.dtype.kind == "c" else flat
    table: Array = np.nan_to_num(flat.astype(np.float64), nan=0.7, posinf=1.7, neginf=-1.7)
    return table


def _weights(places: Array) -> Array:
    """A weight for each place, always the same (splitmix64)."""
    mixed = (places.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    weights: Array = (mixed ^ (mixed >> np.uint64(31))) / 2.0**63 - 1.0
    return weights
