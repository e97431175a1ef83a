"""Causes that act on 8-bit levels: brightness, curves, gray, JPEG, filters. Applied to the locked levels, then rounded.

All arrays have shape (samples, channels, rows, columns) and values in 0..255.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import numpy as np

from pytest_evalmode.lock.inputs.diagnosis import Array, Cause, Step

try:
    from PIL import Image, ImageFilter
except ImportError:  # without Pillow, these causes are not recognized
    Image = ImageFilter = None  # type: ignore[assignment]

_LUMA = np.array([0.299, 0.587, 0.114])[:, None, None]
_SUBSAMPLINGS = {2: "4:2:0", 0: "4:4:4", 1: "4:2:2"}
_PART = 64  # pixels of one image on which compression and filters are tried
_MAX_LEFT = 0.3  # share of the squared difference that may be left in that part
_MIN_CHANGE = 0.5  # levels, root mean square: less is not searched for a quality


def _to_bytes(levels: Array) -> Array:
    return np.clip(np.round(levels), 0, 255).astype(np.uint8)


def _convert_images(levels: Array, convert: Any) -> Array:
    """Apply a function of Pillow images to each image."""
    converted = []
    for image in _to_bytes(levels):
        pixels = np.asarray(convert(Image.fromarray(image[0] if len(image) == 1 else np.moveaxis(image, 0, -1))))
        converted.append(pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels, -1, 0))
    return np.stack(converted).astype(float)


def _is_picture(a: Array, b: Array) -> bool:
    return Image is not None and a.shape == b.shape and a.shape[1] in (1, 3)


def compress(levels: Array, parameters: tuple[int, int]) -> Array:
    """Return images as they are after encoding as JPEG and decoding.

    Args:
        levels: The images.
        parameters: The quality, and the subsampling of the chroma as Pillow numbers it.
    """
    quality, subsampling = parameters

    def convert(image: Any) -> Any:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=quality, subsampling=subsampling)
        return Image.open(file)

    return _convert_images(levels, convert)


def _part(a: Array, b: Array) -> tuple[Array, Array]:
    """Return the corner of the image that changed most, to try causes on."""
    most = int(np.mean((a - b) ** 2, (1, 2, 3)).argmax())
    return a[most : most + 1, :, :_PART, :_PART], b[most : most + 1, :, :_PART, :_PART]


def _left(x: Array, y: Array) -> float:
    """Return the mean squared difference, without the last pixels, which depend on pixels outside of the part."""
    return float(np.mean((x - y)[:, :, :-4, :-4] ** 2))


def _qualities(a: Array, b: Array) -> list[tuple[int, int]]:
    """Propose the quality that fits the luma of a part of one image best, with each subsampling of the chroma."""
    if not _is_picture(a, b) or float(np.mean((a - b) ** 2)) < _MIN_CHANGE**2:
        return []
    x, y = (
        (each * _LUMA[: each.shape[1]]).sum(1, keepdims=True) / _LUMA[: each.shape[1]].sum() for each in _part(a, b)
    )
    errors = {quality: _left(compress(x, (quality, 0)), y) for quality in [*range(10, 101, 5), 98]}
    for quality in sorted(errors, key=errors.__getitem__)[:3]:
        near = [each for each in range(quality - 4, quality + 5) if each <= 100 and each not in errors]
        errors |= {each: _left(compress(x, (each, 0)), y) for each in near}
    best = sorted(errors, key=errors.__getitem__)[:2]
    if errors[best[0]] > _MAX_LEFT * max(_left(x, y), _MIN_CHANGE**2):
        return []
    return [(quality, subsampling) for quality in best for subsampling in (_SUBSAMPLINGS if a.shape[1] == 3 else (0,))]


def _describe_jpeg(a: Array, b: Array, parameters: tuple[int, int]) -> Step:
    quality, subsampling = parameters
    noise = 10 * np.log10(255**2 / float(np.mean((a - b) ** 2)))
    details: dict[str, object] = {"quality": quality, "psnr": noise}
    if a.shape[1] == 3:
        details["chroma"] = _SUBSAMPLINGS[subsampling]
    return Step("jpeg", f"re-encoded as JPEG (quality {quality}; PSNR {noise:.1f} dB)", details)


def _filters(a: Array, b: Array) -> Iterator[str]:
    if _is_picture(a, b) and float(np.mean((a - b) ** 2)) >= _MIN_CHANGE**2:
        x, y = _part(a, b)
        yield from (name for name in FILTERS if _left(apply_filter(x, name), y) <= _MAX_LEFT * _left(x, y))


FILTERS = {
    **{f"GaussianBlur({radius:g})": ("blurred", "GaussianBlur", radius) for radius in (0.5, 1, 1.5, 2, 3, 4, 5)},
    **{f"BoxBlur({radius})": ("blurred", "BoxBlur", radius) for radius in (1, 2, 3)},
    **{f"MedianFilter({size})": ("smoothed", "MedianFilter", size) for size in (3, 5)},
    "SMOOTH": ("blurred", "SMOOTH", None),
    "BLUR": ("blurred", "BLUR", None),
    "SHARPEN": ("sharpened", "SHARPEN", None),
    "UnsharpMask()": ("sharpened", "UnsharpMask", ()),
}


def apply_filter(levels: Array, name: str) -> Array:
    _, attribute, argument = FILTERS[name]
    kernel = getattr(ImageFilter, attribute)
    if argument is not None:
        kernel = kernel() if argument == () else kernel(argument)
    return _convert_images(levels, lambda image: image.filter(kernel))


def _grays(a: Array, b: Array) -> Iterator[tuple[float, ...]]:
    if a.shape[1] == 3 and b.shape[1] in (1, 3) and np.array_equal(b, np.broadcast_to(b[:, :1], b.shape)):
        yield from ((0.299, 0.587, 0.114), (0.2126, 0.7152, 0.0722), (1 / 3, 1 / 3, 1 / 3))


def _to_gray(levels: Array, weights: tuple[float, ...]) -> Array:
    gray = np.einsum("nchw,c->nhw", levels, np.asarray(weights))[:, None]
    return np.repeat(gray, 3, axis=1)


def _factors(a: Array, b: Array) -> Iterator[float]:
    inner = (a > 8) & (b > 0) & (b < 255)
    if a.shape == b.shape and inner.sum() > 16:
        scale = float((a * b)[inner].sum() / (a * a)[inner].sum())
        # The factor that was meant has few digits; rounding down lowers the fitted one.
        low = scale + 0.5 * float(a[inner].sum() / (a * a)[inner].sum())
        yield from dict.fromkeys([round(scale, 2), round(low, 2), round(scale, 3), round(low, 3), scale, low])


def _lines(a: Array, b: Array) -> Iterator[tuple[float, float]]:
    inner = (b > 0) & (b < 255)
    if a.shape == b.shape and inner.sum() > 16 and np.ptp(a[inner]):
        scale, shift = np.polyfit(a[inner], b[inner], 1)
        yield float(scale), float(shift)


def _gammas(a: Array, b: Array) -> Iterator[float]:
    inner = (a > 8) & (a < 247) & (b > 0) & (b < 255)
    if a.shape == b.shape and inner.sum() > 16:
        gamma = float(np.median(np.log(b[inner] / 255) / np.log(a[inner] / 255)))
        yield from dict.fromkeys([round(gamma, 1), round(gamma, 2), gamma, 1 / round(1 / gamma, 1)])


def _masks(a: Array, b: Array) -> Iterator[int]:
    if a.shape == b.shape:
        yield from range(1, 8)


def _curves(a: Array, b: Array) -> Iterator[Array]:
    """Propose the mapping of each level to the level that it has now, if it is monotone."""
    if a.shape != b.shape or np.unique(a).size < 16 or a.size < 16 * np.unique(a).size:
        return
    levels, at = np.unique(a.astype(int), return_inverse=True)
    means = np.bincount(at.ravel(), b.ravel()) / np.bincount(at.ravel())
    if np.all(np.diff(means) >= 0) or np.all(np.diff(means) <= 0):
        curve = np.zeros(256)
        curve[levels] = means
        yield curve


def _lost_channels(a: Array, b: Array) -> Iterator[tuple[tuple[int, ...], float]]:
    if a.shape == b.shape and a.shape[1] > 1:
        lost = np.flatnonzero((np.ptp(b, (0, 2, 3)) == 0) & (np.ptp(a, (0, 2, 3)) > 0))
        if 0 < len(lost) < a.shape[1]:
            yield tuple(lost.tolist()), float(b[0, lost[0], 0, 0])


def _lose_channels(levels: Array, parameters: tuple[tuple[int, ...], float]) -> Array:
    out = levels.copy()
    out[:, list(parameters[0])] = parameters[1]
    return out


def _describe_lost(_: Array, __: Array, parameters: tuple[tuple[int, ...], float]) -> Step:
    listed = ", ".join(map(str, parameters[0]))
    words = f"given with channel {listed} replaced by one constant level ({parameters[1]:.4g})"
    return Step("channels", words, {"lost": parameters[0]})


def _factor_step(_: Array, __: Array, factor: float) -> Step:
    word = "darkened" if factor < 1 else "brightened"
    return Step("brightness", f"{word}: levels multiplied by {factor:.4g}", {"factor": factor})


# `residual` is how many levels a value may be off after rounding: other libraries round in other places.
POINTWISE: tuple[Cause, ...] = (
    Cause(
        lambda a, b: [1] if a.shape == b.shape else [],
        lambda x, _: 16 + x * (219 / 255),
        lambda a, b, _: Step("range", "given in the limited video range (16..235)"),
        residual=1,
    ),
    Cause(
        lambda a, b: [1] if a.shape == b.shape else [],
        lambda x, _: (x - 16) * (255 / 219),
        lambda a, b, _: Step("range", "expanded from the limited video range (16..235) to 0..255"),
        residual=1,
    ),
    Cause(
        lambda a, b: [1] if a.shape == b.shape else [],
        lambda x, _: 255 - x,
        lambda a, b, _: Step("inverted", "inverted (dark and bright swapped)"),
    ),
    Cause(_lost_channels, _lose_channels, _describe_lost),
    Cause(_grays, _to_gray, lambda a, b, _: Step("grey", "converted to grayscale"), residual=1),
    Cause(
        _masks,
        lambda x, bits: x - x % 2**bits,
        lambda a, b, bits: Step("rounding", f"rounded down to {256 >> bits} levels", {"levels": 256 >> bits}),
    ),
    Cause(_factors, lambda x, f: x * f, _factor_step, lambda _: 1, residual=1),
    Cause(
        _gammas,
        lambda x, g: 255 * (np.clip(x, 0, 255) / 255) ** g,
        lambda a, b, g: Step("curve", f"given with another gamma (raised to the power of {g:.3g})", {"gamma": g}),
        lambda _: 1,
        residual=1,
    ),
    Cause(
        lambda a, b: [(float(b.min()), float(b.max()))] if a.shape == b.shape else [],
        lambda x, p: np.clip(x, *p),
        lambda a, b, p: Step("clipped", f"clipped to levels {p[0]:.4g}..{p[1]:.4g}", {"low": p[0], "high": p[1]}),
        lambda _: 2,
    ),
    Cause(
        _lines,
        lambda x, p: x * p[0] + p[1],
        lambda a, b, p: Step(
            "brightness",
            f"changed in brightness and contrast: levels multiplied by {p[0]:.4g} and shifted by {p[1]:.4g}",
            {"factor": p[0], "shift": p[1]},
        ),
        lambda _: 2,
        residual=1,
    ),
    Cause(
        _curves,
        lambda x, curve: curve[_to_bytes(x)],
        lambda a, b, _: Step("curve", "passed through a nonlinear curve (each level maps to one other level)"),
        lambda curve: int((curve != 0).sum()),
        residual=0,
    ),
)
LOCAL: tuple[Cause, ...] = (
    Cause(
        _filters,
        apply_filter,
        lambda a, b, name: Step(FILTERS[name][0], f"{FILTERS[name][0]} (as by Pillow's {name})"),
        residual=1,
    ),
    Cause(_qualities, compress, _describe_jpeg, lambda _: 2, residual=1),
)
