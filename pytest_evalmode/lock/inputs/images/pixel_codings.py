"""The codings of a pixel that are in use: ranges, and the mean and std that pipelines normalise with.

A coding takes a pixel in 0..1 to `scale * pixel + shift`, a channel each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pytest_evalmode.lock.inputs.diagnosis import Array

STATISTICS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "ImageNet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "CLIP": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "Inception (0.5/0.5)": ((0.5,), (0.5,)),
    "CIFAR-10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "CIFAR-10 (std 0.2023)": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "CIFAR-100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    "MNIST": ((0.1307,), (0.3081,)),
    "Caffe (BGR)": ((103.939 / 255, 116.779 / 255, 123.68 / 255), (1 / 255,)),
}


class Coding(NamedTuple):
    """How pixels in 0..1 are written."""

    family: str  # unit, bytes, normalised, ...: what was done to the pixels
    name: str  # of the statistics; empty if there are none
    scale: Array
    shift: Array

    def to_pixels(self, values: Array) -> Array:
        """Values in this coding as pixels in 0..1; the channels are the second axis."""
        return np.asarray((values - _column(self.shift)) / _column(self.scale))

    def values(self, pixels: Array) -> Array:
        return np.asarray(pixels * _column(self.scale) + _column(self.shift))


def possessive(name: str) -> str:
    """`ImageNet's`, and `Inception's (0.5/0.5)`."""
    who, _, what = name.partition(" (")
    return f"{who}'s ({what}" if what else f"{who}'s"


def known_codings(channels: int, order: Sequence[int] | None = None) -> list[Coding]:
    """Those for images of so many channels, plain ones first; `order` is that of the channels if they were swapped."""
    if order is not None:
        picked = list(order)
        return [each._replace(scale=each.scale[picked], shift=each.shift[picked]) for each in known_codings(channels)]
    ones = np.ones(channels)
    found = [
        Coding("unit", "", ones, 0 * ones),
        Coding("bytes", "", 255 * ones, 0 * ones),
        Coding("divided", "", ones / 255, 0 * ones),
        Coding("inverted", "", -ones, ones),
        Coding("inverted bytes", "", -255 * ones, 255 * ones),
    ]
    for name, statistics in STATISTICS.items():
        if len(statistics[0]) not in (1, channels):
            continue
        mean, std = (np.broadcast_to(each, channels).astype(float) for each in statistics)
        found += [
            Coding("normalised", name, 1 / std, -mean / std),
            Coding("twice", name, 1 / std**2, -mean / std**2 - mean / std),
            Coding("undivided", name, 255 / std, -mean / std),
            Coding("again divided", name, 1 / (255 * std), -mean / std),
            Coding("mean only", name, ones, -mean),
            Coding("std only", name, 1 / std, 0 * ones),
        ]
    return found


def is_plausible(coding: Coding, values: Array) -> bool:
    """Whether these values can be pixels so coded; a filter that overshoots is allowed for."""
    pixels = coding.to_pixels(values)
    low, high = float(pixels.min()), float(pixels.max())
    return low >= -0.12 * max(high, 0) and high <= 1.12 and (high > 1.5 / 255 or high == low)


def has_8bit_levels(coding: Coding, values: Array) -> bool:
    """Whether the values are 256 levels in this coding: pixels that were once 8-bit."""
    levels = coding.to_pixels(values) * 255
    return bool(np.abs(levels - np.round(levels)).max() < 2e-3 and levels.min() > -0.5 and levels.max() < 255.5)


def coding_of(values: Array, order: Sequence[int] | None = None) -> Coding | None:
    """The coding of these values, if 8-bit levels or, failing those, the range tell it."""
    held = [coding for coding in known_codings(values.shape[1], order) if is_plausible(coding, values)]
    simple = [coding for coding in held if coding.family in ("unit", "bytes", "normalised")]
    return next((each for each in simple if has_8bit_levels(each, values)), simple[0] if simple else None)


def _column(values: Array) -> Array:
    return values.reshape(1, -1, 1, 1)
