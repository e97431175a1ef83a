"""Causes that act on 8-bit levels: brightness, gamma, gray, JPEG.

Both arrays have the same shape (samples, channels, rows, columns) and values in 0..255. A prediction is rounded to
levels, and may be one level off where other libraries round differently.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import numpy as np

from pytest_evalmode.lock.causes.cause import Array, Cause, Step

try:
    from PIL import Image
except ImportError:  # without Pillow, compression is not recognized
    Image = None  # type: ignore[assignment]

_GRAYS = ((0.299, 0.587, 0.114), (0.2126, 0.7152, 0.0722), (1 / 3, 1 / 3, 1 / 3))
_SUBSAMPLINGS = (2, 0, 1)  # of the chroma, as Pillow numbers them: 4:2:0, 4:4:4, 4:2:2
_PART = 64  # pixels of one image on which qualities are tried
_MAX_LEFT = 0.3  # share of the squared difference that may be left in that part
_MARGIN = 16  # pixels at the borders of a cropped image, which depend on pixels that are not stored
_MIN_CHANGE = 0.25  # squared levels: less is not searched for a quality


def _once(_: Array, __: Array) -> list[None]:
    return [None]


def _to_gray(levels: Array, weights: tuple[float, ...]) -> Array:
    return np.repeat(np.einsum("nchw,c->nhw", levels, np.asarray(weights))[:, None], 3, axis=1)


def _grays(a: Array, b: Array) -> Iterator[tuple[float, ...]]:
    if a.shape[1] == 3 and np.array_equal(b, np.broadcast_to(b[:, :1], b.shape)):
        yield from _GRAYS


def _inner(a: Array, b: Array) -> tuple[Array, Array]:
    """Return the levels, before and now, that were neither clipped nor are too dark to show a factor; may be empty."""
    at = (a > 8) & (a < 247) & (b > 0) & (b < 255)
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
    return Step("brightness", f"{word}: levels multiplied by {factor:.4g}")


def _describe_line(_: Array, __: Array, p: tuple[float, float]) -> Step:
    words = f"changed in brightness and contrast: levels multiplied by {p[0]:.4g} and shifted by {p[1]:.4g}"
    return Step("brightness", words)


POINTWISE = (
    Cause(
        _once,
        lambda x, _: 16 + x * (219 / 255),
        lambda a, b, _: Step("range", "given in the limited video range (16..235)"),
        residual=1,
    ),
    Cause(_once, lambda x, _: 255 - x, lambda a, b, _: Step("inverted", "inverted (dark and bright swapped)")),
    Cause(_grays, _to_gray, lambda a, b, _: Step("grey", "converted to grayscale"), residual=1),
    Cause(_factors, lambda x, f: x * f, _describe_factor, lambda _: 1, residual=1),
    Cause(
        _gammas,
        lambda x, g: 255 * (np.clip(x, 0, 255) / 255) ** g,
        lambda a, b, g: Step("curve", f"given with another gamma (raised to the power of {g:.3g})"),
        lambda _: 1,
        residual=1,
    ),
    Cause(_lines, lambda x, p: x * p[0] + p[1], _describe_line, lambda _: 2, residual=1),
)
UNROUNDED = tuple(replace(each, residual=0.0) for each in POINTWISE)


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


def _qualities(a: Array, b: Array) -> Iterator[tuple[int, int]]:
    """Propose the qualities that fit the luma of a part of the most changed image best, with each subsampling."""
    if Image is None or a.shape[1] not in (1, 3):
        return
    changes = np.mean((a - b) ** 2, (1, 2, 3))
    if changes.mean() < _MIN_CHANGE:
        return
    weights = np.array(_GRAYS[0] if a.shape[1] == 3 else (1.0,))[:, None, None]
    at = int(changes.argmax())
    x, y = ((each[at, :, :_PART, :_PART] * weights).sum(0)[None, None] for each in (a, b))

    def left(values: Array) -> float:
        return float(np.mean((values - y)[:, :, :-4, :-4] ** 2))  # the last pixels depend on pixels outside the part

    errors = {quality: left(compress(x, (quality, 0))) for quality in range(10, 101)}
    best = sorted(errors, key=errors.__getitem__)[:2]
    if errors[best[0]] <= _MAX_LEFT * max(left(x), _MIN_CHANGE):
        yield from product(best, _SUBSAMPLINGS if a.shape[1] == 3 else (0,))


def _describe_jpeg(a: Array, b: Array, parameters: tuple[int, int]) -> Step:
    noise = 10 * np.log10(255**2 / float(np.mean((a - b) ** 2)))
    return Step("jpeg", f"re-encoded as JPEG (quality {parameters[0]}; PSNR {noise:.1f} dB)")


def jpeg(now: Array, is_cropped: bool) -> Cause:
    """Return the cause of compression; pixels at the borders of cropped images depend on others that are not stored."""
    margin = _MARGIN if is_cropped and min(now.shape[2:]) > 3 * _MARGIN else 0
    part = (..., slice(margin, -margin or None), slice(margin, -margin or None))

    def apply(levels: Array, parameters: tuple[int, int]) -> Array:
        compressed, out = compress(levels, parameters), now.copy()
        out[part] = compressed[part]
        return out

    return Cause(_qualities, apply, _describe_jpeg, lambda _: 2, residual=1)
