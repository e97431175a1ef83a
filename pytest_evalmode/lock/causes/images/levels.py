"""Causes that act on 8-bit levels: brightness, gamma, gray, JPEG.

All arrays have shape (samples, channels, rows, columns) and values in 0..255. A prediction is rounded to levels, and
may be one level off where other libraries round differently.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from pytest_evalmode.lock.causes.cause import Array, Cause, Step

try:
    from PIL import Image
except ImportError:  # without Pillow, compression is not recognized
    Image = None  # type: ignore[assignment]

_GRAYS = ((0.299, 0.587, 0.114), (0.2126, 0.7152, 0.0722), (1 / 3, 1 / 3, 1 / 3))
_SUBSAMPLINGS = {2: "4:2:0", 0: "4:4:4", 1: "4:2:2"}
_PART = 64  # pixels of one image on which qualities are tried
_MAX_LEFT = 0.3  # share of the squared difference that may be left in that part
_MIN_CHANGE = 0.25  # squared levels: less is not searched for a quality


def same_shape(a: Array, b: Array) -> list[None]:
    return [None] if a.shape == b.shape else []


def _to_gray(levels: Array, weights: tuple[float, ...]) -> Array:
    return np.repeat(np.einsum("nchw,c->nhw", levels, np.asarray(weights))[:, None], 3, axis=1)


def _grays(a: Array, b: Array) -> Iterator[tuple[float, ...]]:
    if a.shape == b.shape and a.shape[1] == 3 and np.array_equal(b, np.broadcast_to(b[:, :1], b.shape)):
        yield from _GRAYS


def _inner(a: Array, b: Array) -> tuple[Array, Array]:
    """Return the levels, before and now, that were neither clipped nor are too dark to show a factor; may be empty."""
    at = (a > 8) & (a < 247) & (b > 0) & (b < 255) if a.shape == b.shape else np.zeros(a.shape, bool)
    return (a[at], b[at]) if at.sum() > 16 else (a[:0].ravel(), a[:0].ravel())


def _factors(a: Array, b: Array) -> Iterator[float]:
    x, y = _inner(a, b)
    if x.size:
        scale = float((x * y).sum() / (x * x).sum())
        # The factor that was meant has few digits; rounding down lowers the fitted one.
        low = scale + 0.5 * float(x.sum() / (x * x).sum())
        yield from dict.fromkeys([round(scale, 2), round(low, 2), round(scale, 3), round(low, 3), scale, low])


def _lines(a: Array, b: Array) -> Iterator[tuple[float, float]]:
    x, y = _inner(a, b)
    if x.size and np.ptp(x):
        scale, shift = np.polyfit(x, y, 1)
        yield float(scale), float(shift)


def _gammas(a: Array, b: Array) -> Iterator[float]:
    x, y = _inner(a, b)
    if x.size:
        gamma = float(np.median(np.log(y / 255) / np.log(x / 255)))
        yield from dict.fromkeys([round(gamma, 1), round(gamma, 2), gamma, 1 / max(round(1 / gamma, 1), 0.1)])


def _describe_factor(_: Array, __: Array, factor: float) -> Step:
    word = "darkened" if factor < 1 else "brightened"
    return Step("brightness", f"{word}: levels multiplied by {factor:.4g}", {"factor": factor})


def _describe_line(_: Array, __: Array, p: tuple[float, float]) -> Step:
    words = f"changed in brightness and contrast: levels multiplied by {p[0]:.4g} and shifted by {p[1]:.4g}"
    return Step("brightness", words, {"factor": p[0], "shift": p[1]})


POINTWISE = (
    Cause(
        same_shape,
        lambda x, _: 16 + x * (219 / 255),
        lambda a, b, _: Step("range", "given in the limited video range (16..235)"),
        residual=1,
    ),
    Cause(
        same_shape,
        lambda x, _: (x - 16) * (255 / 219),
        lambda a, b, _: Step("range", "expanded from the limited video range (16..235) to 0..255"),
        residual=1,
    ),
    Cause(same_shape, lambda x, _: 255 - x, lambda a, b, _: Step("inverted", "inverted (dark and bright swapped)")),
    Cause(_grays, _to_gray, lambda a, b, _: Step("grey", "converted to grayscale"), residual=1),
    Cause(_factors, lambda x, f: x * f, _describe_factor, lambda _: 1, residual=1),
    Cause(
        _gammas,
        lambda x, g: 255 * (np.clip(x, 0, 255) / 255) ** g,
        lambda a, b, g: Step("curve", f"given with another gamma (raised to the power of {g:.3g})", {"gamma": g}),
        lambda _: 1,
        residual=1,
    ),
    Cause(_lines, lambda x, p: x * p[0] + p[1], _describe_line, lambda _: 2, residual=1),
)
UNROUNDED = tuple(replace(each, residual=0.0) for each in POINTWISE)


# Values between levels that were rounded to levels: parameters are the function and its words.


def _roundings(a: Array, b: Array) -> Iterator[tuple[Any, str]]:
    if a.shape == b.shape and float(np.mean(np.abs(a - np.round(a)) > 0.01)) >= 0.5:
        yield np.round, "rounded"
        yield np.floor, "rounded down"


ROUNDED = Cause(
    _roundings,
    lambda x, p: p[0](x + (1e-3 if p[0] is np.floor else 0)),
    lambda a, b, p: Step("rounding", f"{p[1]} to 8-bit levels (uint8)", {"rounded": "8-bit levels"}),
)


# Compression, made by Pillow: parameters are the quality, and the subsampling of the chroma as Pillow numbers it.


def compress(levels: Array, parameters: tuple[int, int]) -> Array:
    """Return images as they are after encoding as JPEG."""
    compressed = []
    for image in np.clip(np.round(levels), 0, 255).astype(np.uint8):
        file = io.BytesIO()
        picture = Image.fromarray(image[0] if len(image) == 1 else np.moveaxis(image, 0, -1))
        picture.save(file, "JPEG", quality=parameters[0], subsampling=parameters[1])
        pixels = np.asarray(Image.open(file), float)
        compressed.append(pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels, -1, 0))
    return np.stack(compressed)


def _most_changed(a: Array, b: Array) -> tuple[Array, Array] | None:
    """Return the corner of the image that changed most, to try qualities on; None if these are no changed pictures."""
    if Image is None or a.shape != b.shape or a.shape[1] not in (1, 3):
        return None
    changes = np.mean((a - b) ** 2, (1, 2, 3))
    most = slice(int(changes.argmax()), int(changes.argmax()) + 1)
    return (a[most, :, :_PART, :_PART], b[most, :, :_PART, :_PART]) if changes.mean() >= _MIN_CHANGE else None


def _left(x: Array, y: Array) -> float:
    """Return the mean squared difference, without the last pixels, which depend on pixels outside of the part."""
    return float(np.mean((x - y)[:, :, :-4, :-4] ** 2))


def _qualities(a: Array, b: Array) -> Iterator[tuple[int, int]]:
    """Propose the qualities that fit the luma of a part of one image best, with each subsampling of the chroma."""
    part = _most_changed(a, b)
    if part is None:
        return
    weights = np.array(_GRAYS[0] if a.shape[1] == 3 else (1.0,))[:, None, None]
    x, y = ((each * weights).sum(1, keepdims=True) for each in part)
    errors = {quality: _left(compress(x, (quality, 0)), y) for quality in [*range(10, 101, 5), 98]}
    for quality in sorted(errors, key=errors.__getitem__)[:3]:
        near = [each for each in range(quality - 4, quality + 5) if each <= 100 and each not in errors]
        errors |= {each: _left(compress(x, (each, 0)), y) for each in near}
    best = sorted(errors, key=errors.__getitem__)[:2]
    if errors[best[0]] <= _MAX_LEFT * max(_left(x, y), _MIN_CHANGE):
        for quality in best:
            yield from ((quality, subsampling) for subsampling in (_SUBSAMPLINGS if a.shape[1] == 3 else (0,)))


def _describe_jpeg(a: Array, b: Array, parameters: tuple[int, int]) -> Step:
    noise = 10 * np.log10(255**2 / float(np.mean((a - b) ** 2)))
    details: dict[str, object] = {"quality": parameters[0], "psnr": noise}
    details |= {"chroma": _SUBSAMPLINGS[parameters[1]]} if a.shape[1] == 3 else {}
    return Step("jpeg", f"re-encoded as JPEG (quality {parameters[0]}; PSNR {noise:.1f} dB)", details)


JPEG = Cause(_qualities, compress, _describe_jpeg, lambda _: 2, residual=1)
