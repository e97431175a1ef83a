"""Changes of pixel values: a scale and shift per channel, normalization, mixed channels, curves."""

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
            if is_near and (same or _is_known(old, new)):
                near.append((float(np.abs(exact(a) - b).max()), old, new, exact))
    near.sort(key=lambda each: round(each[0], 3))  # stable: of equally near codings, the simplest is first
    for _, old, new, exact in near:
        same = (old.family, old.name) == (new.family, new.name)
        yield [] if same else [_known_step(old, new, fitted)], exact, new
    if np.all(fitted.scale != 0):
        yield [_fitted_step(a, b, fitted, channel_order)], fitted, None


def _locked_codings(a: Array, channel_order: Sequence[int] | None) -> list[Coding]:
    """Return the codings that give the locked images 8-bit levels, or else those that fit their range."""
    known = (each for each in known_codings(a.shape[1], channel_order) if not each.family.startswith("inverted"))
    plausible = [each for each in known if is_plausible(each, a)]
    return [each for each in plausible if has_8bit_levels(each, a)] or plausible


def _is_known(old: Coding, new: Coding) -> bool:
    """Return whether `_known_step` can describe this change."""
    a, b = old.family, new.family
    if a in ("unit", "bytes"):
        if b.startswith("inverted"):
            return (a == "bytes") == (b == "inverted bytes")
        return b in ("unit", "bytes", "divided", "normalized", "not divided", "divided twice", "mean only", "std only")
    return a == "normalized" and (b in ("unit", "bytes", "normalized") or old.name == new.name)


def _known_step(old: Coding, new: Coding, fitted: Fit) -> Step:
    details = {"scale": _tuple(fitted.scale), "shift": _tuple(fitted.shift), "statistics": new.name or old.name}
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


def _mean_and_std(fitted: Fit, old: Coding) -> tuple[Array, Array]:
    """Return the mean and std, for pixels in 0..1, if the fit maps values in the coding `old` to normalized values."""
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


def find_channel_scale(
    a: Array, b: Array, tolerance: float, channel_order: Sequence[int] | None = None
) -> tuple[Step, float] | None:
    """Find a scale and shift per channel, up to rounding to levels, or a channel that became constant.

    Args:
        a: The locked images: float64, shape (samples, channels, rows, columns), any range.
        b: The current images, likewise.
        tolerance: The largest absolute difference in values of `b` that may remain.
        channel_order: The order of the channels if they were swapped after coding.

    Returns:
        The step and the largest absolute difference that remains, or None.
    """
    fitted = fit(a, b)
    residual, axes = float(np.abs(fitted(a) - b).max()), (0, 2, 3)
    if residual > tolerance or np.abs(a - b).max() <= 2 * tolerance:
        return None
    lost = [int(i) for i in np.flatnonzero((np.ptp(b, axes) == 0) & (np.ptp(a, axes) > 0))]
    if not lost:
        return _fitted_step(a, b, fitted, channel_order), residual
    if len(lost) == b.shape[1] or np.delete(np.abs(a - b), lost, 1).max() > tolerance:
        return None
    values = format_numbers(b[0, lost, 0, 0])
    words = f"given with channel {', '.join(map(str, lost))} replaced by one constant value ({values})"
    return Step("channels", words, {"lost": tuple(lost)}), residual


def find_color_matrix(a: Array, b: Array, tolerance: float) -> tuple[Step, float] | None:
    """Find colors that were mixed by one matrix: converted to grayscale or to another color space.

    Args:
        a: The locked images: float64, shape (samples, channels, rows, columns), any range.
        b: The current images, likewise, with one or three channels.
        tolerance: The largest absolute difference in values of `b` that may remain.

    Returns:
        The step and the largest absolute difference that remains, or None.
    """
    if a.shape[1] != 3 or b.shape[1] not in (1, 3):
        return None
    terms = np.c_[np.moveaxis(a, 1, -1).reshape(-1, 3), np.ones(a.size // 3)]
    target = np.moveaxis(b, 1, -1).reshape(len(terms), -1)
    matrix, *_ = np.linalg.lstsq(terms, target, rcond=None)
    residual = float(np.abs(terms @ matrix - target).max())
    if residual > tolerance:
        return None
    details: dict[str, object] = {"matrix": np.round(matrix.T, 5).tolist(), "unexplained": residual}
    if np.linalg.matrix_rank(target - target.mean(0), tol=2 * tolerance * len(target) ** 0.5) <= 1:
        return Step("grey", "converted to grayscale", details), residual
    return Step("colours", "given in another color space (one matrix explains all pixels)", details), residual


def find_value_curve(a: Array, b: Array, tolerance: float) -> tuple[Step, float] | None:
    """Find a mapping from each value to one other value: clipping, a gamma, another curve.

    Args:
        a: The locked images: float64, shape (samples, channels, rows, columns), any range.
        b: The current images, likewise.
        tolerance: The largest absolute difference in values of `b` that may remain.

    Returns:
        The step and the largest absolute difference that remains, or None.
    """
    if np.abs(a - b).max() <= 2 * tolerance:
        return None
    clipped = np.abs(np.clip(a, b.min(), b.max()) - b).max()
    if clipped <= tolerance:
        words = f"clipped to {b.min():.4g}..{b.max():.4g}"
        return Step("clipped", words, {"low": float(b.min()), "high": float(b.max())}), float(clipped)
    values, at = np.unique(a, return_inverse=True)
    if len(values) < 8 or len(values) * 8 > a.size:
        return None  # too few pixels per value to distinguish a curve from chance
    at = at.ravel()
    means = np.bincount(at, b.ravel()) / np.bincount(at)
    residual = float(np.abs(means[at] - b.ravel()).max())
    if residual > tolerance:
        return None
    for top in (1.0, 255.0):
        inner = (values > 0.02 * top) & (values < 0.98 * top) & (means > 0)
        if values[0] >= 0 and inner.sum() > 4 and max(values[-1], means.max()) <= top * 1.001:
            gammas = np.log(means[inner] / top) / np.log(values[inner] / top)
            gamma = float(np.median(gammas))
            if np.abs((values[inner] / top) ** gamma * top - means[inner]).max() < max(0.6 * top / 255, tolerance):
                words = f"given with another gamma (raised to the power of {gamma:.3g})"
                return Step("curve", words, {"gamma": gamma}), residual
    return Step("curve", "passed through a nonlinear curve (each value maps to one other value)"), residual
