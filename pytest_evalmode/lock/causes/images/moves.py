"""Moves of images: the order of samples, flips and rotations, shifts, crops and padding, channels.

All images have shape (samples, channels, rows, columns), any range and dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import permutations
from typing import Any

import numpy as np

from pytest_evalmode.lock.causes.cause import Array, Step
from pytest_evalmode.lock.causes.images import codings
from pytest_evalmode.lock.causes.order import order_steps
from pytest_evalmode.lock.causes.search import Move

_SURE = 0.8  # correlation from which an image is found among others
_MIN_OVERLAP = 0.4  # share of the smaller image
_LIKELY = 0.7  # correlation of overlapping parts
_MAX_IMAGES = 4  # with which a shift is searched for
_MIN_CHANGES = 0.1  # share of pixels that differ from the next; fewer prove nothing
_GRAY = np.array([0.299, 0.587, 0.114])[:, None, None]

# The words, whether rows and columns are swapped, and the axes that are reversed afterwards.
_TURNS: tuple[tuple[str, str, bool, tuple[int, ...]], ...] = (
    ("flip", "flipped left to right", False, (3,)),
    ("flip", "flipped upside down", False, (2,)),
    ("rotation", "rotated by 180 degrees", False, (2, 3)),
    ("rotation", "rotated by 90 degrees to the left", True, (2,)),
    ("rotation", "rotated by 90 degrees to the right", True, (3,)),
    ("rotation", "transposed (rows and columns swapped)", True, ()),
)


def try_orders(a: Array, b: Array) -> Iterator[Move]:
    """Find each current image among the locked ones, regardless of brightness, contrast and channel order."""
    if a.shape[2:] == b.shape[2:] and max(len(a), len(b)) > 1:
        correlation = _standardized(b) @ _standardized(a).T
        index = correlation.argmax(1).tolist()
        if correlation.max(1).min() > _SURE and index != list(range(len(a))):
            yield Move(tuple(order_steps(len(a), index)), partial(np.take, indices=index, axis=0))


def _standardized(images: Array) -> Array:
    flat = np.asarray(images, float).mean(1).reshape(len(images), -1)
    flat = flat - flat.mean(1, keepdims=True)
    return np.asarray(flat / (np.linalg.norm(flat, axis=1, keepdims=True) + 1e-12))


def try_turns(a: Array, b: Array) -> Iterator[Move]:
    for kind, words, swapped, axes in _TURNS:
        yield Move((Step(kind, words),), partial(_turn, swapped=swapped, axes=axes))


def _turn(x: Array, swapped: bool, axes: tuple[int, ...]) -> Array:
    return np.flip(x.swapaxes(2, 3) if swapped else x, axes)


def try_channels(a: Array, b: Array) -> Iterator[Move]:
    """Yield changes of the channels; swapped channels before normalization, or after it."""
    old, new = a.shape[1], b.shape[1]
    if old == new and old in (3, 4):
        orders = list(permutations(range(3)))[1:] if old == 3 else [(2, 1, 0, 3), (3, 0, 1, 2), (1, 2, 3, 0)]
        coding = next((each for each in codings.codings_of(a) if np.ptp(each.scale) or np.ptp(each.shift)), None)
        for order in orders:
            swap = "red and blue swapped: BGR instead of RGB or the reverse"
            how = swap if order == (2, 1, 0) else f"{order} instead of {tuple(range(old))}"
            step = Step("channels", f"given with the channels in another order ({how})", {"channels": order})
            yield Move((step,), partial(np.take, indices=order, axis=1))
            if coding is not None:
                yield Move((step,), _swap_pixels(order, coding))
    if (old, new) == (4, 3):
        yield Move((Step("channels", "given without the alpha channel"),), lambda x: x[:, :3])
    if (old, new) == (3, 4) and np.ptp(b[:, 3]) == 0:
        alpha = b[0, 3, 0, 0]
        step = Step("channels", f"given with a fourth channel (alpha, {alpha:.4g} everywhere)")
        yield Move((step,), lambda x: np.insert(x, 3, alpha, axis=1))
    if (old, new) == (1, 3):
        step = Step("channels", "given with three equal channels instead of one")
        yield Move((step,), lambda x: np.repeat(x, 3, axis=1))
    if (old, new) == (3, 1):
        step = Step("grey", "converted to grayscale, with one channel instead of three")
        yield Move((step,), lambda x: (x * _GRAY).sum(1, keepdims=True))


def _swap_pixels(order: tuple[int, ...], coding: codings.Coding) -> Callable[[Array], Array]:
    def swap(x: Array) -> Array:
        if x.dtype.kind == "i":  # places
            return x[:, list(order)]
        return coding.from_levels(coding.to_levels(x)[:, list(order)]).astype(x.dtype)

    return swap


def try_places(a: Array, b: Array, *, is_cropped: bool = False) -> Iterator[Move]:
    """Yield shifts, crops and padding by whole pixels, with what fills the edges.

    Args:
        a: The locked images.
        b: The current images; rows and columns may differ.
        is_cropped: Whether these are only the centers of images; what a shift brings in is then not known.
    """
    if len(a) != len(b) or a.shape[1] != b.shape[1]:
        return
    for dy, dx in _likely_offsets(a, b):
        step = _describe_place(a.shape[2:], b.shape[2:], dy, dx)
        rows, columns = np.arange(b.shape[2]) + dy, np.arange(b.shape[3]) + dx
        inside = [(at >= 0) & (at < size) for at, size in ((rows, a.shape[2]), (columns, a.shape[3]))]
        if not _is_varied(b[:, :, inside[0]][..., inside[1]]):
            continue
        is_known = inside[0][:, None] & inside[1]
        if is_known.all() or is_cropped:
            old, new = np.ix_(rows[inside[0]], columns[inside[1]]), np.ix_(*map(np.flatnonzero, inside))
            yield Move((step,), partial(_take, at=old), partial(_take, at=new))
            continue
        for fill in _fills(a, b, is_known):
            yield Move((step,), partial(_place, rows=rows, columns=columns, fill=fill))


def _fills(a: Array, b: Array, is_known: Array) -> Iterator[Array | str]:
    """Yield what may fill the edges: one value per channel (that of now, 0, or the darkest), or other pixels."""
    edge = b[:, :, ~is_known]
    constant = edge[:1, :, :1]
    if np.all(edge == constant):
        yield from (np.reshape(each, (1, -1, 1, 1)) for each in (constant, 0 * constant, a.min((0, 2, 3))))
    yield from ("wrap", "edge", "reflect")


def _take(x: Array, at: Any) -> Array:
    return np.asarray(x[(..., *at)])


def _place(x: Array, rows: Array, columns: Array, fill: Array | str) -> Array:
    height, width = x.shape[2:]
    if isinstance(fill, str):
        at = (_reflected(each, size, fill) for each, size in ((rows, height), (columns, width)))
        return _take(x, np.ix_(*at))
    out = np.broadcast_to(fill, (*x.shape[:2], len(rows), len(columns))).astype(x.dtype)
    inside = [np.flatnonzero((at >= 0) & (at < size)) for at, size in ((rows, height), (columns, width))]
    target: Any = np.ix_(*inside)
    out[(..., *target)] = _take(x, np.ix_(rows[inside[0]], columns[inside[1]]))
    return out


def _reflected(at: Array, size: int, fill: str) -> Array:
    if fill == "wrap":
        return at % size
    return np.clip(at if fill == "edge" else size - 1 - np.abs(size - 1 - np.abs(at)), 0, size - 1)


def _describe_place(old: tuple[int, ...], new: tuple[int, ...], dy: int, dx: int) -> Step:
    (height, width), (rows, columns) = old, new
    details = {"offset": (dy, dx), "size": (old, new)}
    if old == new:
        return Step("shift", f"shifted by {_pixels(-dy, 'down', 'up')} and {_pixels(-dx, 'right', 'left')}", details)
    if 0 <= dy <= height - rows and 0 <= dx <= width - columns:
        return Step("crop", f"cropped to {rows}x{columns} from {height}x{width}, at row {dy}, column {dx}", details)
    if dy <= 0 and dx <= 0 and rows - height >= -dy and columns - width >= -dx:
        return Step("padding", f"padded to {rows}x{columns} from {height}x{width}", details)
    return Step("crop", f"cropped to {rows}x{columns} from {height}x{width}, partly outside the image", details)


def _pixels(n: int, positive: str, negative: str) -> str:
    return f"{abs(n)} px {positive if n >= 0 else negative}"


def _is_varied(part: Array) -> bool:
    columns, rows = part[..., 1:] != part[..., :-1], part[:, :, 1:] != part[:, :, :-1]
    return bool(min(part.shape) > 0 and min(each.mean((1, 2, 3)).min() for each in (columns, rows)) > _MIN_CHANGES)


def _likely_offsets(a: Array, b: Array) -> list[tuple[int, int]]:
    """Return up to three offsets of the current images in the locked ones: where the overlapping parts correlate.

    The sums over all overlapping parts at once are products of Fourier transforms.
    """
    x, y = (np.asarray(each[:_MAX_IMAGES], float).mean(1) for each in (a, b))
    x, y = x - x.mean(), y - y.mean()
    size = tuple(m + n for m, n in zip(x.shape[1:], y.shape[1:], strict=True))
    old = [np.fft.rfft2(each, size) for each in (np.ones_like(x), x, x * x)]
    new = [np.conj(np.fft.rfft2(each, size)) for each in (np.ones_like(y), y, y * y)]

    def total(i: int, j: int) -> Array:
        return np.asarray(np.fft.irfft2((old[i] * new[j]).sum(0), size))

    n = np.maximum(np.round(total(0, 0)), 1)
    variances = (total(2, 0) - total(1, 0) ** 2 / n) * (total(0, 2) - total(0, 1) ** 2 / n)
    correlation = np.abs(total(1, 1) - total(1, 0) * total(0, 1) / n) / np.sqrt(np.maximum(variances, 1e-12))
    smaller = len(x) * min(x[0].size, y[0].size)
    is_valid = (n >= max(_MIN_OVERLAP * smaller, 9 * len(x))) & (variances > 1e-9 * np.abs(variances).max())
    correlation = np.where(is_valid, correlation, 0)
    best = np.argsort(-np.round(correlation, 6), axis=None, kind="stable")[:3]
    found = [divmod(int(at), size[1]) for at in best if correlation.flat[at] > _LIKELY]
    offsets = [(i - size[0] * (i >= x.shape[1]), j - size[1] * (j >= x.shape[2])) for i, j in found]
    return [each for each in offsets if each != (0, 0) or a.shape != b.shape]
