"""A scale and a shift, a channel each, and the normalisations that they are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from pytest_evalmode.lock.inputs.diagnosis import Array, Step, format_numbers
from pytest_evalmode.lock.inputs.images.pixel_codings import (
    Coding,
    coding_of,
    has_8bit_levels,
    is_plausible,
    known_codings,
    possessive,
)

_VIDEO = (219 / 255, 16 / 255)  # the scale and the shift of its levels


class Fit(NamedTuple):
    """The scale and the shift that take one array nearest to another, a channel each."""

    scale: Array
    shift: Array

    def __call__(self, a: Array) -> Array:
        return np.asarray(a * self.scale.reshape(1, -1, 1, 1) + self.shift.reshape(1, -1, 1, 1))


def fit(a: Array, b: Array) -> Fit:
    """By least squares; a channel of one value is shifted only."""
    axes = (0, 2, 3)
    mean_a, mean_b = a.mean(axes, keepdims=True), b.mean(axes, keepdims=True)
    spread = ((a - mean_a) ** 2).sum(axes)
    product = ((a - mean_a) * (b - mean_b)).sum(axes)
    scale = np.where(spread > 0, product / np.where(spread > 0, spread, 1), 1.0)
    return Fit(scale, mean_b.ravel() - scale * mean_a.ravel())


def channel_correlation(a: Array, b: Array) -> float:
    """The smallest correlation of a channel of both: 1 where a scale and a shift explain all."""
    axes = (0, 2, 3)
    old, new = (each - each.mean(axes, keepdims=True) for each in (a, b))
    norms = np.sqrt((old**2).sum(axes) * (new**2).sum(axes))
    flat = norms == 0
    each = np.where(flat, 1.0, (old * new).sum(axes) / np.where(flat, 1, norms))
    return float(np.abs(each).min()) if not flat.all() else float(np.array_equal(a, b))


def try_recodings(
    a: Array, b: Array, slack: float, order: Sequence[int] | None = None
) -> Iterator[tuple[list[Step], Fit, Coding | None]]:
    """The named recodings near the fitted one, nearest first; then the fitted one itself.

    `slack` is how far, relatively, the fit may be off the named scale: much where the values were also compressed.
    Channels swapped before they were normalised have the other channels' statistics: `order` is how they were.
    """
    found = fit(a, b)
    near: list[tuple[float, Coding, Coding, Fit]] = []
    for old in _sources(a, order):
        for new in known_codings(a.shape[1]):
            same = (old.family, old.name) == (new.family, new.name)
            if same and (order is None or not old.name):
                continue
            scale = new.scale / old.scale
            exact = Fit(scale, new.shift - scale * old.shift)
            if np.all(np.abs(exact.scale - found.scale) <= slack * np.abs(exact.scale)) and (same or _named(old, new)):
                near.append((float(np.abs(exact(a) - b).max()), old, new, exact))
    near.sort(key=lambda each: round(each[0], 3))  # stable: the plain ones are first
    for _, old, new, exact in near:
        same = (old.family, old.name) == (new.family, new.name)
        yield [] if same else [_step(old, new, found)], exact, new
    if np.all(found.scale != 0):
        yield [_free(a, b, found, order)], found, None


def _sources(a: Array, order: Sequence[int] | None) -> list[Coding]:
    """What `a` may be coded in: those with 8-bit levels if there are any, else those of its range."""
    known = (each for each in known_codings(a.shape[1], order) if not each.family.startswith("inverted"))
    held = [each for each in known if is_plausible(each, a)]
    return [each for each in held if has_8bit_levels(each, a)] or held


def _named(old: Coding, new: Coding) -> bool:
    """Pairs that have a name of their own."""
    a, b = old.family, new.family
    if a in ("unit", "bytes"):
        if b.startswith("inverted"):
            return (a == "bytes") == (b == "inverted bytes")
        return b in ("unit", "bytes", "divided", "normalised", "undivided", "again divided", "mean only", "std only")
    return a == "normalised" and (b in ("unit", "bytes", "normalised") or old.name == new.name)


def _step(old: Coding, new: Coding, found: Fit) -> Step:
    details = {"scale": _tuple(found.scale), "shift": _tuple(found.shift), "statistics": new.name or old.name}
    theirs = f"{possessive(new.name or old.name)} mean and std"
    match (old.family, new.family):
        case ("bytes", "unit"):
            return Step("range", "given in 0..1, not 0..255", details)
        case ("unit", "bytes"):
            return Step("range", "given in 0..255, not 0..1", details)
        case (_, "inverted" | "inverted bytes"):
            return Step("inverted", "inverted (dark for bright)", details)
        case (_, "divided"):
            return Step("range", "divided by 255 once more", details)
        case ("unit" | "bytes", "normalised"):
            return Step("normalised", f"normalised ({theirs}), as they were not", details)
        case ("normalised", "unit"):
            return Step("not normalised", f"not normalised ({theirs})", details)
        case ("normalised", "bytes"):
            return Step("not normalised", f"neither normalised ({theirs}) nor scaled from 0..255 to 0..1", details)
        case ("normalised", "twice"):
            return Step("normalised twice", f"normalised twice ({theirs})", details)
        case ("normalised", "normalised"):
            words = f"normalised with other statistics ({theirs}, not {possessive(old.name)})"
            return Step("other statistics", words, {**details, "statistics": (old.name, new.name)})
        case (_, "undivided"):
            return Step("range", f"normalised ({theirs}) without the division by 255", details)
        case (_, "again divided"):
            return Step("range", f"divided by 255 twice before they were normalised ({theirs})", details)
        case (_, "mean only"):
            return Step("other statistics", f"normalised by the mean alone, not the std ({new.name})", details)
    return Step("other statistics", f"normalised by the std alone, not the mean ({new.name})", details)


def _free(a: Array, b: Array, found: Fit, order: Sequence[int] | None) -> Step:
    """A scale and a shift of no known name, in terms of a mean and a std where a range tells them."""
    details: dict[str, object] = {"scale": _tuple(found.scale), "shift": _tuple(found.shift)}
    old, new = coding_of(a, order), coding_of(b)
    if old is not None and old.family in ("unit", "bytes"):
        top = float(old.scale[0])
        if np.allclose(found.scale, _VIDEO[0], atol=0.003) and np.allclose(found.shift / top, _VIDEO[1], atol=0.003):
            return Step("range", "given in the limited range of video (16..235)", details)
    plain = f"scaled by {format_numbers(found.scale)}"
    if np.abs(found.shift).max() > 1e-6 * np.abs(b).max():
        plain += f" and shifted by {format_numbers(found.shift)}"
    if np.all(found.scale < 0):
        return Step("inverted", f"inverted: {plain}", details)
    if old is not None and old.family in ("unit", "bytes") and b.min() < -0.12 * b.max():
        mean, std = _mean_and_std(found, old)
        details |= {"mean": _tuple(mean), "std": _tuple(std)}
        return Step(
            "normalised",
            f"normalised (mean {format_numbers(mean)}, std {format_numbers(std)}), as they were not",
            details,
        )
    if new is not None and new.family in ("unit", "bytes") and a.min() < -0.12 * a.max() and not _centred(b):
        inverse = Fit(1 / found.scale, -found.shift / found.scale)
        mean, std = _mean_and_std(inverse, new)
        details |= {"mean": _tuple(mean), "std": _tuple(std)}
        return Step(
            "not normalised", f"not normalised (mean {format_numbers(mean)}, std {format_numbers(std)})", details
        )
    if old is not None and old.family == "normalised" and has_8bit_levels(old, a):
        mean, std = _mean_and_std(found, old)
        details |= {"mean": _tuple(mean), "std": _tuple(std)}
        words = f"normalised with other statistics (mean {format_numbers(mean)}, std {format_numbers(std)}, not {possessive(old.name)})"
        return Step("other statistics", words, details)
    if _centred(a) and _centred(b):
        mean, std = -found.shift / found.scale, 1 / found.scale
        again = a * _column(std) + _column(mean)
        if _on_levels(again) and not _on_levels(a):
            details |= {"mean": _tuple(mean), "std": _tuple(std)}
            words = f"normalised twice (mean {format_numbers(mean)}, std {format_numbers(std)})"
            return Step("normalised twice", words, details)
        return Step("other statistics", f"normalised with other statistics: {plain}, a channel", details)
    return Step("scale", plain, details)


def _mean_and_std(found: Fit, old: Coding) -> tuple[Array, Array]:
    """Of pixels in 0..1, for values in the coding `old` that the fit takes to normalised ones."""
    scale = found.scale * old.scale
    return -(found.shift + found.scale * old.shift) / scale, 1 / scale


def _centred(values: Array) -> bool:
    return bool(values.min() < -0.12 * values.max())


def _on_levels(pixels: Array) -> bool:
    return has_8bit_levels(known_codings(pixels.shape[1])[0], pixels)


def _column(values: Array) -> Array:
    return values.reshape(1, -1, 1, 1)


def _tuple(values: Array) -> tuple[float, ...]:
    return tuple(float(f"{each:.6g}") for each in np.ravel(values))


def find_channel_scale(
    a: Array, b: Array, tolerance: float, order: Sequence[int] | None = None
) -> tuple[Step, float] | None:
    """A scale and a shift, a channel each, up to the rounding to levels; or a channel that is lost."""
    found = fit(a, b)
    far = np.abs(found(a) - b)
    left, axes = float(far.max()), (0, 2, 3)
    if left > tolerance or np.abs(a - b).max() <= 2 * tolerance:
        return None
    lost = [int(i) for i in np.flatnonzero((np.ptp(b, axes) == 0) & (np.ptp(a, axes) > 0))]
    if not lost:
        return _free(a, b, found, order), left
    if len(lost) == b.shape[1] or np.delete(np.abs(a - b), lost, 1).max() > tolerance:
        return None
    values = format_numbers(b[0, lost, 0, 0])
    words = f"given with channel {', '.join(map(str, lost))} all of one value ({values})"
    return Step("channels", words, {"lost": tuple(lost)}), left


def find_color_matrix(a: Array, b: Array, tolerance: float) -> tuple[Step, float] | None:
    """Colours mixed by a matrix: turned grey, another colour space."""
    if a.shape[1] != 3 or b.shape[1] not in (1, 3):
        return None
    terms = np.c_[np.moveaxis(a, 1, -1).reshape(-1, 3), np.ones(a.size // 3)]
    wanted = np.moveaxis(b, 1, -1).reshape(len(terms), -1)
    matrix, *_ = np.linalg.lstsq(terms, wanted, rcond=None)
    left = float(np.abs(terms @ matrix - wanted).max())
    if left > tolerance:
        return None
    details: dict[str, object] = {"matrix": np.round(matrix.T, 5).tolist(), "unexplained": left}
    if np.linalg.matrix_rank(wanted - wanted.mean(0), tol=2 * tolerance * len(wanted) ** 0.5) <= 1:
        return Step("grey", "turned grey", details), left
    return Step("colours", "given in another colour space (one matrix for all pixels explains it)", details), left


def find_value_curve(a: Array, b: Array, tolerance: float) -> tuple[Step, float] | None:
    """Each value taken to one other, whatever the pixel: values cut off, a gamma, another curve."""
    if np.abs(a - b).max() <= 2 * tolerance:
        return None
    cut = np.abs(np.clip(a, b.min(), b.max()) - b).max()
    if cut <= tolerance:
        words = f"cut off to {b.min():.4g}..{b.max():.4g}"
        return Step("clipped", words, {"low": float(b.min()), "high": float(b.max())}), float(cut)
    values, at = np.unique(a, return_inverse=True)
    if len(values) < 8 or len(values) * 8 > a.size:
        return None  # too few pixels a value to tell a curve from chance
    at = at.ravel()
    means = np.bincount(at, b.ravel()) / np.bincount(at)
    left = float(np.abs(means[at] - b.ravel()).max())
    if left > tolerance:
        return None
    for top in (1.0, 255.0):
        inner = (values > 0.02 * top) & (values < 0.98 * top) & (means > 0)
        if values[0] >= 0 and inner.sum() > 4 and max(values[-1], means.max()) <= top * 1.001:
            gammas = np.log(means[inner] / top) / np.log(values[inner] / top)
            gamma = float(np.median(gammas))
            if np.abs((values[inner] / top) ** gamma * top - means[inner]).max() < max(0.6 * top / 255, tolerance):
                return Step("curve", f"given with another gamma (to the power of {gamma:.3g})", {"gamma": gamma}), left
    return Step("curve", "taken through a curve (each value to one other, not along a line)"), left
