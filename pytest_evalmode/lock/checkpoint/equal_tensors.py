"""Causes that are proven by digests of all values: tensors that equal another one, and values in another order."""

from __future__ import annotations

from collections import Counter, defaultdict
from itertools import permutations
from math import prod

import numpy as np
from torch import Tensor

from pytest_evalmode.lock.causes.cause import Step
from pytest_evalmode.lock.checkpoint.differences import Cause, ChangedTensor, Differences, different_parts
from pytest_evalmode.lock.model_entry import compute_digest, sample_grid, spaced
from pytest_evalmode.rules.wording import plural


def find_copied(diff: Differences) -> Cause | None:
    """Find tensors that hold the locked values of another tensor: swapped layers, or one that was loaded twice."""
    by_content = defaultdict(list)
    for name, record in diff.locked.items():
        by_content[record.dtype, record.shape, record.digest].append(name)
    sources: dict[str, list[str]] = {}
    for name, tensor in diff.changed.items():
        equal = by_content.get((tensor.now.dtype, tensor.now.shape, tensor.now.digest))
        if equal and tensor.constant is None:  # zeros equal the zeros of any other tensor
            sources[name] = equal
    if not sources:
        return None
    diff.mark_explained(sources)
    # Of several equal tensors, the one in the module from which most others came is the likely source.
    pairs = Counter(different_parts(name, other) for name, others in sources.items() for other in others)
    layers = Counter(
        max((different_parts(name, other) for other in others), key=lambda pair: pairs[pair])
        for name, others in sources.items()
    )
    parts = []
    for (new, old), count in layers.items():
        is_exchanged = (old, new) in layers
        if not is_exchanged or new < old:
            how = f"{new} and {old} were exchanged" if is_exchanged else f"{new} holds the values of {old}"
            tensors = plural(count + layers[old, new], "tensor")
            parts.append(how + (f" ({tensors})" if count > 1 else ""))
    words = "; ".join(parts[:3]) + (f" (and {len(parts) - 3} more)" if len(parts) > 3 else "")
    return Cause("exchanged", words, tuple(sources))


def find_moved(diff: Differences) -> list[Cause]:
    """Find tensors that have the same values in another order, or more or fewer rows."""
    return diff.explain_each(lambda tensor: _find_resize(tensor) or _find_order(tensor))


def _find_resize(tensor: ChangedTensor) -> Step | None:
    """Recognize more or fewer rows where the others are the same, such as an embedding with new tokens."""
    was, now, sample = tensor.was.shape, tensor.now.shape, tensor.sample
    if sample is None or len(was) < 2 or len(was) != len(now) or was[1:] != now[1:] or was[0] == now[0]:
        return None
    common = min(was[0], now[0])
    rows = [row for row in spaced(was[0], len(sample)) if row < common]
    values = sample_grid(tensor.tensor[rows], *sample.shape) if len(rows) > 1 else None
    if values is None or not np.array_equal(values, sample[: len(rows)]):
        return None
    value = f"{was[0]} to {now[0]} rows, and the first {common} are the same"
    return Step("resized", "{names} went from {}", {"value": value})


def _find_order(tensor: ChangedTensor) -> Step | None:
    """Recognize values that were reshaped, permuted, or reversed along a dimension."""
    was, now, sample = tensor.was, tensor.tensor.detach(), tensor.sample
    if was.dtype != tensor.now.dtype or prod(was.shape) != now.numel():
        return None
    if was.digest == tensor.now.digest:
        return _moved(f"reshaped from {was.shape} to {tensor.now.shape}")

    def is_locked(moved: Tensor) -> bool:
        if sample is None or moved.shape != was.shape:
            return False
        values = sample_grid(moved, *sample.shape)
        return values is not None and np.array_equal(values, sample) and compute_digest(moved) == was.digest

    dims = range(now.dim())
    for order in permutations(dims) if 1 < now.dim() <= 4 else ():
        if is_locked(now.permute(order)):
            # Permuting the current tensor gives the locked one, so the message names the inverse permutation.
            back = tuple(order.index(i) for i in dims)
            return _moved("transposed" if now.dim() == 2 else f"permuted (dimensions {back})")
    for dim in dims:
        if is_locked(now.flip(dim)):
            colors = " (the order of 3 input channels: RGB for BGR?)" if dim == 1 and was.shape[1] == 3 else ""
            return _moved(f"reversed along dimension {dim}{colors}")
    return None


def _moved(how: str) -> Step:
    return Step("permuted", "{names} {was} {}", {"value": how})
