"""The samples of an array that are stored: several, spread over all, chosen while the batches arrive."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

import numpy as np

from pytest_evalmode.lock.causes.cause import Array
from pytest_evalmode.lock.causes.images import layout

_MAX_SAMPLES = 64
_ENOUGH = 8  # samples; an image is cropped so that this many fit
_MAX_NON_ASCII = 8
_STEP = 32  # images are cropped by multiples of this, half on each side, so that the blocks of a JPEG stay aligned
_MIN_SIDE = 64  # so that eight fit; one image is cropped further
_ITEM = 4  # bytes of a value, whatever the dtype, so that images in another dtype are cropped in the same way


class Selection:
    """The samples of one array that are stored.

    Every sample whose index is a multiple of a power of two is kept; the power grows as samples arrive, so the batch
    size does not matter. Some texts with non-ASCII characters are kept beside them.
    """

    def __init__(self, max_bytes: int, indices: Sequence[int] | None = None) -> None:
        """Start without samples; `indices` are those to keep, which are chosen by default."""
        self.nbytes = 0
        self._max_bytes = max_bytes
        self._fixed = None if indices is None else sorted(indices)
        self._stride = 1
        self._count = 0
        self._shape: tuple[int, ...] | None = None
        self._crop: tuple[slice, ...] = ()
        self._samples: dict[int, Array] = {}
        self._non_ascii: set[int] = set()

    @property
    def indices(self) -> list[int]:
        return sorted(self._samples)

    @property
    def values(self) -> Array:
        """The kept samples, of shape (len(indices), ...)."""
        return np.stack([self._samples[i] for i in self.indices]) if self._samples else np.zeros((0,), np.float32)

    def add(self, samples: Array) -> None:
        """Add samples: an array of shape (samples, ...). Samples of another shape than the first are not kept."""
        start, self._count = self._count, self._count + len(samples)
        if self._shape is None:
            self._shape, self._crop = samples.shape[1:], center_crop(samples.shape[1:], self._max_bytes)
        if samples.shape[1:] != self._shape:
            return
        if self._fixed is not None:
            for i in self._fixed[bisect_left(self._fixed, start) : bisect_left(self._fixed, self._count)]:
                self._keep(i, samples[i - start])
            return
        i = start + -start % self._stride
        while i < self._count:
            self._keep(i, samples[i - start])
            i += self._stride - i % self._stride
        for i in range(start, self._count) if samples.dtype.kind in "US" else ():
            if len(self._non_ascii) < _MAX_NON_ASCII and not _is_ascii(samples[i - start]):
                self._non_ascii.add(i)
                self._keep(i, samples[i - start])

    def _keep(self, i: int, sample: Array) -> None:
        sample = np.asarray(sample)[self._crop]
        if i in self._samples or sample.nbytes > self._max_bytes:
            return
        self._samples[i] = sample.copy()
        self.nbytes += sample.nbytes
        while self.nbytes > self._max_bytes or (self._fixed is None and len(self._samples) > _MAX_SAMPLES):
            self._thin_out()

    def _thin_out(self) -> None:
        if self._fixed is not None or len(self._samples) == 1:
            self.nbytes -= self._samples.popitem()[1].nbytes
            return
        self._stride *= 2
        if self._stride > max(self._samples):
            self._non_ascii.clear()
        for i in [i for i in self._samples if i % self._stride and i not in self._non_ascii]:
            self.nbytes -= self._samples.pop(i).nbytes


def center_crop(shape: tuple[int, ...], max_bytes: int) -> tuple[slice, ...]:
    """Return the index of the center of an image, such that several images fit; everything if it is small.

    Both sides are cropped equally, so that a flipped image keeps the same content.
    """
    images = layout.read_as_images(np.broadcast_to(np.uint8(0), (1, *shape))) if len(shape) in (2, 3) else []
    if not images or not (images[0].is_certain or len(shape) == 2):
        return ()
    axes = images[0].layout[1:]
    rows, columns = axes.index("H"), axes.index("W")
    sides = list(shape)
    for count, least in ((_ENOUGH, _MIN_SIDE), (1, _STEP)):
        while np.prod(sides) * _ITEM * count > max_bytes:
            axis = rows if sides[rows] >= sides[columns] else columns
            if sides[axis] - _STEP < least:
                break
            sides[axis] -= _STEP
    margins = [(whole - side) // 2 for whole, side in zip(shape, sides, strict=True)]
    return tuple(slice(margin, margin + side) for margin, side in zip(margins, sides, strict=True))


def _is_ascii(sample: Array) -> bool:
    return all(str(text).isascii() for text in np.ravel(sample))
