"""How pixels become values: ranges, and normalization with the mean and std of well-known datasets."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

import numpy as np

from pytest_evalmode.lock.causes.cause import NOT_BEFORE, Array, Cause, Step, format_numbers
from pytest_evalmode.lock.causes.proof import fit_lines

_STATISTICS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "ImageNet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "CLIP": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "Inception (0.5/0.5)": ((0.5,), (0.5,)),
    "CIFAR-10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "CIFAR-10 (std 0.2023)": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "CIFAR-100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    "MNIST": ((0.1307,), (0.3081,)),
    "Caffe (BGR)": ((103.939 / 255, 116.779 / 255, 123.68 / 255), (1 / 255,)),
}
Recoding = tuple[Step | None, Array, Array]
"""A known change or None, and the scale and shift per channel."""
_OVERSHOOT = 0.12  # by which pixels may leave their range, for example after a resampling filter
_NEAR = 0.02  # relative difference between the fitted scale and that of a known coding


class Coding(NamedTuple):
    """How a pixel in 0..1 becomes a value: `scale * pixel + shift`, per channel of shape (1, channels, 1, 1)."""

    family: str  # what was done to the pixels: unit (nothing), bytes, normalized, ...
    name: str  # of the statistics, such as "ImageNet"; empty if there are none
    scale: Array
    shift: Array

    def to_levels(self, values: Array) -> Array:
        """Decode images of shape (samples, channels, rows, columns) to levels in 0..255."""
        return np.asarray((values - self.shift) / self.scale * 255)

    def from_levels(self, levels: Array) -> Array:
        return np.asarray(levels / 255 * self.scale + self.shift)


@cache
def known_codings(channels: int) -> tuple[Coding, ...]:
    """Return the codings of images with this number of channels, the simplest first."""
    ones = np.ones((1, channels, 1, 1))
    codings = [
        Coding("unit", "", ones, 0 * ones),
        Coding("bytes", "", 255 * ones, 0 * ones),
        Coding("divided", "", ones / 255, 0 * ones),
    ]
    for name, statistics in _STATISTICS.items():
        if len(statistics[0]) in (1, channels):
            mean, std = (np.reshape(each, (1, -1, 1, 1)) * ones for each in statistics)
            codings += [
                Coding("normalized", name, 1 / std, -mean / std),
                Coding("normalized twice", name, 1 / std**2, -mean / std**2 - mean / std),
                Coding("not divided", name, 255 / std, -mean / std),
                Coding("divided twice", name, 1 / (255 * std), -mean / std),
            ]
    return tuple(codings)


def has_levels(coding: Coding, values: Array) -> bool:
    """Return whether values are 8-bit levels in this coding."""
    for part in (values[:1, :, ::8, ::8], values):  # few values suffice to exclude most codings
        levels = coding.to_levels(part)
        if np.abs(levels - np.round(levels)).max() >= 2e-3 or levels.min() <= -0.5 or levels.max() >= 255.5:
            return False
    return True


def codings_of(values: Array) -> list[Coding]:
    """Return the codings that give images 8-bit levels, or else those that fit their range."""
    ends = np.stack([values.min((0, 2, 3)), values.max((0, 2, 3))])[:, :, None, None].astype(float)
    plausible = []
    for coding in known_codings(values.shape[1]):
        if coding.family in ("unit", "bytes", "normalized"):
            pixels = coding.to_levels(ends) / 255
            low, high = float(pixels.min()), float(pixels.max())
            if low >= -_OVERSHOOT * max(high, 0) and high <= 1 + _OVERSHOOT and (high > 1.5 / 255 or high == low):
                plausible.append(coding)
    return [each for each in plausible if has_levels(each, values)] or plausible


def fitted_codings(was: Array, now: Array) -> Iterator[Coding]:
    """Yield codings with unknown statistics, such as those of the user's own data, in which images have 8-bit levels.

    The step between two levels follows from the values; which level the darkest has does not. It is taken as 0, and
    then the brightest as 255.
    """
    both, axes = np.concatenate([was, now]), (0, 2, 3)
    low, high = both.min(axes, keepdims=True), both.max(axes, keepdims=True)
    span = (high - low).astype(float)
    gaps = [np.diff(np.unique(both[:, channel])) for channel in range(both.shape[1])]
    steps = [each[each > most / 1e4].min(initial=most) for each, most in zip(gaps, span.ravel(), strict=True)]
    if min(steps) > 0:
        scale = 255 * span / np.round(span / np.reshape(steps, span.shape))
        yield Coding("normalized", "", scale, low)
        yield Coding("normalized", "", scale, high - scale)


# How the coding changed: the families before and now, the kind and the words.
_CHANGES: tuple[tuple[str, str, str, str], ...] = (
    ("bytes", "unit", "range", "given in 0..1, not 0..255"),
    ("unit", "bytes", "range", "given in 0..255, not 0..1"),
    ("unit bytes", "divided", "range", "divided by 255 once more"),
    ("unit bytes", "normalized", "normalised", "normalized ({} mean and std)" + NOT_BEFORE),
    ("normalized", "unit", "not normalised", "not normalized ({} mean and std)"),
    ("normalized", "bytes", "not normalised", "neither normalized ({} mean and std) nor scaled from 0..255 to 0..1"),
    ("normalized", "normalized twice", "normalised twice", "normalized twice ({} mean and std)"),
    ("normalized", "normalized", "other statistics", "normalized with other statistics ({} mean and std, not {})"),
    ("normalized unit bytes", "not divided", "range", "normalized ({} mean and std) without division by 255"),
    ("normalized unit bytes", "divided twice", "range", "divided by 255 twice before normalization ({} mean and std)"),
)


def change_of_coding(old: Coding, new: Coding) -> Step | None:
    """Return the step that turns one coding into another; None if it is not a known change, or if they are equal."""
    for before, after, kind, words in _CHANGES:
        if old.family in before.split() and new.family == after:
            differs = old.name != new.name
            if differs == (old.family == new.family) or not (old.name and new.name):
                return Step(kind, words.format(new.name or old.name, old.name))
    return None


def _recodings(a: Array, b: Array) -> Iterator[Recoding]:
    """Yield the known changes that are near the fitted scale and shift, the nearest first, and then the fitted one."""
    fitted, fitted_shift = fit_lines(a, b, (0, 2, 3))
    near = []
    for old in codings_of(a):
        for new in known_codings(a.shape[1]):
            scale = new.scale / old.scale
            step = change_of_coding(old, new)
            if step is not None and np.all(np.abs(scale - fitted) <= _NEAR * np.abs(scale)):
                shift = new.shift - scale * old.shift
                near.append((round(float(np.abs(a * scale + shift - b).max()), 3), step, scale, shift))
    yield from (each[1:] for each in sorted(near, key=lambda each: each[0]))
    if np.all(fitted > 0):
        yield None, fitted, fitted_shift


def _describe_recoding(a: Array, b: Array, recoding: Recoding) -> Step:
    """Describe a change of the coding; a fitted one as a mean and std if the coding before or now is known."""
    step, scale, shift = recoding
    if step is not None:
        return step
    before, after = (next(iter(codings_of(each)), None) for each in (a, b))
    was_centered, is_centered = _is_centered(a), _is_centered(b)
    if after is not None and after.family != "normalized" and was_centered and not is_centered:
        statistics = _mean_and_std(after.scale / scale, (after.shift - shift) / scale)
        return Step("not normalised", f"not normalized ({statistics})")
    if before is not None and (before.family != "normalized" or has_levels(before, a)):
        statistics = _mean_and_std(scale * before.scale, shift + scale * before.shift)
        if before.family == "normalized":
            return Step("other statistics", f"normalized with other statistics ({statistics}, not {before.name})")
        if is_centered:
            return Step("normalised", f"normalized ({statistics}){NOT_BEFORE}")
    words = f"scaled by {format_numbers(scale)}"
    if np.abs(shift).max() > 1e-6 * np.abs(b).max():
        words += f" and shifted by {format_numbers(shift)}"
    if was_centered and is_centered:
        return Step("other statistics", f"normalized with other statistics: {words} per channel")
    return Step("scale", words)


def _mean_and_std(scale: Array, shift: Array) -> str:
    """Return the mean and std, for pixels in 0..1, that give a scale and shift of pixels."""
    return f"mean {format_numbers(-shift / scale)}, std {format_numbers(1 / scale)}"


def _is_centered(values: Array) -> bool:
    return bool(values.min() < -_OVERSHOOT * values.max())


RECODED = Cause(
    _recodings,
    lambda a, p: a * p[1] + p[2],
    _describe_recoding,
    lambda p: 0 if p[0] is not None else 2 * int(p[1].size),
)
