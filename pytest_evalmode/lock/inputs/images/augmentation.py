"""Random augmentation: each image was flipped, shifted or scaled in its own way."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from pytest_evalmode.lock.inputs.diagnosis import Array, Step
from pytest_evalmode.lock.inputs.images.geometry import format_pixels, overlap, try_turns

_MAX_SHIFT = 8  # in pixels
_WORDS = {"flip": "flipped", "rotation": "rotated", "shift": "shifted"}
_RANDOM = "as by a random augmentation"


def find_placement_per_image(a: Array, b: Array) -> list[Step] | None:
    """Find images that were flipped, rotated or shifted individually.

    Args:
        a: The locked images: float64, shape (samples, channels, rows, columns), any range.
        b: The current images, likewise.

    Returns:
        One step per kind of change, or None unless the steps explain every image that differs.
    """
    if len(a) < 2 or a.shape != b.shape:
        return None
    differ = [i for i in range(len(a)) if not np.array_equal(a[i], b[i], equal_nan=True)]
    words_by_kind: dict[str, list[str]] = {}
    for i in differ:
        steps = next(_try_placements(a[i : i + 1], b[i : i + 1]), None)
        if steps is None:
            return None
        for step in steps:
            words_by_kind.setdefault(step.kind, []).append(step.words)
    return [_summarize(kind, words, len(a)) for kind, words in words_by_kind.items()] or None


def _summarize(kind: str, words: list[str], n: int) -> Step:
    how = words[0] if len(set(words)) == 1 else f"{_WORDS[kind]} differently"
    return Step(kind, f"{how} in {len(words)} of {n} samples, {_RANDOM}", {"augmented": True})


def _try_placements(a: Array, b: Array) -> Iterator[list[Step]]:
    """Yield the steps that turn one image into another, bit by bit."""
    for steps, image in try_turns(a):
        if image.shape == b.shape and np.array_equal(image, b):
            yield steps
    for steps, image in list(try_turns(a))[:2]:
        for dy, dx in _SHIFTS:
            both = overlap(image, b, dy, dx)
            if both is not None and np.array_equal(*both) and np.ptp(both[0]):
                words = f"shifted by {format_pixels(-dy, 'down', 'up')} and {format_pixels(-dx, 'right', 'left')}"
                yield [*steps, Step("shift", words)]


_SHIFTS = sorted(
    ((y, x) for y in range(-_MAX_SHIFT, _MAX_SHIFT + 1) for x in range(-_MAX_SHIFT, _MAX_SHIFT + 1) if y or x),
    key=lambda shift: abs(shift[0]) + abs(shift[1]),
)


def find_scale_per_image(a: Array, b: Array, tolerance: float) -> tuple[Step, float] | None:
    """Find images whose values were scaled and shifted individually.

    Args:
        a: The locked images: float64, shape (samples, channels, rows, columns), any range.
        b: The current images, likewise.
        tolerance: The largest absolute difference in values of `b` that may remain.

    Returns:
        The step and the largest absolute difference that remains, or None.
    """
    if len(a) < 2 or a.shape != b.shape or np.abs(a - b).max() <= 2 * tolerance:
        return None
    axes = (1, 2, 3)
    mean_a, mean_b = a.mean(axes, keepdims=True), b.mean(axes, keepdims=True)
    spread = ((a - mean_a) ** 2).sum(axes, keepdims=True)
    scale = ((a - mean_a) * (b - mean_b)).sum(axes, keepdims=True) / np.where(spread > 0, spread, 1)
    residual = float(np.abs((a - mean_a) * scale + mean_b - b).max())
    if residual > tolerance or np.any(scale <= 0):
        return None
    details: dict[str, object] = {"scale": tuple(float(f"{value:.6g}") for value in scale.ravel()[:32])}
    if np.abs(mean_b).max() < 1e-3 and np.abs(b.std(axes) - 1).max() < 0.01:
        return Step("other statistics", "normalized with the mean and std of each image", details), residual
    low, high = b.min(axes), b.max(axes)
    if np.ptp(low) < tolerance and np.ptp(high) < tolerance:
        return Step("range", f"stretched per image to {low[0]:.4g}..{high[0]:.4g}", details), residual
    return Step("augmented", f"changed in brightness or contrast per image, {_RANDOM}", details), residual
