"""Image layouts: arrays of any layout as images of shape (samples, channels, rows, columns)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from pytest_evalmode.lock.causes.cause import Array, Step

_CHANNELS = (1, 3, 4)
_MIN_SIDE = 4  # rows and columns of an image


class ImageBatch(NamedTuple):
    """An array read as images in one layout."""

    layout: str  # the axes of the original array: N samples, T frames, C channels, H rows, W columns
    images: Array  # a view of shape (samples, channels, rows, columns), values and dtype unchanged
    is_certain: bool  # the shape or dtype shows that these are images; otherwise they may be any 3-D or 4-D numbers


def read_as_images(array: Array) -> list[ImageBatch]:
    """Return the layouts in which a numeric array can be read as images, the likeliest first; maybe none."""
    readings: list[ImageBatch] = []
    shape = array.shape
    if array.ndim == 5:
        frames = read_as_images(array.reshape(-1, *shape[2:]))
        readings += [ImageBatch(f"NT{each.layout.removeprefix('N')}", each.images, True) for each in frames]
    if array.ndim == 4:
        if min(shape[2:]) >= _MIN_SIDE and (shape[1] in _CHANNELS or shape[3] not in _CHANNELS):
            readings.append(ImageBatch("NCHW", array, shape[1] in _CHANNELS))
        if min(shape[1:3]) >= _MIN_SIDE and shape[3] in _CHANNELS:
            readings.append(ImageBatch("NHWC", array.transpose(0, 3, 1, 2), True))
    if array.ndim == 3:
        if min(shape[1:]) >= _MIN_SIDE and shape[0] == 3:
            readings.append(ImageBatch("CHW", array[None], True))
        if min(shape[:2]) >= _MIN_SIDE and shape[2] in _CHANNELS:
            readings.append(ImageBatch("HWC", array.transpose(2, 0, 1)[None], True))
        if min(shape[1:]) >= _MIN_SIDE:
            readings.append(ImageBatch("NHW", array[:, None], False))
    if array.ndim == 2 and array.dtype == np.uint8 and min(shape) >= 2 * _MIN_SIDE:
        readings.append(ImageBatch("HW", array[None, None], True))
    return readings


def pair_layouts(was: Array, now: Array) -> Iterator[tuple[list[Step], ImageBatch, ImageBatch]]:
    """Yield both arrays as images, first in the same layout without a step, then in different layouts."""
    old, new = read_as_images(was), read_as_images(now)
    for a in old:
        yield from (([], a, b) for b in new if b.layout == a.layout)
    for a in old:
        for b in new:
            if b.layout != a.layout:
                yield [Step("layout", f"laid out as {b.layout}, not {a.layout}")], a, b
