"""Which axis is which: images as (samples, channels, rows, columns), however they are given."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import permutations
from typing import NamedTuple

import numpy as np

from pytest_evalmode.lock.inputs.diagnosis import Array, Step

_CHANNELS = (1, 3, 4)
_SIDE = 4  # an image has at least so many rows and columns


class ImageBatch(NamedTuple):
    """An array read as images in one layout."""

    layout: str
    images: Array  # samples, channels, rows, columns
    is_certain: bool  # an axis of channels was found


def read_as_images(array: Array) -> list[ImageBatch]:
    """The array as images, the likeliest reading first; none if it holds no images."""
    found: list[ImageBatch] = []
    shape = array.shape
    if array.ndim == 5:
        folded = array.reshape(-1, *shape[2:])
        found += [
            ImageBatch(f"N{each.layout}".replace("NN", "NT"), each.images, True) for each in read_as_images(folded)
        ]
    if array.ndim == 4:
        if min(shape[2:]) >= _SIDE and (shape[1] in _CHANNELS or shape[3] not in _CHANNELS):
            found.append(ImageBatch("NCHW", array, shape[1] in _CHANNELS))
        if min(shape[1:3]) >= _SIDE and shape[3] in _CHANNELS:
            found.append(ImageBatch("NHWC", array.transpose(0, 3, 1, 2), True))
    if array.ndim == 3:
        if min(shape[1:]) >= _SIDE and shape[0] == 3:
            found.append(ImageBatch("CHW", array[None], True))
        if min(shape[:2]) >= _SIDE and shape[2] in _CHANNELS:
            found.append(ImageBatch("HWC", array.transpose(2, 0, 1)[None], True))
        if min(shape[1:]) >= _SIDE:
            found.append(ImageBatch("NHW", array[:, None], False))
    if array.ndim == 2 and array.dtype == np.uint8 and min(shape) >= 2 * _SIDE:
        found.append(ImageBatch("HW", array[None, None], True))
    return found


def pair_layouts(was: Array, now: Array) -> Iterator[tuple[list[Step], ImageBatch, ImageBatch]]:
    """Both as images: as they are read alike, then as they are read otherwise."""
    old, new = read_as_images(was), read_as_images(now)
    for a in old:
        yield from (([], a, b) for b in new if b.layout == a.layout)
    for a in old:
        for b in new:
            if b.layout != a.layout:
                details = {"layout": (a.layout, b.layout), "shape": (was.shape, now.shape)}
                yield [Step("layout", f"laid out as {b.layout}, not {a.layout}", details)], a, b


def find_reshape(was: Array, now: Array) -> Step | None:
    """The values in the very same order under another shape."""
    if was.shape == now.shape or was.size != now.size or not np.array_equal(was.ravel(), now.ravel()):
        return None
    if [n for n in was.shape if n != 1] == [n for n in now.shape if n != 1]:
        words = f"given in shape {now.shape}, not {was.shape}: an axis of size 1 came or went"
    else:
        words = f"reshaped to {now.shape} from {was.shape}, the values in the same order"
    return Step("shape", words, {"shape": (was.shape, now.shape)})


def try_channel_changes(a: Array, b: Array) -> Iterator[tuple[list[Step], Array]]:
    """What may have become of the channels, with `a` as it would be then; a swap tells its order in its details."""
    old, new = a.shape[1], b.shape[1]
    if old == new:
        yield [], a
    if old == new == 3:
        for order in list(permutations(range(3)))[1:]:
            name = (
                "red and blue swapped: BGR for RGB, or the reverse" if order == (2, 1, 0) else f"{order} for (0, 1, 2)"
            )
            yield (
                [Step("channels", f"given with their channels in another order ({name})", {"channels": order})],
                a[:, list(order)],
            )
    if old == new == 4:
        for order in ((2, 1, 0, 3), (3, 0, 1, 2), (1, 2, 3, 0)):
            words = f"given with their channels in another order ({order} for (0, 1, 2, 3))"
            yield [Step("channels", words, {"channels": order})], a[:, list(order)]
    if (old, new) == (4, 3):
        yield [Step("channels", "given without their alpha channel")], a[:, :3]
    if (old, new) == (3, 4):
        yield [Step("channels", "given with a fourth channel (alpha)")], np.concatenate([a, b[:, 3:]], axis=1)
    if old == 1 and new == 3:
        yield [Step("channels", "given in three equal channels, not one")], np.repeat(a, 3, axis=1)
