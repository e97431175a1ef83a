"""Causes that multiply values: pruning (some values become 0), and scaling by one factor per tensor."""

from __future__ import annotations

import numpy as np

from pytest_evalmode.lock.checkpoint.unexplained import Cause, Unexplained
from pytest_evalmode.rules.wording import first_and_more, plural

_MIN_VALUES = 8  # needed to distinguish a factor from chance


def find_pruning(diff: Unexplained) -> Cause | None:
    """Find weights in which some values became 0 and the others are unchanged."""
    zero_shares: dict[str, float] = {}
    for name in diff.changed:
        both = diff.sampled_values(name)
        if both is None or len(diff.locked[name].shape) < 2:
            continue
        old, new = both
        share = float((diff.current_tensor(name) == 0).double().mean())
        if share < 1 and np.array_equal(np.where(new == 0, 0, old), new) and np.any((new == 0) & (old != 0)):
            zero_shares[name] = share
    if not zero_shares:
        return None
    diff.mark_explained(zero_shares)
    least, most = min(zero_shares.values()), max(zero_shares.values())
    part = f"{least:.0%}" if most - least < 0.005 else f"{least:.0%} to {most:.0%}"
    return Cause(
        "pruned", f"pruned: {part} of the values of {plural(len(zero_shares), 'weight')} are 0", tuple(zero_shares)
    )


def find_scaling(diff: Unexplained) -> Cause | None:
    """Find tensors that were multiplied by one factor each."""
    factor_of = {name: factor for name in diff.changed if (factor := _factor(diff, name)) is not None}
    if not factor_of:
        return None
    diff.mark_explained(factor_of)
    distinct = list(dict.fromkeys(f"{factor:.4g}" for factor in factor_of.values()))
    shown = ", ".join(distinct[:3]) + (", ..." if len(distinct) > 3 else "")
    verb = "was" if len(factor_of) == 1 else "were"
    return Cause("scaled", f"{first_and_more(list(factor_of))} {verb} multiplied by {shown}", tuple(factor_of))


def _factor(diff: Unexplained, name: str) -> float | None:
    both = diff.sampled_values(name) if diff.current_record(name).dtype in ("float32", "float64") else None
    if both is None or both[0].size < _MIN_VALUES:
        return None
    old, new = (values.astype(float) for values in both)
    used = old != 0
    if used.sum() < _MIN_VALUES or np.unique(old[used]).size < _MIN_VALUES or np.any(new[~used] != 0):
        return None
    factor = float(np.median(new[used] / old[used]))
    if factor in (0.0, 1.0) or not np.allclose(new, old * factor, rtol=1e-5, atol=0):
        return None
    return factor
