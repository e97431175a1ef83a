"""Differences that need no search: another layout or shape, NaN and infinity."""

from __future__ import annotations

import numpy as np

from pytest_evalmode.lock.inputs import image_layout
from pytest_evalmode.lock.inputs.diagnosis import Array, Diagnosis, Step, diagnosis_of_steps, format_numbers


def explain_layout(was: Array, now: Array) -> Diagnosis | None:
    """Recognize the same values with permuted axes or in another shape."""
    for steps, a, b in image_layout.pair_layouts(was, now):
        if steps and np.array_equal(a.images, b.images):
            return diagnosis_of_steps("images", steps)
    step = image_layout.find_reshape(was, now)
    return None if step is None else diagnosis_of_steps(noun_of(was, now), [step])


def explain_non_finite(was: Array, now: Array) -> Diagnosis | None:
    """Recognize NaN or infinite values that were filled in, or finite ones that became NaN or infinite."""
    if was.shape != now.shape or was.dtype.kind != "f" or now.dtype.kind != "f":
        return None
    non_finite = [~np.isfinite(each) for each in (was, now)]
    either = non_finite[0] | non_finite[1]
    if non_finite[0].any() == non_finite[1].any() or not np.array_equal(was[~either], now[~either]):
        return None
    count = int(either.sum())
    places = f"{count} place{'s' * (count > 1)}"
    if non_finite[1].any():
        words = f"set to NaN or infinity in {places}"
        return diagnosis_of_steps(noun_of(was, now), [Step("missing", words, {"not finite": count})])
    values = np.unique(now[either])
    by = f", by {format_numbers(values)}" if len(values) == 1 else ""
    words = f"replaced where they were NaN or infinite ({places}{by})"
    return diagnosis_of_steps(noun_of(was, now), [Step("missing", words, {"filled": count})])


def replace_non_finite(was: Array, now: Array) -> tuple[Array, Array] | None:
    """Replace NaN and infinity by 0; None unless both arrays have the same ones in the same places."""
    if was.dtype.kind != "f" and now.dtype.kind != "f":
        return was, now
    non_finite = [~np.isfinite(each) for each in (was, now)]
    if not any(each.any() for each in non_finite):
        return was, now
    if was.shape != now.shape or not np.array_equal(was[non_finite[0]], now[non_finite[1]], equal_nan=True):
        return None
    if not np.array_equal(non_finite[0], non_finite[1]):
        return None
    return np.where(non_finite[0], 0, was), np.where(non_finite[1], 0, now)


def noun_of(was: Array, now: Array) -> str:
    likeliest = [reading for array in (was, now) for reading in image_layout.read_as_images(array)[:1]]
    return "images" if any(reading.is_certain for reading in likeliest) else "values"
