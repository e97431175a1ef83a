"""Causes that are proven by digests of all values: tensors that equal another one, and values in another order."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from itertools import permutations
from math import prod

from pytest_evalmode.lock.checkpoint.differences import Cause, ChangedTensor, Differences
from pytest_evalmode.lock.checkpoint.initial_values import find_constant
from pytest_evalmode.lock.model_entry import compute_digest, compute_unordered_digest
from pytest_evalmode.rules.wording import first_and_more, plural


def find_copied(diff: Differences) -> Cause | None:
    """Find tensors that hold the locked values of another tensor: swapped layers, or one that was loaded twice."""
    by_content = defaultdict(list)
    for name, record in diff.locked.items():
        by_content[record.dtype, record.shape, record.digest].append(name)
    sources: dict[str, list[str]] = {}
    for name, tensor in diff.changed.items():
        equal = [other for other in by_content[tensor.now.dtype, tensor.now.shape, tensor.now.digest] if other != name]
        if equal and find_constant(tensor.current) is None:  # zeros equal the zeros of any other tensor
            sources[name] = equal
    if not sources:
        return None
    diff.mark_explained(sources)
    # Of several equal tensors, the one in the module from which most others came is the likely source.
    pairs = Counter((_differing(name, other)) for name, others in sources.items() for other in others)
    chosen = {name: max(others, key=lambda other: pairs[_differing(name, other)]) for name, others in sources.items()}
    return Cause("exchanged", _describe_copies(chosen), tuple(chosen))


def _differing(name: str, other: str) -> tuple[str, str]:
    """Return two names without the last parts that they share: the layers, for the same tensor of two layers."""
    a, b = name.split("."), other.split(".")
    while len(a) > 1 and len(b) > 1 and a[-1] == b[-1]:
        a.pop(), b.pop()
    return ".".join(a), ".".join(b)


def _describe_copies(sources: Mapping[str, str]) -> str:
    layers = Counter(_differing(name, other) for name, other in sources.items())
    parts = []
    for (new, old), count in layers.items():
        if (old, new) in layers and new > old:
            continue
        if (old, new) in layers:
            parts.append(f"{new} and {old} were exchanged" + (f" ({plural(2 * count, 'tensor')})" if count > 1 else ""))
        else:
            parts.append(f"{new} holds the values of {old}" + (f" ({plural(count, 'tensor')})" if count > 1 else ""))
    return "; ".join(parts[:3]) + (f" (and {len(parts) - 3} more)" if len(parts) > 3 else "")


def find_rearranged(diff: Differences) -> Cause | None:
    """Find tensors that have the same values in another order: permuted, reversed, reshaped, or shuffled."""
    orders = {name: order for name, tensor in diff.changed.items() if (order := _describe_order(tensor)) is not None}
    if not orders:
        return None
    diff.mark_explained(orders)
    was, has = ("was", "has") if len(orders) == 1 else ("were", "have")
    ways = " or ".join(list(dict.fromkeys(orders.values()))[:3]).format(was=was, has=has)
    return Cause("permuted", f"{first_and_more(list(orders))} {ways}", tuple(orders))


def _describe_order(changed: ChangedTensor) -> str | None:
    """Return how the values of one tensor were reordered, with `{was}` or `{has}` in place of the verb."""
    was, now, tensor = changed.was, changed.now, changed.tensor.detach()
    if was.dtype != now.dtype or prod(was.shape) != prod(now.shape):
        return None
    if was.digest == now.digest:
        return f"{{was}} reshaped from {was.shape} to {now.shape}"
    if was.unordered_digest and compute_unordered_digest(tensor) != was.unordered_digest:
        return None
    if 1 < tensor.dim() <= 4:
        for order in permutations(range(tensor.dim())):
            if (
                tuple(tensor.shape[i] for i in order) == was.shape
                and compute_digest(tensor.permute(order)) == was.digest
            ):
                # Permuting the current tensor gives the locked one, so the message names the inverse permutation.
                back = tuple(order.index(i) for i in range(tensor.dim()))
                return "{was} transposed" if tensor.dim() == 2 else f"{{was}} permuted (dimensions {back})"
    if tensor.shape == was.shape:
        for dim in range(tensor.dim()):
            if compute_digest(tensor.flip(dim)) == was.digest:
                colors = " (the order of 3 input channels: RGB for BGR?)" if dim == 1 and was.shape[1] == 3 else ""
                return f"{{was}} reversed along dimension {dim}{colors}"
    return "{has} the same values in a different order" if was.unordered_digest else None
