"""Changes of geometry by whole pixels: flips, rotations, shifts, crops and padding."""

from __future__ import annotations

from collections.abc import Iterator

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
_MIN_OVERLAP = 0.4  # share of the smaller image


def try_turns(a: Array) -> Iterator[tuple[list[Step], Array]]:
    """Yield images unchanged, then in each of the seven other flips and rotations.

    Args:
        a: Images of shape (samples, channels, rows, columns), any range and dtype.

    Yields:
        The steps (none at first) and a view of `a`, in which rows and columns may be swapped.
    """
    yield [], a
    for words, swapped, reverse in _TURNS:
        image = a.swapaxes(2, 3) if swapped else a
        yield [Step("flip" if words.startswith("flipped") else "rotation", words)], np.flip(image, reverse)


def try_shifts(a: Array, b: Array) -> Iterator[tuple[list[Step], Array, Array]]:
    """Yield the common part of both images: first unshifted, then with the shifts that match best.

    Args:
        a: The locked images: shape (samples, channels, rows, columns), any range and dtype.
        b: The current images, likewise; rows and columns may differ.

    Yields:
        The steps (none for unshifted images), and views of `a` and `b` of the same rows and columns.
    """
    same = a.shape[2:] == b.shape[2:]
    if same:
        yield [], a, b
    for dy, dx in _offsets(a, b):
        parts = overlap(a, b, dy, dx)
        if parts is not None and not (same and dy == dx == 0):
            yield [_step(a, b, dy, dx)], *parts


def _step(a: Array, b: Array, dy: int, dx: int) -> Step:
    (height, width), (rows, columns) = a.shape[2:], b.shape[2:]
    details = {"offset": (dy, dx), "size": ((height, width), (rows, columns))}
    if (height, width) == (rows, columns):
        return Step(
            "shift", f"shifted by {format_pixels(-dy, 'down', 'up')} and {format_pixels(-dx, 'right', 'left')}", details
        )
    if 0 <= dy <= height - rows and 0 <= dx <= width - columns:
        words = f"cropped to {rows}x{columns} from {height}x{width}, at row {dy}, column {dx}"
        return Step("crop", words, details)
    if dy <= 0 and dx <= 0 and rows - height >= -dy and columns - width >= -dx:
        return Step("padding", f"padded to {rows}x{columns} from {height}x{width}", details)
    return Step("crop", f"cropped to {rows}x{columns} from {height}x{width}, partly outside the image", details)


def format_pixels(n: int, positive: str, negative: str) -> str:
    return f"{abs(n)} px {positive if n >= 0 else negative}"


def overlap(a: Array, b: Array, dy: int, dx: int) -> tuple[Array, Array] | None:
    """Return the parts of two images that coincide if the origin of `b` is at (dy, dx) of `a`.

    Args:
        a: Images of shape (samples, channels, rows, columns), any range and dtype.
        b: Images of shape (samples, channels, rows, columns); rows and columns may differ.
        dy: Rows from the origin of `a` to that of `b`, possibly negative.
        dx: Columns from the origin of `a` to that of `b`, possibly negative.

    Returns:
        Views of `a` and `b` of the same rows and columns, or None if they overlap too little.
    """
    top, left = max(dy, 0), max(dx, 0)
    bottom, right = min(a.shape[2], dy + b.shape[2]), min(a.shape[3], dx + b.shape[3])
    smaller = min(a.shape[2] * a.shape[3], b.shape[2] * b.shape[3])
    if bottom - top < 3 or right - left < 3 or (bottom - top) * (right - left) < _MIN_OVERLAP * smaller:
        return None
    return a[:, :, top:bottom, left:right], b[:, :, top - dy : bottom - dy, left - dx : right - dx]


def _offsets(a: Array, b: Array) -> list[tuple[int, int]]:
    """Return the three most likely offsets of `b` in `a`, by phase correlation if the images are large."""
    if a.shape[0] != b.shape[0]:
        return []
    if max(*a.shape[2:], *b.shape[2:]) <= _SMALL:
        return _try_all_offsets(a, b)
    old, new = (np.asarray(each, float).mean(1) for each in (a, b))
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


def _try_all_offsets(a: Array, b: Array) -> list[tuple[int, int]]:
    """Return the three offsets at which small images match best, after trying all."""
    old, new = (np.asarray(each, float).mean(1, keepdims=True) for each in (a, b))
    scores: list[tuple[float, int, tuple[int, int]]] = []
    for dy in range(-b.shape[2] + 3, a.shape[2] - 2):
        for dx in range(-b.shape[3] + 3, a.shape[3] - 2):
            parts = overlap(old, new, dy, dx)
            if parts is not None:
                scores.append((_correlation(*parts), -abs(dy) - abs(dx), (dy, dx)))
    return [offset for _, _, offset in sorted(scores, reverse=True)[:3]]


def _correlation(a: Array, b: Array) -> float:
    a, b = a - a.mean(), b - b.mean()
    return float((a * b).sum() / (np.sqrt((a**2).sum() * (b**2).sum()) + 1e-12))
