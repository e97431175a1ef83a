"""Images whose detail was made otherwise: another filter, no antialiasing, a blur, a fraction of a pixel.

The original that was resized is not at hand.  What is tested: the difference lies in the detail and at edges,
not in what a coarse look sees, and neither a small filter nor a small movement explains it.
"""

from __future__ import annotations

import numpy as np

from pytest_evalmode.lock.inputs.diagnosis import Array, Step, psnr

_REACH = 2  # of the fitted filter, in pixels
_SPREAD = 0.05  # of the pixels differ at least
_LEAST_LEVEL = 0.75  # that a value differs by at most
_LEAST = 0.02  # of a pixel is a movement
_MOST = 20_000  # pixels that a fit looks at


def find_resampling(a: Array, b: Array) -> Step | None:
    """How the detail of `b` differs from that of `a`; both in levels."""
    if min(a.shape[2:]) < 8 or a.shape != b.shape:
        return None
    old, new = a.mean(1), b.mean(1)
    difference = new - old
    power = float(np.mean(difference**2))
    if float(np.mean(difference != 0)) < _SPREAD or np.abs(b - a).max() < _LEAST_LEVEL:
        return None  # a spot, or a rounding, not another way to make the images
    return _filtered(a, b) or _moved(old, difference, power) or _detailed(old, new, power)


def _filtered(a: Array, b: Array) -> Step | None:
    """One small filter for all pixels explains the difference."""
    size = 2 * _REACH + 1
    windows = np.lib.stride_tricks.sliding_window_view(a, (size, size), axis=(2, 3))
    inner = b[:, :, _REACH:-_REACH, _REACH:-_REACH]
    pick = np.linspace(0, inner.size - 1, min(inner.size, _MOST)).astype(int)
    # Where values were cut off, no filter tells what they are.
    pick = pick[(inner.flat[pick] > b.min()) & (inner.flat[pick] < b.max())]
    if len(pick) < 4 * size**2:
        return None
    x, y = windows.reshape(-1, size**2)[pick], inner.ravel()[pick]
    kernel, *_ = np.linalg.lstsq(np.c_[x, np.ones(len(x))], y, rcond=None)
    left = float(np.mean((np.c_[x, np.ones(len(x))] @ kernel - y) ** 2))
    all_ = float(np.mean((x[:, size**2 // 2] - y) ** 2))
    # Rounding to levels leaves 1/12; what is left of the difference has to be next to nothing.
    if all_ == 0 or left > max(0.02 * all_, min(0.1, 0.2 * all_)):
        return None
    taps = kernel[:-1].reshape(size, size)
    if np.abs(taps - taps[::-1, ::-1]).max() > 0.15 * np.abs(taps).max():
        at = np.arange(-_REACH, _REACH + 1)
        dy, dx = -float((taps.sum(1) * at).sum()), -float((taps.sum(0) * at).sum())
        return _fraction(dy, dx, left / all_)
    soft = taps[_REACH, _REACH] < 1
    details = {"filter": [[round(float(t), 4) for t in row] for row in taps], "unexplained": left / all_}
    word = "blurred" if soft else "sharpened"
    return Step(word, f"{word} (one filter of {size}x{size} pixels explains {1 - left / all_:.1%})", details)


def _fraction(dy: float, dx: float, unexplained: float) -> Step:
    details = {"offset": (dy, dx), "unexplained": unexplained}
    return Step("shift", f"shifted by a fraction of a pixel ({dy:+.2f} down, {dx:+.2f} right)", details)


def _moved(old: Array, difference: Array, power: float) -> Step | None:
    """A movement of the whole, or one that grows from the centre: another scale, corners aligned otherwise."""
    dy, dx = np.gradient(old, axis=(1, 2))
    y = np.linspace(-1, 1, old.shape[1])[None, :, None]
    x = np.linspace(-1, 1, old.shape[2])[None, None, :]
    terms = np.stack([-dy, -dx, -dy * y, -dx * x], axis=-1)[:, 1:-1, 1:-1].reshape(-1, 4)
    target = difference[:, 1:-1, 1:-1].ravel()
    flow, *_ = np.linalg.lstsq(terms, target, rcond=None)
    left = float(np.mean((terms @ flow - target) ** 2)) / max(float(np.mean(target**2)), 1e-12)
    if left > 0.35 or np.abs(flow).max() < _LEAST:
        return None
    if np.abs(flow[2:]).max() < 0.5 * np.abs(flow[:2]).max():
        return _fraction(float(flow[0]), float(flow[1]), left)
    details = {"offset": tuple(map(float, flow[:2])), "growth": tuple(map(float, flow[2:])), "unexplained": left}
    words = f"resized to another scale ({flow[2]:+.2f} px at the lower edge, {flow[3]:+.2f} px at the right edge)"
    return Step("scale of images", words, details)


def _detailed(old: Array, new: Array, power: float) -> Step | None:
    """The difference lies at edges, and vanishes in a coarse look faster than noise does."""
    difference = new - old
    gradient = np.hypot(*np.gradient(old, axis=(1, 2)))
    edges = float(np.corrcoef(np.abs(difference).ravel(), gradient.ravel())[0, 1]) if np.ptp(gradient) else 0.0
    size = 4 if min(old.shape[1:]) >= 32 else 2
    coarse = float(np.mean(_pooled(difference, size) ** 2)) / power * size**2  # 1 for white noise
    small = power < 0.25 * float(old.var())
    if not small or edges < 0.3 or coarse > 1.3:
        return None
    ratio = _roughness(new) / max(_roughness(old), 1e-12)
    details = {"psnr": psnr(old, new), "edges": edges, "coarse": coarse, "detail": ratio}
    how = f"detail {ratio:.2f} times as strong, at edges" if abs(ratio - 1) > 0.005 else "the difference lies at edges"
    if ratio > 1.1:
        words = "resized without antialiasing, or by a sharper filter"
    elif ratio < 1 / 1.1:
        words = "resized with antialiasing, or by a softer filter"
    else:
        words = "resized by another filter"
    return Step("resized", f"{words} ({how}; PSNR {details['psnr']:.1f} dB)", details)


def _pooled(images: Array, size: int) -> Array:
    height, width = (n - n % size for n in images.shape[1:])
    cut = images[:, :height, :width]
    return np.asarray(cut.reshape(len(cut), height // size, size, width // size, size).mean((2, 4)))


def _roughness(images: Array) -> float:
    """The power of what is neither smooth across nor down."""
    second = (
        images[:, 1:-1, 1:-1] * 4
        - images[:, :-2, 1:-1]
        - images[:, 2:, 1:-1]
        - images[:, 1:-1, :-2]
        - images[:, 1:-1, 2:]
    )
    return float(np.sqrt(np.mean(second**2)))
