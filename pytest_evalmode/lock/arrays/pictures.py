"""What became of inputs, to look at: an image then and now, and where they differ; how their values are distributed.

All of it is a few kilobytes, as it travels in a test's report: a page shows it side by side.
"""

from __future__ import annotations

import io
from base64 import b64encode
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from pytest_evalmode.lock.inputs import image_layout

if TYPE_CHECKING:
    Array = np.ndarray[Any, Any]

_SIDE = 160  # pixels of a picture at most
_BINS = 32


def draw_pictures(was: Array, now: Array) -> dict[str, Any] | None:
    """The first sample that differs as images, where it is one and Pillow is there; and a histogram of all values."""
    if any(each.dtype.kind not in "biuf" or not each.size for each in (was, now)):
        return None
    found: dict[str, Any] = {}
    histogram = _histogram(was, now)
    if histogram is not None:
        found["histogram"] = histogram
    old, new = (next(iter(image_layout.read_as_images(each)), None) for each in (was, now))
    if old is not None and new is not None and (old.is_certain or new.is_certain or was.dtype.kind == "f"):
        found |= _images(old.images, new.images)
    return found or None


def _images(old: Array, new: Array) -> dict[str, Any]:
    both = min(len(old), len(new))
    alike = old.shape[1:] == new.shape[1:]
    first = next((i for i in range(both) if not alike or not np.array_equal(old[i], new[i], equal_nan=True)), 0)
    a, b = (np.nan_to_num(_three(each[first].astype(float))) for each in (old, new))
    # One scale for both: a range or a mean that is another one is to be seen.
    low, high = min(a.min(), b.min()), max(a.max(), b.max())
    found: dict[str, Any] = {"sample": first}
    drawn: Mapping[str, tuple[Array, float, float]] = {"was": (a, low, high), "now": (b, low, high)}
    if alike:
        apart = np.abs(b - a)
        drawn = {**drawn, "apart": (apart, 0.0, apart.max())}
    for name, (values, least, most) in drawn.items():
        uri = _uri(((values - least) / ((most - least) or 1) * 255).round().astype(np.uint8))
        if uri is None:
            return {}
        found[name] = uri
    return found


def _three(image: Array) -> Array:
    """Rows, columns, and three channels."""
    image = image[:3] if len(image) >= 3 else np.repeat(image[:1], 3, axis=0)
    return np.moveaxis(image, 0, -1)


def _uri(pixels: Array) -> str | None:
    try:
        from PIL import Image
    except ImportError:
        return None
    image = Image.fromarray(pixels)
    image.thumbnail((_SIDE, _SIDE))
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return f"data:image/png;base64,{b64encode(file.getvalue()).decode()}"


def _histogram(was: Array, now: Array) -> dict[str, Any] | None:
    """How many of the values lie in each of a few steps of one range, as shares of the highest."""
    a, b = (each.astype(float).ravel() for each in (was, now))
    a, b = a[np.isfinite(a)], b[np.isfinite(b)]
    if not a.size or not b.size:
        return None
    low, high = float(min(a.min(), b.min())), float(max(a.max(), b.max()))
    if low == high or np.unique(a).size < 4:
        return None
    counts = [np.histogram(each, _BINS, (low, high))[0] / each.size for each in (a, b)]
    most = max(each.max() for each in counts)
    heights = [[round(float(share / most), 3) for share in each] for each in counts]
    return {"low": f"{low:.4g}", "high": f"{high:.4g}", "was": heights[0], "now": heights[1]}
