"""Images that were flipped, rotated, shifted or cropped by whole pixels."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from pytest_evalmode.lock.inputs.diagnosis import Array, Step

# What a square can do: rows and columns exchanged first, then the axes that are reversed.
_TURNS: tuple[tuple[str, bool, tuple[int, ...]], ...] = (
    ("flipped left to right", False, (3,)),
    ("flipped upside down", False, (2,)),
    ("rotated by 180 degrees", False, (2, 3)),
    ("rotated by 90 degrees to the left", True, (2,)),
    ("rotated by 90 degrees to the right", True, (3,)),
    ("transposed (rows for columns)", True, ()),
    ("transposed along the other diagonal", True, (2, 3)),
)
_SMALL = 32  # up to this side every shift is tried
_OVERLAP = 0.4  # of the smaller image has to be in both


def try_turns(a: Array) -> Iterator[tuple[list[Step], Array]]:
    """The images as they are, and in each of the other seven positions."""
    yield [], a
    for words, exchanged, reverse in _TURNS:
        image = a.swapaxes(2, 3) if exchanged else a
        yield [Step("flip" if words.startswith("flipped") else "rotation", words)], np.flip(image, reverse)


def try_shifts(a: Array, b: Array) -> Iterator[tuple[list[Step], Array, Array]]:
    """Both cut to what they may share, shifted by nothing, then as they match best."""
    same = a.shape[2:] == b.shape[2:]
    if same:
        yield [], a, b
    for dy, dx in _offsets(a, b):
        cut = overlap(a, b, dy, dx)
        if cut is not None and not (same and dy == dx == 0):
            yield [_step(a, b, dy, dx)], *cut


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
    return Step("crop", f"cut to {rows}x{columns} elsewhere, {height}x{width} before", details)


def format_pixels(n: int, forth: str, back: str) -> str:
    return f"{abs(n)} px {forth if n >= 0 else back}"


def overlap(a: Array, b: Array, dy: int, dx: int) -> tuple[Array, Array] | None:
    """The parts that coincide if b's origin lies at (dy, dx) of a."""
    top, left = max(dy, 0), max(dx, 0)
    bottom, right = min(a.shape[2], dy + b.shape[2]), min(a.shape[3], dx + b.shape[3])
    smaller = min(a.shape[2] * a.shape[3], b.shape[2] * b.shape[3])
    if bottom - top < 3 or right - left < 3 or (bottom - top) * (right - left) < _OVERLAP * smaller:
        return None
    return a[:, :, top:bottom, left:right], b[:, :, top - dy : bottom - dy, left - dx : right - dx]


def _offsets(a: Array, b: Array) -> list[tuple[int, int]]:
    """Where b may lie in a: every offset of small images, the peaks of the phase correlation of large ones."""
    if a.shape[0] != b.shape[0]:
        return []
    if max(*a.shape[2:], *b.shape[2:]) <= _SMALL:
        return _every_offset(a, b)
    old, new = (np.asarray(each, float).mean(1) for each in (a, b))
    size = tuple(int(m + n) for m, n in zip(old.shape[1:], new.shape[1:], strict=True))
    product = np.fft.rfft2(_edges(old), size) * np.conj(np.fft.rfft2(_edges(new), size))
    peaks = np.fft.irfft2(product / (np.abs(product) + 1e-12), size).sum(0)
    best = np.argsort(peaks.ravel())[::-1][:3]
    found = [divmod(int(each), size[1]) for each in best]
    return [(y - size[0] * (y >= old.shape[1]), x - size[1] * (x >= old.shape[2])) for y, x in found]


def _edges(images: Array) -> Array:
    """Differences to the right and down: borders and brightness weigh less."""
    out = np.zeros_like(images)
    out[:, :-1, :-1] = (images[:, 1:, :-1] - images[:, :-1, :-1]) + (images[:, :-1, 1:] - images[:, :-1, :-1])
    return out


def _every_offset(a: Array, b: Array) -> list[tuple[int, int]]:
    """The three offsets at which small images match best."""
    old, new = (np.asarray(each, float).mean(1, keepdims=True) for each in (a, b))
    scores: list[tuple[float, int, tuple[int, int]]] = []
    for dy in range(-b.shape[2] + 3, a.shape[2] - 2):
        for dx in range(-b.shape[3] + 3, a.shape[3] - 2):
            cut = overlap(old, new, dy, dx)
            if cut is not None:
                scores.append((_alike(*cut), -abs(dy) - abs(dx), (dy, dx)))
    return [offset for _, _, offset in sorted(scores, reverse=True)[:3]]


def _alike(a: Array, b: Array) -> float:
    a, b = a - a.mean(), b - b.mean()
    return float((a * b).sum() / (np.sqrt((a**2).sum() * (b**2).sum()) + 1e-12))
