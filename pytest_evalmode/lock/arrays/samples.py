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
        """Start without samples.

        Args:
            max_bytes: How many bytes the kept samples may have.
            indices: The samples to keep; by default they are chosen.
        """
        self.nbytes = 0
        self._max_bytes = max_bytes
        self._fixed = None if indices is None else sorted(indices)
        self._stride = 1
        self._count = 0
        self._shape: tuple[int, ...] | None = None
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
        self._shape = samples.shape[1:] if self._shape is None else self._shape
        if samples.shape[1:] != self._shape:
            return
        crop = center_crop(self._shape, self._max_bytes)
        for i in self._candidates(samples, start):
            sample = np.asarray(samples[i - start])[crop]
            is_wanted = self._fixed is not None or i in self._non_ascii or i % self._stride == 0
            if is_wanted and sample.nbytes <= self._max_bytes:
                self._samples[i] = sample.copy()
                self.nbytes += self._samples[i].nbytes
                self._thin_out()

    def _candidates(self, samples: Array, start: int) -> list[int]:
        """Return the indices, in order, of the samples that may be kept."""
        if self._fixed is not None:
            return self._fixed[bisect_left(self._fixed, start) : bisect_left(self._fixed, self._count)]
        spread = range(start + -start % self._stride, self._count, self._stride)
        if samples.dtype.kind not in "US":
            return self._skip(spread) if len(spread) > 4 * _MAX_SAMPLES else list(spread)
        for i in range(start, self._count):
            if len(self._non_ascii) < _MAX_NON_ASCII and not _is_ascii(samples[i - start]):
                self._non_ascii.add(i)
        return sorted({*spread, *self._non_ascii & set(range(start, self._count))})

    def _skip(self, spread: range) -> list[int]:
        """Enlarge the stride at once as many samples would, one by one."""
        while len(spread) > _MAX_SAMPLES:
            self._enlarge_stride()
            spread = range(spread.start + -spread.start % self._stride, self._count, self._stride)
        return list(spread)

    def _thin_out(self) -> None:
        """Drop samples until the rest fits."""
        while self.nbytes > self._max_bytes or (self._fixed is None and len(self._samples) > _MAX_SAMPLES):
            if self._fixed is not None or len(self._samples) == 1:
                self.nbytes -= self._samples.popitem()[1].nbytes
            else:
                self._enlarge_stride()

    def _enlarge_stride(self) -> None:
        self._stride *= 2
        if self._stride > max(self._samples, default=0):
            self._non_ascii.clear()
        for i in [i for i in self._samples if i % self._stride and i not in self._non_ascii]:
            self.nbytes -= self._samples.pop(i).nbytes


def center_crop(shape: tuple[int, ...], max_bytes: int) -> tuple[slice, ...]:
    """Return the index of the center of an image, such that several images fit; everything if it is small.

    Both sides are cropped equally, so that a flipped image keeps the same content.

    Args:
        shape: The shape of one sample.
        max_bytes: How many bytes all samples may have.
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
