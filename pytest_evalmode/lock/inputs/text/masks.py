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
    steps += find_padding_changes(was, now, (0, 0), bool(steps))
    return diagnosis_of_steps("tokens", steps) if steps else None
