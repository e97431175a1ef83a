"""Common pixel codings: value ranges, and normalization with the mean and std of well-known datasets.

A coding turns a pixel in 0..1 into `scale * pixel + shift`, with one scale and shift per channel.
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
    """How a pixel in 0..1 becomes a value: `scale * pixel + shift`."""

    family: str  # what was done to the pixels: unit (nothing), bytes, normalized, ...
    name: str  # of the statistics, such as "ImageNet"; empty if there are none
    scale: Array  # float64, shape (channels,)
    shift: Array  # float64, shape (channels,)

    def to_pixels(self, values: Array) -> Array:
        """Decode values to pixels.

        Args:
            values: Values in this coding, shape (samples, channels, rows, columns).

        Returns:
            The pixels: float64, same shape, in 0..1 if `values` really have this coding.
        """
        return np.asarray((values - _per_channel(self.shift)) / _per_channel(self.scale))


def known_codings(channels: int, channel_order: Sequence[int] | None = None) -> list[Coding]:
    """Return the codings of images with this number of channels, the simplest first.

    Args:
        channels: The number of channels.
        channel_order: The order of the channels if they were swapped after coding; the statistics follow it.
    """
    if channel_order is not None:
        order = list(channel_order)
        return [each._replace(scale=each.scale[order], shift=each.shift[order]) for each in known_codings(channels)]
    ones = np.ones(channels)
    codings = [
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
        codings += [
            Coding("normalized", name, 1 / std, -mean / std),
            Coding("normalized twice", name, 1 / std**2, -mean / std**2 - mean / std),
            Coding("not divided", name, 255 / std, -mean / std),
            Coding("divided twice", name, 1 / (255 * std), -mean / std),
            Coding("mean only", name, ones, -mean),
            Coding("std only", name, 1 / std, 0 * ones),
        ]
    return codings


def is_plausible(coding: Coding, values: Array) -> bool:
    """Return whether values can be pixels in this coding; a small overshoot, as of a resampling filter, is allowed.

    Args:
        coding: The coding to try.
        values: Images of shape (samples, channels, rows, columns), any range.
    """
    pixels = coding.to_pixels(values)
    low, high = float(pixels.min()), float(pixels.max())
    return low >= -0.12 * max(high, 0) and high <= 1.12 and (high > 1.5 / 255 or high == low)


def has_8bit_levels(coding: Coding, values: Array) -> bool:
    """Return whether values are 8-bit levels in this coding, that is, multiples of 1/255 after decoding.

    Args:
        coding: The coding to try.
        values: Images of shape (samples, channels, rows, columns), any range.
    """
    levels = coding.to_pixels(values) * 255
    return bool(np.abs(levels - np.round(levels)).max() < 2e-3 and levels.min() > -0.5 and levels.max() < 255.5)


def coding_of(values: Array, channel_order: Sequence[int] | None = None) -> Coding | None:
    """Return the coding that gives images 8-bit levels, else the first that fits their range, else None.

    Args:
        values: Images of shape (samples, channels, rows, columns), any range.
        channel_order: The order of the channels if they were swapped after coding.
    """
    simple = [
        coding
        for coding in known_codings(values.shape[1], channel_order)
        if coding.family in ("unit", "bytes", "normalized") and is_plausible(coding, values)
    ]
    return next((each for each in simple if has_8bit_levels(each, values)), simple[0] if simple else None)


def _per_channel(values: Array) -> Array:
    return values.reshape(1, -1, 1, 1)
