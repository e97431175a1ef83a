"""Pictures of changed inputs for the HTML report: an image as locked, as it is now and the difference; a histogram.

They travel in the test's report, so they must be a few kilobytes.
"""

from __future__ import annotations

import io
from base64 import b64encode
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from pytest_evalmode.lock.causes.images import layout

if TYPE_CHECKING:
    Array = np.ndarray[Any, Any]

_MAX_SIDE = 160  # pixels
_BINS = 32


def draw_pictures(locked: Array, current: Array) -> dict[str, Any] | None:
    """Draw the first sample that differs, if it is an image and Pillow is installed, and a histogram of all values.

    Args:
        locked: The locked samples, of shape (samples, ...); only numbers are drawn.
        current: The samples of this run, of shape (samples, ...).

    Returns:
        The pictures as data URIs and the histogram, by the names that the report uses; None if nothing can be drawn.
    """
    if any(each.dtype.kind not in "biuf" or not each.size for each in (locked, current)):
        return None
    drawn: dict[str, Any] = {}
    histogram = _histogram(locked, current)
    if histogram is not None:
        drawn["histogram"] = histogram
    old, new = (next(iter(layout.read_as_images(each)), None) for each in (locked, current))
    if old is not None and new is not None and (old.is_certain or new.is_certain or locked.dtype.kind == "f"):
        drawn |= _images(old.images, new.images)
    return drawn or None


def _images(old: Array, new: Array) -> dict[str, Any]:
    both = min(len(old), len(new))
    same_shape = old.shape[1:] == new.shape[1:]
    first = next((i for i in range(both) if not same_shape or not np.array_equal(old[i], new[i], equal_nan=True)), 0)
    a, b = (np.nan_to_num(_to_rgb(each[first].astype(float))) for each in (old, new))
    # Both have the same scale, so that a different range or mean is visible.
    low, high = min(a.min(), b.min()), max(a.max(), b.max())
    images: Mapping[str, tuple[Array, float, float]] = {"was": (a, low, high), "now": (b, low, high)}
    if same_shape:
        change = np.abs(b - a)
        images = {**images, "apart": (change, 0.0, change.max())}
    drawn: dict[str, Any] = {"sample": first}
    for name, (values, lowest, highest) in images.items():
        uri = _data_uri(((values - lowest) / ((highest - lowest) or 1) * 255).round().astype(np.uint8))
        if uri is None:
            return {}
        drawn[name] = uri
    return drawn


def _to_rgb(image: Array) -> Array:
    """Convert (channels, rows, columns) to (rows, columns, 3)."""
    image = image[:3] if len(image) >= 3 else np.repeat(image[:1], 3, axis=0)
    return np.moveaxis(image, 0, -1)


def _data_uri(pixels: Array) -> str | None:
    try:
        from PIL import Image
    except ImportError:
        return None
    image = Image.fromarray(pixels)
    image.thumbnail((_MAX_SIDE, _MAX_SIDE))
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return f"data:image/png;base64,{b64encode(file.getvalue()).decode()}"


def _histogram(locked: Array, current: Array) -> dict[str, Any] | None:
    """Return the histograms of both arrays over one range, relative to the highest bar."""
    a, b = (each.astype(float).ravel() for each in (locked, current))
    a, b = a[np.isfinite(a)], b[np.isfinite(b)]
    if not a.size or not b.size:
        return None
    low, high = float(min(a.min(), b.min())), float(max(a.max(), b.max()))
    if low == high or np.unique(a).size < 4:
        return None
    counts = [np.histogram(each, _BINS, (low, high))[0] / each.size for each in (a, b)]
    highest = max(each.max() for each in counts)
    heights = [[round(float(share / highest), 3) for share in each] for each in counts]
    return {"low": f"{low:.4g}", "high": f"{high:.4g}", "was": heights[0], "now": heights[1]}
