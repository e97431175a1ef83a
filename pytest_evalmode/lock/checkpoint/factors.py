"""Values times a factor, or some of them times zero."""

from __future__ import annotations

import numpy as np

from pytest_evalmode.lock.checkpoint.unexplained import Cause, Unexplained
from pytest_evalmode.rules.wording import first_and_more, plural

_FEWEST = 8  # values that tell a factor from chance


def find_pruning(case: Unexplained) -> Cause | None:
    """Weights of which some became 0, and the others are as they were."""
    found: dict[str, float] = {}
    for name in case.changed:
        both = case.sampled_values(name)
        if both is None or len(case.locked[name].shape) < 2:
            continue
        old, new = both
        share = float((case.current_tensor(name) == 0).double().mean())
        if share < 1 and np.array_equal(np.where(new == 0, 0, old), new) and np.any((new == 0) & (old != 0)):
            found[name] = share
    if not found:
        return None
    case.mark_explained(found)
    least, most = min(found.values()), max(found.values())
    part = f"{least:.0%}" if most - least < 0.005 else f"{least:.0%} to {most:.0%}"
    return Cause("pruned", f"pruned: {part} of the values of {plural(len(found), 'weight')} are 0", tuple(found))


def find_scaling(case: Unexplained) -> Cause | None:
    """Tensors that are what they were times one number each."""
    found = {name: factor for name in case.changed if (factor := _factor(case, name)) is not None}
    if not found:
        return None
    case.mark_explained(found)
    factors = list(dict.fromkeys(f"{factor:.4g}" for factor in found.values()))
    shown = ", ".join(factors[:3]) + (", ..." if len(factors) > 3 else "")
    verb = "was" if len(found) == 1 else "were"
    return Cause("scaled", f"{first_and_more(list(found))} {verb} multiplied by {shown}", tuple(found))


def _factor(case: Unexplained, name: str) -> float | None:
    both = case.sampled_values(name) if case.current_record(name).dtype in ("float32", "float64") else None
    if both is None or both[0].size < _FEWEST:
        return None
    old, new = (values.astype(float) for values in both)
    used = old != 0
    if used.sum() < _FEWEST or np.unique(old[used]).size < _FEWEST or np.any(new[~used] != 0):
        return None
    factor = float(np.median(new[used] / old[used]))
    if factor in (0.0, 1.0) or not np.allclose(new, old * factor, rtol=1e-5, atol=0):
        return None
    return factor
