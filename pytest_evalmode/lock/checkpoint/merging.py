"""What was folded or merged into the weights, or lies beside them."""

from __future__ import annotations

import numpy as np

from pytest_evalmode.lock.checkpoint.unexplained import RUNNING_STATISTICS, Cause, Unexplained
from pytest_evalmode.rules.wording import plural


def find_folded_norms(case: Unexplained) -> Cause | None:
    """Batch norms that are gone, and layers before them that changed."""
    norms = [name.removesuffix(".running_var") for name in case.missing if name.endswith(".running_var")]
    inside = {f"{norm}.{part}" for norm in norms for part in ("weight", "bias", *RUNNING_STATISTICS)}
    weights = [name for name in case.changed if len(case.locked[name].shape) > 1]
    biases = [name for name in (*case.changed, *case.added) if name.rpartition(".")[2] == "bias"]
    if not norms or not set(case.missing) <= inside or not weights or len(weights) > len(norms):
        return None
    owners = {name.rpartition(".")[0] for name in weights}
    if not all(name.rpartition(".")[0] in owners for name in biases):
        return None
    case.mark_explained([*weights, *(name for name in biases if name in case.changed)])
    case.missing = []
    case.added = [name for name in case.added if name not in biases]
    return Cause("folded", f"{plural(len(norms), 'batch norm')} folded into the layers before", tuple(weights))


def find_adapter(case: Unexplained) -> Cause | None:
    """An adapter that lies beside what it adapts."""
    adapters = [name for name in case.added if "lora_" in name or "adapter" in name]
    if not adapters:
        return None
    case.added = [name for name in case.added if name not in adapters]
    kind = "a LoRA adapter" if any("lora_" in name for name in adapters) else "an adapter"
    return Cause("adapter", f"{kind} was added, unmerged: {plural(len(adapters), 'tensor')}", tuple(adapters))


def find_merged_adapter(case: Unexplained) -> Cause | None:
    """Matrices that moved by one of low rank: what is left of an adapter that was merged."""
    ranks = {name: rank for name in case.changed if (rank := _rank(case, name))}
    if not ranks or len(ranks) != len(case.changed):
        return None
    case.mark_explained(list(ranks))
    words = f"an update of rank {max(ranks.values())} was merged into {plural(len(ranks), 'weight')} (a LoRA adapter)"
    return Cause("merged", words, tuple(ranks))


def _rank(case: Unexplained, name: str) -> int:
    """The rank of what was added to a matrix, where that is low; else 0."""
    both = case.sampled_values(name) if len(case.locked[name].shape) == 2 else None
    if both is None or min(both[0].shape) < 8 or case.current_record(name).dtype not in ("float32", "float64"):
        return 0
    old, new = (values.astype(float) for values in both)
    moved = new - old
    if np.mean(moved != 0) < 0.5 or not np.isfinite(moved).all() or np.ptp(moved) < 1e-3 * np.abs(moved).max():
        return 0
    singular = np.linalg.svd(moved, compute_uv=False)
    noise = 1e-6 * np.abs(new).max() * max(moved.shape) ** 0.5
    rank = int((singular > max(noise, 1e-4 * singular[0])).sum())
    return rank if rank <= 0.75 * min(moved.shape) else 0
