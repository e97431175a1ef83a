"""Causes that merge modules: folded batch norms, and adapters that were added or merged."""

from __future__ import annotations

import numpy as np

from pytest_evalmode.lock.checkpoint.unexplained import RUNNING_STATISTICS, Cause, Unexplained
from pytest_evalmode.rules.wording import plural


def find_folded_norms(diff: Unexplained) -> Cause | None:
    """Find missing batch norms that were folded into the layers before them."""
    norms = [name.removesuffix(".running_var") for name in diff.missing if name.endswith(".running_var")]
    norm_tensors = {f"{norm}.{part}" for norm in norms for part in ("weight", "bias", *RUNNING_STATISTICS)}
    weights = [name for name in diff.changed if len(diff.locked[name].shape) > 1]
    biases = [name for name in (*diff.changed, *diff.added) if name.rpartition(".")[2] == "bias"]
    if not norms or not set(diff.missing) <= norm_tensors or not weights or len(weights) > len(norms):
        return None
    owners = {name.rpartition(".")[0] for name in weights}
    if not all(name.rpartition(".")[0] in owners for name in biases):
        return None
    diff.mark_explained([*weights, *(name for name in biases if name in diff.changed)])
    diff.missing = []
    diff.added = [name for name in diff.added if name not in biases]
    return Cause("folded", f"{plural(len(norms), 'batch norm')} folded into the preceding layers", tuple(weights))


def find_adapter(diff: Unexplained) -> Cause | None:
    """Find the tensors of an adapter that was added to the model."""
    adapters = [name for name in diff.added if "lora_" in name or "adapter" in name]
    if not adapters:
        return None
    diff.added = [name for name in diff.added if name not in adapters]
    kind = "a LoRA adapter" if any("lora_" in name for name in adapters) else "an adapter"
    return Cause("adapter", f"{kind} was added, not merged: {plural(len(adapters), 'tensor')}", tuple(adapters))


def find_merged_adapter(diff: Unexplained) -> Cause | None:
    """Find weights that changed by a low-rank matrix, as merging an adapter changes them."""
    ranks = {name: rank for name in diff.changed if (rank := _rank(diff, name))}
    if not ranks or len(ranks) != len(diff.changed):
        return None
    diff.mark_explained(list(ranks))
    words = f"an update of rank {max(ranks.values())} was merged into {plural(len(ranks), 'weight')} (a LoRA adapter)"
    return Cause("merged", words, tuple(ranks))


def _rank(diff: Unexplained, name: str) -> int:
    """Return the rank of the change of a matrix, or 0 if the rank is not low."""
    both = diff.sampled_values(name) if len(diff.locked[name].shape) == 2 else None
    if both is None or min(both[0].shape) < 8 or diff.current_record(name).dtype not in ("float32", "float64"):
        return 0
    old, new = (values.astype(float) for values in both)
    change = new - old
    # A sparse or constant change has a low rank too, but does not come from an adapter.
    if np.mean(change != 0) < 0.5 or not np.isfinite(change).all() or np.ptp(change) < 1e-3 * np.abs(change).max():
        return 0
    singular = np.linalg.svd(change, compute_uv=False)
    noise = 1e-6 * np.abs(new).max() * max(change.shape) ** 0.5
    rank = int((singular > max(noise, 1e-4 * singular[0])).sum())
    return rank if rank <= 0.75 * min(change.shape) else 0
