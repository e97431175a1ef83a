"""Pictures of changed inputs for the HTML report: an image as locked, as it is now and the difference; a histogram.

They travel in the test's report, so they must be a few kilobytes.
"""

from __future__ import annotations

import io
from base64 import b64encode
from typing import Any

import numpy as np

from pytest_evalmode.lock.causes.cause import Array
from pytest_evalmode.lock.causes.images import layout

_MAX_SIDE = 160  # pixels
_BINS = 32


def draw_pictures(locked: Array, current: Array) -> dict[str, Any] | None:
    """Draw the first sample that differs, if it is an image and Pillow is installed, and a histogram of all values.

    The result has the pictures as data URIs and the histogram, by the names that the report uses.
    """
    if any(each.dtype.kind not in "biuf" or not each.size for each in (locked, current)):
        return None
    drawn = _draw_histogram(locked, current)
    old, new = (next(iter(layout.read_as_images(each)), None) for each in (locked, current))
    if old is not None and new is not None and (old.is_certain or new.is_certain or locked.dtype.kind == "f"):
        drawn |= _draw_images(old.images, new.images)
    return drawn or None


def _draw_images(old: Array, new: Array) -> dict[str, Any]:
    try:
        from PIL import Image
    except ImportError:
        return {}
    same_shape = old.shape[1:] == new.shape[1:]
    pairs = enumerate(zip(old, new, strict=False))
    first = next((i for i, (a, b) in pairs if same_shape and not np.array_equal(a, b, equal_nan=True)), 0)
    was, now = (np.nan_to_num(_to_rgb(each[first].astype(float))) for each in (old, new))
    # Both have the same scale, so that a different range or mean is visible.
    low, high = min(was.min(), now.min()), max(was.max(), now.max())
    images = {"was": (was - low) / ((high - low) or 1), "now": (now - low) / ((high - low) or 1)}
    if same_shape:
        images["apart"] = np.abs(now - was) / (np.abs(now - was).max() or 1)
    drawn: dict[str, Any] = {"sample": first}
    for name, values in images.items():
        image = Image.fromarray((values * 255).round().astype(np.uint8))
        image.thumbnail((_MAX_SIDE, _MAX_SIDE))
        file = io.BytesIO()
        image.save(file, "PNG", optimize=True)
        drawn[name] = f"data:image/png;base64,{b64encode(file.getvalue()).decode()}"
    return drawn


def _to_rgb(image: Array) -> Array:
    """Convert (channels, rows, columns) to (rows, columns, 3)."""
    return np.moveaxis(image[:3] if len(image) >= 3 else np.repeat(image[:1], 3, axis=0), 0, -1)


def _draw_histogram(locked: Array, current: Array) -> dict[str, Any]:
    """Return the histograms of both arrays over one range, relative to the highest bar; nothing for few values."""
    a, b = (values[np.isfinite(values)] for values in (each.astype(float) for each in (locked, current)))
    if np.unique(a).size < 4 or not b.size:
        return {}
    low, high = float(min(a.min(), b.min())), float(max(a.max(), b.max()))
    was, now = (np.histogram(each, _BINS, (low, high))[0] / each.size for each in (a, b))
    heights = [(each / max(was.max(), now.max())).round(3).tolist() for each in (was, now)]
    return {"histogram": {"low": f"{low:.4g}", "high": f"{high:.4g}", "was": heights[0], "now": heights[1]}}
