"""Moves of images: flips and rotations, shifts, channels.

All images have shape (samples, channels, rows, columns), any range and dtype. Each function yields the moves that are
worth trying: the step, the locked images after them, and the current images that these are compared with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import permutations

import numpy as np

from pytest_evalmode.lock.causes.cause import Array, Step
from pytest_evalmode.lock.causes.images import codings

Move = tuple[Step, Array, Array]
Moves = Callable[[Array, Array], Iterator[Move]]

_MIN_OVERLAP = 0.4  # share of an image
_MAX_IMAGES = 4  # with which a shift is searched for
_MAX_OFFSETS = 4
_MIN_CHANGES = 0.1  # share of pixels that differ from the next; fewer prove nothing

# The words, whether rows and columns are swapped, and the axes that are reversed afterwards.
_TURNS: tuple[tuple[str, str, bool, tuple[int, ...]], ...] = (
    ("flip", "flipped left to right", False, (3,)),
    ("flip", "flipped upside down", False, (2,)),
    ("rotation", "rotated by 180 degrees", False, (2, 3)),
    ("rotation", "rotated by 90 degrees to the left", True, (2,)),
    ("rotation", "rotated by 90 degrees to the right", True, (3,)),
    ("rotation", "transposed (rows and columns swapped)", True, ()),
)


def try_turns(a: Array, b: Array, *, is_cropped: bool) -> Iterator[Move]:
    """Yield flips and rotations; with `is_cropped`, centers that are not square are compared where both are known."""
    for kind, words, swapped, axes in _TURNS:
        turned = np.flip(a.swapaxes(2, 3) if swapped else a, axes)
        size = np.minimum(turned.shape[2:], b.shape[2:]) if is_cropped else None
        yield Step(kind, words), _center(turned, size), _center(b, size)


def _center(x: Array, size: Array | None) -> Array:
    if size is None:
        return x
    top, left = (np.array(x.shape[2:]) - size) // 2
    return x[:, :, top : top + size[0], left : left + size[1]]


def try_channels(a: Array, b: Array) -> Iterator[Move]:
    """Yield other orders of the colors, swapped before normalization or after it."""
    if a.shape[1] == b.shape[1] == 3:
        coding = next((each for each in codings.codings_of(a) if np.ptp(each.scale) or np.ptp(each.shift)), None)
        for order in list(permutations(range(3)))[1:]:
            swap = "red and blue swapped: BGR instead of RGB or the reverse"
            how = swap if order == (2, 1, 0) else f"{order} instead of (0, 1, 2)"
            step = Step("channels", f"given with the channels in another order ({how})")
            yield step, a[:, order], b
            if coding is not None:
                yield step, coding.from_levels(coding.to_levels(a)[:, order]).astype(a.dtype), b


def try_shifts(a: Array, b: Array, *, is_cropped: bool) -> Iterator[Move]:
    """Yield shifts by whole pixels; edges may be filled with one value per channel.

    With `is_cropped`, these are only the centers of images, so what a shift brings in is not known.
    """
    for dy, dx in _likely_offsets(a, b) if a.shape == b.shape else ():
        step = Step("shift", f"shifted by {_pixels(-dy, 'down', 'up')} and {_pixels(-dx, 'right', 'left')}")
        rows, columns = np.arange(a.shape[2]) + dy, np.arange(a.shape[3]) + dx
        inside = np.outer((rows >= 0) & (rows < len(rows)), (columns >= 0) & (columns < len(columns)))
        overlap = b[:, :, inside.any(1)][..., inside.any(0)]
        moved = a[:, :, rows[inside.any(1)]][..., columns[inside.any(0)]]
        edge = b[:, :, ~inside]
        if not _is_varied(overlap):
            continue
        if is_cropped:
            yield step, moved, overlap
        elif np.all(edge == edge[:1, :, :1]):
            for fill in (edge[:1, :, :1], 0):
                filled = np.empty(b.shape, a.dtype)
                filled[:, :, ~inside], filled[:, :, inside] = fill, moved.reshape(*a.shape[:2], -1)
                yield step, filled, b


def _pixels(n: int, positive: str, negative: str) -> str:
    return f"{abs(n)} px {positive if n >= 0 else negative}"


def _is_varied(part: Array) -> bool:
    columns, rows = part[..., 1:] != part[..., :-1], part[:, :, 1:] != part[:, :, :-1]
    return bool(min(part.shape) > 0 and min(each.mean((1, 2, 3)).min() for each in (columns, rows)) > _MIN_CHANGES)


def _likely_offsets(a: Array, b: Array) -> list[tuple[int, int]]:
    """Return a few offsets of the current images in the locked ones, by phase correlation."""
    x, y = (np.asarray(each[:_MAX_IMAGES], float).mean(1) for each in (a, b))
    size = (2 * x.shape[1], 2 * x.shape[2])
    spectrum = np.fft.rfft2(x - x.mean(), size) * np.conj(np.fft.rfft2(y - y.mean(), size))
    correlation = np.fft.fftshift(np.abs(np.fft.irfft2((spectrum / (np.abs(spectrum) + 1e-12)).sum(0), size)))
    rows, columns = np.indices(size) - np.reshape(x.shape[1:], (2, 1, 1))
    overlap = (x.shape[1] - np.abs(rows)) * (x.shape[2] - np.abs(columns))
    correlation[(overlap < _MIN_OVERLAP * x[0].size) | ((rows == 0) & (columns == 0))] = 0
    best = np.argsort(-correlation, axis=None)[:_MAX_OFFSETS]
    return [(int(rows.flat[at]), int(columns.flat[at])) for at in best]
