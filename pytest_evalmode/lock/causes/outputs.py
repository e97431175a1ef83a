"""What changed in outputs: scaled, permuted, logits for probabilities."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from pytest_evalmode.lock.causes import numbers, proof, statistics
from pytest_evalmode.lock.causes.cause import Array, Step, count_distinct
from pytest_evalmode.lock.causes.order import match_samples, sample_bytes

_MIN_VALUES = 8  # distinct values needed for any cause but percent


def describe_change(was: object, now: object) -> str | None:
    """Return what turns the locked outputs into those of this run, or None if that is not recognized."""
    old, new = np.asarray(was), np.asarray(now)
    if old.dtype.kind not in "biuf" or new.dtype.kind not in "biuf" or not old.size or not new.size:
        return None
    if old.shape == new.shape and not np.isfinite(new).all():
        broken = int((~np.isfinite(new)).sum())
        more = broken > int((~np.isfinite(old)).sum())
        return f"{broken} of {new.size} values {'is' if broken == 1 else 'are'} NaN or infinite" if more else None
    if not np.isfinite(old).all() or np.array_equal(old, new):
        return None
    if old.shape == new.shape and (rounding := proof.explain_rounding(old, new)) is not None:
        return rounding.words
    has_evidence = count_distinct(old) >= _MIN_VALUES
    proofs = proof.prove(_CAUSES if has_evidence else (numbers.KNOWN_LINES,), proof.Pair(old, new))
    steps = proof.simplest([*_prove_orders(old, new), *proofs] if has_evidence else proofs)
    return None if steps is None else " and ".join(step.words for step in steps)


def _prove_orders(old: Array, new: Array) -> Iterator[proof.Proof]:
    """Yield a proof for each axis along which the slices are the locked ones, in another order."""
    for axis in range(old.ndim if old.shape == new.shape else 0):
        index = match_samples(*(sample_bytes(np.moveaxis(each, axis, 0)) for each in (old, new)))
        if index is not None and sorted(index) == list(range(old.shape[axis])):
            what = "samples" if axis == 0 else "classes or columns" if axis == old.ndim - 1 else f"dimension {axis}"
            is_reverse = index == sorted(index)[::-1]
            words = f"{what} in {'reverse' if is_reverse else 'another'} order"
            yield proof.Proof((Step(f"order {axis}", words),), 0 if is_reverse else len(index))


_CAUSES = (*numbers.POINTWISE, *numbers.OF_CLASSES, *statistics.COLUMNS, statistics.COLUMN_ORDER)
