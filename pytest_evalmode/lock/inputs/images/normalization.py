"""Changes of pixel values: a scale and shift per channel, and normalization."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from pytest_evalmode.lock.inputs.diagnosis import NOT_BEFORE, Array, Step, format_numbers
from pytest_evalmode.lock.inputs.images.pixel_codings import (
    Coding,
    coding_of,
    has_8bit_levels,
    is_plausible,
    known_codings,
)

_VIDEO = (219 / 255, 16 / 255)  # scale and shift from 0..255 to the limited video range, 16..235


class Fit(NamedTuple):
    """The scale and shift per channel that turn one array into another."""

    scale: Array  # float64, shape (channels,)
    shift: Array  # float64, shape (channels,)

    def __call__(self, a: Array) -> Array:
        return np.asarray(a * _per_channel(self.scale) + _per_channel(self.shift))


def fit(a: Array, b: Array) -> Fit:
    """Fit a scale and shift per channel by least squares; a constant channel gets a shift only.

    Args:
        a: The locked images: float64, shape (samples, channels, rows, columns), any range.
        b: The current images, likewise.
    """
    axes = (0, 2, 3)
    mean_a, mean_b = a.mean(axes, keepdims=True), b.mean(axes, keepdims=True)
    spread = ((a - mean_a) ** 2).sum(axes)
    product = ((a - mean_a) * (b - mean_b)).sum(axes)
    scale = np.where(spread > 0, product / np.where(spread > 0, spread, 1), 1.0)
    return Fit(scale, mean_b.ravel() - scale * mean_a.ravel())


def channel_correlation(a: Array, b: Array) -> float:
    """Return the smallest absolute correlation over all channels: 1.0 if a scale and shift explain everything.

    Args:
        a: The locked images: float64, shape (samples, channels, rows, columns), any range.
        b: The current images, likewise.
    """
    axes = (0, 2, 3)
    old, new = (each - each.mean(axes, keepdims=True) for each in (a, b))
    norms = np.sqrt((old**2).sum(axes) * (new**2).sum(axes))
    constant = norms == 0
    correlations = np.where(constant, 1.0, (old * new).sum(axes) / np.where(constant, 1, norms))
    return float(np.abs(correlations).min()) if not constant.all() else float(np.array_equal(a, b))


def try_recodings(
    a: Array, b: Array, tolerance: float, channel_order: Sequence[int] | None = None
) -> Iterator[tuple[list[Step], Fit, Coding | None]]:
    """Yield the known changes of coding that are near the fitted scale, the nearest first, then the fitted one.

    Args:
        a: The locked images: float64, shape (samples, channels, rows, columns), any range.
        b: The current images, likewise.
        tolerance: The largest relative difference between the fitted and the known scale: larger for images that
            were also compressed.
        channel_order: The order of the channels if they were swapped, because swapped channels may have been
            normalized with each other's statistics.

    Yields:
        The steps, the scale and shift that they apply, and the coding of `b` (None for the fitted one).
    """
    fitted = fit(a, b)
    near: list[tuple[float, Coding, Coding, Fit]] = []
    for old in _locked_codings(a, channel_order):
        for new in known_codings(a.shape[1]):
            same = (old.family, old.name) == (new.family, new.name)
            if same and (channel_order is None or not old.name):
                continue
            scale = new.scale / old.scale
            exact = Fit(scale, new.shift - scale * old.shift)
            is_near = np.all(np.abs(exact.scale - fitted.scale) <= tolerance * np.abs(exact.scale))
            if is_near and (same or is_known(old, new)):
                near.append((float(np.abs(exact(a) - b).max()), old, new, exact))
    near.sort(key=lambda each: round(each[0], 3))  # stable: of equally near codings, the simplest is first
    for _, old, new, exact in near:
        same = (old.family, old.name) == (new.family, new.name)
        yield [] if same else [known_step(old, new, fitted)], exact, new
    if np.all(fitted.scale != 0):
        yield [_fitted_step(a, b, fitted, channel_order)], fitted, None


def _locked_codings(a: Array, channel_order: Sequence[int] | None) -> list[Coding]:
    """Return the codings that give the locked images 8-bit levels, or else those that fit their range."""
    known = (each for each in known_codings(a.shape[1], channel_order) if not each.family.startswith("inverted"))
    plausible = [each for each in known if is_plausible(each, a)]
    return [each for each in plausible if has_8bit_levels(each, a)] or plausible


def is_known(old: Coding, new: Coding) -> bool:
    """Return whether `known_step` has words for this change."""
    a, b = old.family, new.family
    if a in ("unit", "bytes"):
        if b.startswith("inverted"):
            return (a == "bytes") == (b == "inverted bytes")
        return b in ("unit", "bytes", "divided", "normalized", "not divided", "divided twice", "mean only", "std only")
    return a == "normalized" and (b in ("unit", "bytes", "normalized") or old.name == new.name)


def known_step(old: Coding, new: Coding, fitted: Fit | None = None) -> Step:
    """Return the step for a known change of the coding."""
    details: dict[str, object] = {"statistics": new.name or old.name}
    if fitted is not None:
        details |= {"scale": _tuple(fitted.scale), "shift": _tuple(fitted.shift)}
    statistics = f"{new.name or old.name} mean and std"
    match (old.family, new.family):
        case ("bytes", "unit"):
            return Step("range", "given in 0..1, not 0..255", details)
        case ("unit", "bytes"):
            return Step("range", "given in 0..255, not 0..1", details)
        case (_, "inverted" | "inverted bytes"):
            return Step("inverted", "inverted (dark and bright swapped)", details)
        case (_, "divided"):
            return Step("range", "divided by 255 once more", details)
        case ("unit" | "bytes", "normalized"):
            return Step("normalised", f"normalized ({statistics}){NOT_BEFORE}", details)
        case ("normalized", "unit"):
            return Step("not normalised", f"not normalized ({statistics})", details)
        case ("normalized", "bytes"):
            return Step("not normalised", f"neither normalized ({statistics}) nor scaled from 0..255 to 0..1", details)
        case ("normalized", "normalized twice"):
            return Step("normalised twice", f"normalized twice ({statistics})", details)
        case ("normalized", "normalized"):
            words = f"normalized with other statistics ({statistics}, not {old.name})"
            return Step("other statistics", words, {**details, "statistics": (old.name, new.name)})
        case (_, "not divided"):
            return Step("range", f"normalized ({statistics}) without division by 255", details)
        case (_, "divided twice"):
            return Step("range", f"divided by 255 twice before normalization ({statistics})", details)
        case (_, "mean only"):
            return Step("other statistics", f"normalized with the mean only, without the std ({new.name})", details)
    return Step("other statistics", f"normalized with the std only, without the mean ({new.name})", details)


def _fitted_step(a: Array, b: Array, fitted: Fit, channel_order: Sequence[int] | None) -> Step:
    """Describe a fitted scale and shift, as a mean and std if the coding of `a` or `b` is known."""
    details: dict[str, object] = {"scale": _tuple(fitted.scale), "shift": _tuple(fitted.shift)}
    old, new = coding_of(a, channel_order), coding_of(b)
    if old is not None and old.family in ("unit", "bytes"):
        top = float(old.scale[0])
        if np.allclose(fitted.scale, _VIDEO[0], atol=0.003) and np.allclose(fitted.shift / top, _VIDEO[1], atol=0.003):
            return Step("range", "given in the limited video range (16..235)", details)
    words = f"scaled by {format_numbers(fitted.scale)}"
    if np.abs(fitted.shift).max() > 1e-6 * np.abs(b).max():
        words += f" and shifted by {format_numbers(fitted.shift)}"
    if np.all(fitted.scale < 0):
        return Step("inverted", f"inverted: {words}", details)
    dimmed = _find_dimmed(fitted, old)
    if dimmed is not None:
        return dimmed
    if old is not None and old.family in ("unit", "bytes") and b.min() < -0.12 * b.max():
        mean, std = _mean_and_std(fitted, old)
        details |= {"mean": _tuple(mean), "std": _tuple(std)}
        return Step("normalised", f"normalized ({_describe(mean, std)}){NOT_BEFORE}", details)
    if new is not None and new.family in ("unit", "bytes") and a.min() < -0.12 * a.max() and not _is_centered(b):
        inverse = Fit(1 / fitted.scale, -fitted.shift / fitted.scale)
        mean, std = _mean_and_std(inverse, new)
        details |= {"mean": _tuple(mean), "std": _tuple(std)}
        return Step("not normalised", f"not normalized ({_describe(mean, std)})", details)
    if old is not None and old.family == "normalized" and has_8bit_levels(old, a):
        mean, std = _mean_and_std(fitted, old)
        details |= {"mean": _tuple(mean), "std": _tuple(std)}
        words = f"normalized with other statistics ({_describe(mean, std)}, not {old.name})"
        return Step("other statistics", words, details)
    if _is_centered(a) and _is_centered(b):
        mean, std = -fitted.shift / fitted.scale, 1 / fitted.scale
        pixels = a * _per_channel(std) + _per_channel(mean)
        if _has_8bit_levels(pixels) and not _has_8bit_levels(a):
            details |= {"mean": _tuple(mean), "std": _tuple(std)}
            return Step("normalised twice", f"normalized twice ({_describe(mean, std)})", details)
        return Step("other statistics", f"normalized with other statistics: {words} per channel", details)
    return Step("scale", words, details)


def _find_dimmed(fitted: Fit, old: Coding | None) -> Step | None:
    """Find images whose pixels were multiplied, or put into the limited video range, before normalization."""
    if old is None or old.family != "normalized":
        return None
    # A pixel p becomes scale * p + shift, and is then normalized: this is what it does to normalized values.
    scale, shift = fitted.scale, (fitted.shift + (fitted.scale - 1) * old.shift) / old.scale
    details: dict[str, object] = {"factor": float(scale[0])}
    if np.ptp(scale) > 1e-4 or np.ptp(shift) > 1e-4 * np.abs(scale).max():
        return None
    if abs(float(shift[0])) < 1e-4:
        word = "darkened" if scale[0] < 1 else "brightened"
        return Step("brightness", f"{word}: pixels multiplied by {scale[0]:.4g} before normalization", details)
    if np.allclose(scale, _VIDEO[0], atol=1e-3) and np.allclose(shift, _VIDEO[1], atol=1e-3):
        return Step("range", "given in the limited video range (16..235)", details)
    return None


def _mean_and_std(fitted: Fit, old: Coding) -> tuple[Array, Array]:
    """Return the mean and std, for pixels in 0..1, of a fit from values in the coding `old` to normalized values."""
    scale = fitted.scale * old.scale
    return -(fitted.shift + fitted.scale * old.shift) / scale, 1 / scale


def _describe(mean: Array, std: Array) -> str:
    return f"mean {format_numbers(mean)}, std {format_numbers(std)}"


def _is_centered(values: Array) -> bool:
    return bool(values.min() < -0.12 * values.max())


def _has_8bit_levels(pixels: Array) -> bool:
    return has_8bit_levels(known_codings(pixels.shape[1])[0], pixels)


def _per_channel(values: Array) -> Array:
    return values.reshape(1, -1, 1, 1)


def _tuple(values: Array) -> tuple[float, ...]:
    return tuple(float(f"{each:.6g}") for each in np.ravel(values))
