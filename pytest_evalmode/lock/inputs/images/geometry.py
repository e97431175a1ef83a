"""Changes of geometry by whole pixels: flips, rotations, shifts, crops and padding."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from pytest_evalmode.lock.inputs.diagnosis import Array, Step

# The words, whether rows and columns are swapped, and the axes that are reversed afterwards.
_TURNS: tuple[tuple[str, bool, tuple[int, ...]], ...] = (
    ("flipped left to right", False, (3,)),
    ("flipped upside down", False, (2,)),
    ("rotated by 180 degrees", False, (2, 3)),
    ("rotated by 90 degrees to the left", True, (2,)),
    ("rotated by 90 degrees to the right", True, (3,)),
    ("transposed (rows and columns swapped)", True, ()),
    ("transposed along the other diagonal", True, (2, 3)),
)
_SMALL = 32  # up to this side length, every shift is tried
_MAX_IMAGES = 4  # to find a shift
_MIN_OVERLAP = 0.4  # share of the smaller image


class Placement(NamedTuple):
    """A shift, crop or padding: which parts of two images coincide."""

    steps: list[Step]
    old: tuple[slice, ...]  # index of the part of the locked images
    new: tuple[slice, ...]  # index of the same part of the current images


def try_turns(a: Array) -> Iterator[tuple[list[Step], Callable[[Array], Array]]]:
    """Yield functions that leave images unchanged, then that flip and rotate them, each with its step."""
    yield [], lambda x: x
    for words, swapped, reverse in _TURNS:
        kind = "flip" if words.startswith("flipped") else "rotation"

        def turn(x: Array, swapped: bool = swapped, reverse: tuple[int, ...] = reverse) -> Array:
            return np.flip(x.swapaxes(2, 3) if swapped else x, reverse)

        yield [Step(kind, words)], turn


def try_placements(a: Array, b: Array) -> Iterator[Placement]:
    """Yield the common part of both images: first unshifted, then with the shifts that match best.

    Args:
        a: The locked images: shape (samples, channels, rows, columns), any range and dtype.
        b: The current images, likewise; rows and columns may differ.
    """
    whole = (slice(None),) * 4
    same = a.shape[2:] == b.shape[2:]
    if same:
        yield Placement([], whole, whole)
    for dy, dx in _offsets(a, b):
        parts = overlap(a, b, dy, dx)
        if parts is not None and not (same and dy == dx == 0):
            yield Placement([_step(a, b, dy, dx)], *parts)


def _step(a: Array, b: Array, dy: int, dx: int) -> Step:
    (height, width), (rows, columns) = a.shape[2:], b.shape[2:]
    details = {"offset": (dy, dx), "size": ((height, width), (rows, columns))}
    if (height, width) == (rows, columns):
        return Step("shift", f"shifted by {_pixels(-dy, 'down', 'up')} and {_pixels(-dx, 'right', 'left')}", details)
    if 0 <= dy <= height - rows and 0 <= dx <= width - columns:
        return Step("crop", f"cropped to {rows}x{columns} from {height}x{width}, at row {dy}, column {dx}", details)
    if dy <= 0 and dx <= 0 and rows - height >= -dy and columns - width >= -dx:
        return Step("padding", f"padded to {rows}x{columns} from {height}x{width}", details)
    return Step("crop", f"cropped to {rows}x{columns} from {height}x{width}, partly outside the image", details)


def _pixels(n: int, positive: str, negative: str) -> str:
    return f"{abs(n)} px {positive if n >= 0 else negative}"


def overlap(a: Array, b: Array, dy: int, dx: int) -> tuple[tuple[slice, ...], tuple[slice, ...]] | None:
    """Return the indices of the parts of two images that coincide; None if they overlap too little.

    Args:
        a: Images of shape (samples, channels, rows, columns), any range and dtype.
        b: Images of shape (samples, channels, rows, columns); rows and columns may differ.
        dy: Rows from the origin of `a` to that of `b`, possibly negative.
        dx: Columns from the origin of `a` to that of `b`, possibly negative.
    """
    top, left = max(dy, 0), max(dx, 0)
    bottom, right = min(a.shape[2], dy + b.shape[2]), min(a.shape[3], dx + b.shape[3])
    smaller = min(a.shape[2] * a.shape[3], b.shape[2] * b.shape[3])
    if bottom - top < 3 or right - left < 3 or (bottom - top) * (right - left) < _MIN_OVERLAP * smaller:
        return None
    every = slice(None)
    old = (every, every, slice(top, bottom), slice(left, right))
    return old, (every, every, slice(top - dy, bottom - dy), slice(left - dx, right - dx))


def is_varied(part: Array) -> bool:
    """Return whether a part of images shows enough for a match to prove something: many pixels differ from the next."""
    steps = part[:, :, :, 1:] != part[:, :, :, :-1]
    rows = part[:, :, 1:] != part[:, :, :-1]
    return bool(steps.mean((1, 2, 3)).min() > 0.1 and rows.mean((1, 2, 3)).min() > 0.1)


def _offsets(a: Array, b: Array) -> list[tuple[int, int]]:
    """Return the three most likely offsets of `b` in `a`, by phase correlation if the images are large."""
    if a.shape[0] != b.shape[0]:
        return []
    old, new = (np.asarray(each[:_MAX_IMAGES], float).mean(1) for each in (a, b))
    if max(*a.shape[2:], *b.shape[2:]) <= _SMALL:
        return _try_all_offsets(old, new)
    size = tuple(int(m + n) for m, n in zip(old.shape[1:], new.shape[1:], strict=True))
    product = np.fft.rfft2(_edges(old), size) * np.conj(np.fft.rfft2(_edges(new), size))
    peaks = np.fft.irfft2(product / (np.abs(product) + 1e-12), size).sum(0)
    best = np.argsort(peaks.ravel())[::-1][:3]
    offsets = [divmod(int(peak), size[1]) for peak in best]
    return [(y - size[0] * (y >= old.shape[1]), x - size[1] * (x >= old.shape[2])) for y, x in offsets]


def _edges(images: Array) -> Array:
    """Return the differences to the next row and column, so that borders and brightness matter less."""
    out = np.zeros_like(images)
    out[:, :-1, :-1] = (images[:, 1:, :-1] - images[:, :-1, :-1]) + (images[:, :-1, 1:] - images[:, :-1, :-1])
    return out


def _try_all_offsets(old: Array, new: Array) -> list[tuple[int, int]]:
    """Return the three offsets at which small images (samples, rows, columns) match best, after trying all."""
    a, b = old[:, None], new[:, None]
    scores: list[tuple[float, int, tuple[int, int]]] = []
    for dy in range(-b.shape[2] + 3, a.shape[2] - 2):
        for dx in range(-b.shape[3] + 3, a.shape[3] - 2):
            parts = overlap(a, b, dy, dx)
            if parts is not None:
                x, y = a[parts[0]].ravel(), b[parts[1]].ravel()
                x, y = x - x.mean(), y - y.mean()
                norm = float(np.sqrt((x * x).sum() * (y * y).sum()))
                scores.append((-abs(float((x * y).sum())) / norm if norm else 0.0, abs(dy) + abs(dx), (dy, dx)))
    return [offset for _, _, offset in sorted(scores)[:3]]
