"""Image layouts: arrays of any layout as images of shape (samples, channels, rows, columns)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import permutations
from typing import NamedTuple

import numpy as np

from pytest_evalmode.lock.inputs.diagnosis import Array, Step

_CHANNELS = (1, 3, 4)
_MIN_SIDE = 4  # rows and columns of an image


class ImageBatch(NamedTuple):
    """An array read as images in one layout."""

    layout: str  # the axes of the original array: N samples, T frames, C channels, H rows, W columns
    images: Array  # a view of shape (samples, channels, rows, columns), values and dtype unchanged
    is_certain: bool  # the shape or dtype shows that these are images; otherwise they may be any 3-D or 4-D numbers


def read_as_images(array: Array) -> list[ImageBatch]:
    """Return the layouts in which an array can be read as images, the likeliest first.

    Args:
        array: A numeric array of any shape, range and dtype.

    Returns:
        One `ImageBatch` per possible layout; an empty list if the array cannot be images.
    """
    readings: list[ImageBatch] = []
    shape = array.shape
    if array.ndim == 5:
        folded = array.reshape(-1, *shape[2:])
        readings += [
            ImageBatch(f"N{each.layout}".replace("NN", "NT"), each.images, True) for each in read_as_images(folded)
        ]
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
                details = {"layout": (a.layout, b.layout), "shape": (was.shape, now.shape)}
                yield [Step("layout", f"laid out as {b.layout}, not {a.layout}", details)], a, b


def find_reshape(was: Array, now: Array) -> Step | None:
    """Find a change of the shape that keeps the values in the same order."""
    if was.shape == now.shape or was.size != now.size or not np.array_equal(was.ravel(), now.ravel()):
        return None
    if [n for n in was.shape if n != 1] == [n for n in now.shape if n != 1]:
        words = f"given in shape {now.shape}, not {was.shape} (an axis of size 1 was added or removed)"
    else:
        words = f"reshaped to {now.shape} from {was.shape} with the values in the same order"
    return Step("shape", words, {"shape": (was.shape, now.shape)})


def try_channel_changes(a: Array, b: Array) -> Iterator[tuple[list[Step], Callable[[Array], Array]]]:
    """Yield the possible changes of the channels, each with the function that applies it to images.

    Args:
        a: The locked images: shape (samples, channels, rows, columns), any range and dtype.
        b: The current images: shape (samples, channels, rows, columns).

    Yields:
        The steps (none at first) and the function. A reordering has its order in the step's details.
    """
    old, new = a.shape[1], b.shape[1]
    if old == new:
        yield [], lambda x: x
    if old == new and old in (3, 4):
        orders = list(permutations(range(3)))[1:] if old == 3 else [(2, 1, 0, 3), (3, 0, 1, 2), (1, 2, 3, 0)]
        for order in orders:
            swap = "red and blue swapped: BGR instead of RGB or the reverse"
            how = swap if order == (2, 1, 0) else f"{order} instead of {tuple(range(old))}"
            step = Step("channels", f"given with the channels in another order ({how})", {"channels": order})
            yield [step], lambda x, order=order: x[:, list(order)]  # type: ignore[misc]
    if (old, new) == (4, 3):
        yield [Step("channels", "given without the alpha channel")], lambda x: x[:, :3]
    if (old, new) == (3, 4) and np.ptp(b[:, 3]) == 0:
        words = f"given with a fourth channel (alpha, {b[0, 3, 0, 0]:.4g} everywhere)"
        yield [Step("channels", words)], lambda x: np.insert(x, 3, b[0, 3, 0, 0], axis=1)
    if (old, new) == (1, 3):
        yield [Step("channels", "given with three equal channels instead of one")], lambda x: np.repeat(x, 3, axis=1)
    if (old, new) == (3, 1):
        gray = np.array([0.299, 0.587, 0.114])[:, None, None]
        words = "converted to grayscale, with one channel instead of three"
        yield [Step("grey", words)], lambda x: (x * gray).sum(1, keepdims=True)
        yield [Step("channels", "given with one channel instead of three")], lambda x: x[:, :1]
