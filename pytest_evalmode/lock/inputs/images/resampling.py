"""Changes of resampling: another resize filter, no antialiasing, a blur, a shift by a fraction of a pixel.

The image before resizing is not available, so resizing cannot be repeated. It is recognized by a difference in the
detail and at edges that disappears in a downsampled image, and that neither a small filter nor a small shift explains.
"""

from __future__ import annotations

import numpy as np

from pytest_evalmode.lock.inputs.diagnosis import Array, Step, psnr

_RADIUS = 2  # of the fitted filter, in pixels
_MIN_SHARE = 0.05  # of the pixels must differ
_MIN_CHANGE = 0.75  # the largest difference of a value must reach this, in levels
_MIN_SHIFT = 0.02  # in pixels
_MAX_PIXELS = 20_000  # used for a fit


def find_resampling(a: Array, b: Array) -> Step | None:
    """Find a change of the detail: a filter, a shift by less than a pixel, or another way of resizing.

    Args:
        a: The locked images: float64 levels in about 0..255, shape (samples, channels, rows, columns).
        b: The current images, likewise.
    """
    if min(a.shape[2:]) < 8 or a.shape != b.shape:
        return None
    old, new = a.mean(1), b.mean(1)
    difference = new - old
    power = float(np.mean(difference**2))
    if float(np.mean(difference != 0)) < _MIN_SHARE or np.abs(b - a).max() < _MIN_CHANGE:
        return None  # spots or rounding, not resampling
    return _find_filter(a, b) or _find_shift(old, difference) or _find_resize(old, new, power)


def _find_filter(a: Array, b: Array) -> Step | None:
    """Find one small filter that explains the difference for all pixels."""
    size = 2 * _RADIUS + 1
    windows = np.lib.stride_tricks.sliding_window_view(a, (size, size), axis=(2, 3))
    inner = b[:, :, _RADIUS:-_RADIUS, _RADIUS:-_RADIUS]
    pick = np.linspace(0, inner.size - 1, min(inner.size, _MAX_PIXELS)).astype(int)
    # Pixels at the extremes may have been clipped, which no filter explains.
    pick = pick[(inner.flat[pick] > b.min()) & (inner.flat[pick] < b.max())]
    if len(pick) < 4 * size**2:
        return None
    x, y = windows.reshape(-1, size**2)[pick], inner.ravel()[pick]
    kernel, *_ = np.linalg.lstsq(np.c_[x, np.ones(len(x))], y, rcond=None)
    residual = float(np.mean((np.c_[x, np.ones(len(x))] @ kernel - y) ** 2))
    total = float(np.mean((x[:, size**2 // 2] - y) ** 2))
    # Rounding to levels leaves a mean squared difference of 1/12. Nearly nothing else may remain.
    if total == 0 or residual > max(0.02 * total, min(0.1, 0.2 * total)):
        return None
    taps = kernel[:-1].reshape(size, size)
    if np.abs(taps - taps[::-1, ::-1]).max() > 0.15 * np.abs(taps).max():
        at = np.arange(-_RADIUS, _RADIUS + 1)
        dy, dx = -float((taps.sum(1) * at).sum()), -float((taps.sum(0) * at).sum())
        return _shift_step(dy, dx, residual / total)
    is_blur = taps[_RADIUS, _RADIUS] < 1
    details = {"filter": [[round(float(t), 4) for t in row] for row in taps], "unexplained": residual / total}
    word = "blurred" if is_blur else "sharpened"
    return Step(word, f"{word} (one filter of {size}x{size} pixels explains {1 - residual / total:.1%})", details)


def _shift_step(dy: float, dx: float, unexplained: float) -> Step:
    details = {"offset": (dy, dx), "unexplained": unexplained}
    return Step("shift", f"shifted by a fraction of a pixel ({dy:+.2f} down, {dx:+.2f} right)", details)


def _find_shift(old: Array, difference: Array) -> Step | None:
    """Find a shift of the whole image, or one that grows from the center (another scale, other `align_corners`)."""
    dy, dx = np.gradient(old, axis=(1, 2))
    y = np.linspace(-1, 1, old.shape[1])[None, :, None]
    x = np.linspace(-1, 1, old.shape[2])[None, None, :]
    terms = np.stack([-dy, -dx, -dy * y, -dx * x], axis=-1)[:, 1:-1, 1:-1].reshape(-1, 4)
    target = difference[:, 1:-1, 1:-1].ravel()
    flow, *_ = np.linalg.lstsq(terms, target, rcond=None)
    unexplained = float(np.mean((terms @ flow - target) ** 2)) / max(float(np.mean(target**2)), 1e-12)
    if unexplained > 0.35 or np.abs(flow).max() < _MIN_SHIFT:
        return None
    if np.abs(flow[2:]).max() < 0.5 * np.abs(flow[:2]).max():
        return _shift_step(float(flow[0]), float(flow[1]), unexplained)
    details = {
        "offset": tuple(map(float, flow[:2])),
        "growth": tuple(map(float, flow[2:])),
        "unexplained": unexplained,
    }
    words = f"resized to another scale ({flow[2]:+.2f} px at the lower edge, {flow[3]:+.2f} px at the right edge)"
    return Step("scale of images", words, details)


def _find_resize(old: Array, new: Array, power: float) -> Step | None:
    """Find a difference at edges that mostly disappears in downsampled images, as another resize filter causes it."""
    difference = new - old
    gradient = np.hypot(*np.gradient(old, axis=(1, 2)))
    edges = float(np.corrcoef(np.abs(difference).ravel(), gradient.ravel())[0, 1]) if np.ptp(gradient) else 0.0
    size = 4 if min(old.shape[1:]) >= 32 else 2
    coarse = float(np.mean(_downsample(difference, size) ** 2)) / power * size**2  # 1 for white noise
    small = power < 0.25 * float(old.var())
    if not small or edges < 0.3 or coarse > 1.3:
        return None
    ratio = _roughness(new) / max(_roughness(old), 1e-12)
    details = {"psnr": psnr(old, new), "edges": edges, "coarse": coarse, "detail": ratio}
    how = f"detail {ratio:.2f} times as strong, at edges" if abs(ratio - 1) > 0.005 else "the difference is at edges"
    if ratio > 1.1:
        words = "resized without antialiasing, or with a sharper filter"
    elif ratio < 1 / 1.1:
        words = "resized with antialiasing, or with a softer filter"
    else:
        words = "resized with another filter"
    return Step("resized", f"{words} ({how}; PSNR {details['psnr']:.1f} dB)", details)


def _downsample(images: Array, size: int) -> Array:
    height, width = (n - n % size for n in images.shape[1:])
    cut = images[:, :height, :width]
    return np.asarray(cut.reshape(len(cut), height // size, size, width // size, size).mean((2, 4)))


def _roughness(images: Array) -> float:
    """Return the root mean square of the Laplacian."""
    second = (
        images[:, 1:-1, 1:-1] * 4
        - images[:, :-2, 1:-1]
        - images[:, 2:, 1:-1]
        - images[:, 1:-1, :-2]
        - images[:, 1:-1, 2:]
    )
    return float(np.sqrt(np.mean(second**2)))
