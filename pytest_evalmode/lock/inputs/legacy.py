"""Functions that the callers in `lock.arrays` use until they call `Selection` and `diagnose` with digests."""

from __future__ import annotations

from collections.abc import Sequence

from pytest_evalmode.lock.inputs import labels, numbers, proof
from pytest_evalmode.lock.inputs.batch_arrays import arrays
from pytest_evalmode.lock.inputs.diagnosis import Array, Diagnosis, diagnosis_of_steps
from pytest_evalmode.lock.inputs.samples import center_crop, choose_samples


def first_samples(batch: object, limit: int = 1_000_000) -> dict[str, Array]:
    """Return samples of each array of a batch that fit in a number of bytes together."""
    whole = arrays(batch)
    samples: dict[str, Array] = {}
    left = limit
    for i, name in enumerate(sorted(whole, key=lambda name: whole[name].nbytes)):
        samples[name], _ = choose_samples(whole[name], left // (len(whole) - i))
        left -= samples[name].nbytes
    return {name: samples[name] for name in whole}


def trim_samples(array: Array, limit: int) -> Array:
    """Return the first samples of an array that fit, cropped to the center if they are large images."""
    if array.nbytes <= limit and len(array) <= 64:
        return array
    cropped = array[(slice(None), *center_crop(array.shape[1:], limit))]
    return cropped[: min(64, limit // max(1, cropped[:1].nbytes))]


def compare_classes(was: Sequence[int], now: Sequence[int], first: Array, first_now: Array) -> Diagnosis | None:
    """Return a diagnosis if the classes of labels were renumbered."""
    if len(was) != len(now) or len(dict(zip(was, now, strict=True))) != len(set(zip(was, now, strict=True))):
        return None
    n = min(len(first), len(first_now))
    steps = proof.simplest(proof.prove((*labels.CAUSES, *numbers.POINTWISE), proof.Pair(first[:n], first_now[:n])))
    return None if steps is None else diagnosis_of_steps("labels" if steps[0].kind == "classes" else "values", steps)
