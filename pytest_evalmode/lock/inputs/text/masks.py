"""Changes of attention masks."""

from __future__ import annotations

import numpy as np

from pytest_evalmode.lock.inputs import sample_order
from pytest_evalmode.lock.inputs.diagnosis import Array, Diagnosis, Step, diagnosis_of_steps
from pytest_evalmode.lock.inputs.text.padding import find_padding_changes
from pytest_evalmode.lock.inputs.text.truncation import truncation_step


def explain_masks(was: Array, now: Array) -> Diagnosis | None:
    """Return the diagnosis of attention masks, if a known cause explains the difference.

    Args:
        was: The locked mask: an integer array of shape (texts, tokens), 1 for text and 0 for padding.
        now: The current mask, likewise; both sizes may differ.
    """
    if was.shape == now.shape and np.array_equal(was, 1 - now):
        return diagnosis_of_steps("tokens", [Step("inverted", "marked the opposite way (padding instead of text)")])
    holes = _find_holes(now)
    if holes or _find_holes(was):
        return _explain_holes(was, now, holes)
    steps: list[Step] = []
    old, new = (each.sum(1).tolist() for each in (was, now))
    if len(old) != len(new) or (old != new and sorted(old) == sorted(new)):
        index = sample_order.match_samples(old, new)
        if index is None:
            return None
        steps += sample_order.order_steps(len(old), index)
    elif old != new:
        most = max(new)
        shift = next((b - a for a, b in zip(old, new, strict=True) if b < most), new[0] - old[0])
        cut = [i for i, (a, b) in enumerate(zip(old, new, strict=True)) if a + shift != b]
        if any(new[i] != most or old[i] + shift < most for i in cut):
            return None
        if shift:
            words = f"{abs(shift)} {'more' if shift > 0 else 'fewer'} per text according to the mask"
            steps.append(Step("length", words, {"tokens": shift}))
        if cut:
            steps.append(truncation_step(f"cut to {most} tokens", "according to the mask", cut, len(old), most))
    padding_steps = find_padding_changes(was, now, (0, 0), bool(steps))
    if padding_steps is None:
        return None
    return diagnosis_of_steps("tokens", steps + padding_steps) if steps or padding_steps else None


def _find_holes(mask: Array) -> list[tuple[int, int]]:
    """Return the text and token of each 0 that has a 1 on both sides."""
    before, after = np.maximum.accumulate(mask, 1), np.maximum.accumulate(mask[:, ::-1], 1)[:, ::-1]
    return [(int(i), int(j)) for i, j in np.argwhere((mask == 0) & (before == 1) & (after == 1))]


def _explain_holes(was: Array, now: Array, holes: list[tuple[int, int]]) -> Diagnosis | None:
    """Recognize tokens inside texts that are masked now; other texts must be as before, or masked in other places."""
    if was.shape != now.shape or np.any(now > was) or not holes:
        return None
    masked = np.argwhere(was > now).tolist()
    inside = [hole for hole in holes if list(hole) in masked]
    if not inside:
        return None
    more = f", {len(masked) - len(inside)} at an end" if len(masked) > len(inside) else ""
    first = f"first: text {inside[0][0]}, token {inside[0][1]}"
    words = f"masked in {len(masked)} more place{'s' * (len(masked) > 1)}: {len(inside)} inside a text ({first}){more}"
    return diagnosis_of_steps("tokens", [Step("hole", words, {"holes": tuple(inside[:32])})])
