"""Each image changed otherwise than the next, as a random augmentation does that was left on."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from pytest_evalmode.lock.inputs.diagnosis import Array, Step
from pytest_evalmode.lock.inputs.images.geometry import format_pixels, overlap, try_turns

_FARTHEST = 8  # pixels that a shift is looked for
_WORDS = {"flip": "flipped", "rotation": "turned", "shift": "shifted"}
_WHY = "each otherwise, as a random augmentation does"


def find_placement_per_image(a: Array, b: Array) -> list[Step] | None:
    """Some images flipped, turned or shifted, each by itself; None unless that explains all."""
    if len(a) < 2 or a.shape != b.shape:
        return None
    differ = [i for i in range(len(a)) if not np.array_equal(a[i], b[i], equal_nan=True)]
    found: dict[str, list[str]] = {}
    for i in differ:
        steps = next(_ways(a[i : i + 1], b[i : i + 1]), None)
        if steps is None:
            return None
        for step in steps:
            found.setdefault(step.kind, []).append(step.words)
    return [_told(kind, words, len(a)) for kind, words in found.items()] or None


def _told(kind: str, words: list[str], n: int) -> Step:
    same = len(set(words)) == 1
    how = words[0] if same else _WORDS[kind]
    why = "as a random augmentation does" if same else _WHY
    return Step(kind, f"{how} in {len(words)} of {n} samples, {why}", {"augmented": True})


def _ways(a: Array, b: Array) -> Iterator[list[Step]]:
    """What makes `b` of `a`, bit by bit."""
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
    ((y, x) for y in range(-_FARTHEST, _FARTHEST + 1) for x in range(-_FARTHEST, _FARTHEST + 1) if y or x),
    key=lambda each: abs(each[0]) + abs(each[1]),
)


def find_scale_per_image(a: Array, b: Array, tolerance: float) -> tuple[Step, float] | None:
    """Each image scaled and shifted by numbers of its own."""
    if len(a) < 2 or a.shape != b.shape or np.abs(a - b).max() <= 2 * tolerance:
        return None
    axes = (1, 2, 3)
    mean_a, mean_b = a.mean(axes, keepdims=True), b.mean(axes, keepdims=True)
    spread = ((a - mean_a) ** 2).sum(axes, keepdims=True)
    scale = ((a - mean_a) * (b - mean_b)).sum(axes, keepdims=True) / np.where(spread > 0, spread, 1)
    left = float(np.abs((a - mean_a) * scale + mean_b - b).max())
    if left > tolerance or np.any(scale <= 0):
        return None
    details: dict[str, object] = {"scale": tuple(float(f"{each:.6g}") for each in scale.ravel()[:32])}
    if np.abs(mean_b).max() < 1e-3 and np.abs(b.std(axes) - 1).max() < 0.01:
        return Step("other statistics", "normalised each with its own mean and std", details), left
    low, high = b.min(axes), b.max(axes)
    if np.ptp(low) < tolerance and np.ptp(high) < tolerance:
        return Step("range", f"stretched each to {low[0]:.4g}..{high[0]:.4g}", details), left
    return Step("augmented", f"changed in brightness or contrast, {_WHY}", details), left
