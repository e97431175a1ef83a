"""Compares an array with the locked one within the tolerance of `torch.testing.assert_close`."""

from __future__ import annotations

import numpy as np
import torch

from pytest_evalmode.lock.causes.cause import Array, difference
from pytest_evalmode.lock.lock_file import Entry

Tolerance = tuple[float | None, float | None]
"""The relative and the absolute one; None for the default of `assert_close`, or for exact inputs."""


def find_difference(
    locked: Entry, entry: Entry, old: Array | None, new: Array | None, tolerance: Tolerance
) -> tuple[str, str] | None:
    """Describe how an array with other values differs from the locked one; None within the tolerance.

    `old` and `new` are all values; None if they are not stored. The second description has the words of `assert_close`.
    """
    for name in ("shape", "samples", "dtype"):
        if locked[name] != entry[name]:
            words = f"{name} {locked[name]} -> {entry[name]}"
            return words, words
    if old is None or new is None or old.shape != new.shape:
        return "values differ; not all are stored, so they cannot be compared within a tolerance", ""
    if new.dtype.kind not in "biufc" or entry["dtype"] == "text":
        return "values differ", ""
    expected, actual = (torch.from_numpy(np.array(values)) for values in (old, new))
    if entry["dtype"] == "bfloat16":  # which NumPy does not have
        expected, actual = expected.bfloat16(), actual.bfloat16()
    try:
        torch.testing.assert_close(actual, expected, rtol=tolerance[0], atol=tolerance[1], equal_nan=True)
    except AssertionError as error:
        return describe_values(old, new), " ".join(str(error).split())
    return None


def describe_values(old: Array, new: Array) -> str:
    """Say how many values differ, by how much and where, and in how many samples the decision differs."""
    if old.size == 1:
        return f"{old.reshape(-1)[0]:.6g} -> {new.reshape(-1)[0]:.6g}"
    change = difference(old, new)
    at = tuple(int(i) for i in np.unravel_index(int(change.argmax()), change.shape))
    words = f"{int((change != 0).sum())} of {change.size} values differ, by up to {change[at]:.3g} at {at}"
    if old.ndim == 2 and old.shape[1] > 1 and old.dtype.kind == "f":
        flipped = int((old.argmax(1) != new.argmax(1)).sum())
        words += f"; the argmax differs in {flipped} of {len(old)} samples" if flipped else ""
    return words
