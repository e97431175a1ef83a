"""Causes that reorder values: tensors that were exchanged, and tensors whose own values have another order."""

from __future__ import annotations

from itertools import permutations

from pytest_evalmode.lock.checkpoint.unexplained import Cause, Unexplained, numel
from pytest_evalmode.lock.model_entry import compute_digest, compute_unordered_digest
from pytest_evalmode.rules.wording import first_and_more, plural


def find_exchanged(diff: Unexplained) -> Cause | None:
    """Find tensors that equal another locked tensor bit by bit, such as swapped layers."""
    by_content = {
        (record.dtype, record.shape, record.digest): name
        for name, record in ((name, diff.locked[name]) for name in diff.changed)
    }
    sources: dict[str, str] = {}
    for name in diff.changed:
        record = diff.current_record(name)
        source = by_content.get((record.dtype, record.shape, record.digest))
        if source is not None:
            sources[name] = source
    if not sources:
        return None
    diff.mark_explained(sources)
    new, old = next(iter(sources.items()))
    verb = "has" if len(sources) == 1 else "have"
    words = f"{plural(len(sources), 'tensor')} {verb} the values of another tensor ({new} has those of {old})"
    return Cause("exchanged", words, tuple(sources))


def find_rearranged(diff: Unexplained) -> Cause | None:
    """Find tensors that have the same values in another order: permuted, reversed, reshaped, or shuffled."""
    orders = {name: order for name in diff.changed if (order := _describe_order(diff, name)) is not None}
    if not orders:
        return None
    diff.mark_explained(orders)
    was, has = ("was", "has") if len(orders) == 1 else ("were", "have")
    ways = " or ".join(list(dict.fromkeys(orders.values()))[:3]).format(was=was, has=has)
    return Cause("permuted", f"{first_and_more(list(orders))} {ways}", tuple(orders))


def _describe_order(diff: Unexplained, name: str) -> str | None:
    """Return how the values of one tensor were reordered, with `{was}` or `{has}` in place of the verb."""
    was, now = diff.locked[name], diff.current_record(name)
    if was.dtype != now.dtype or (sorted(was.shape) != sorted(now.shape) and numel(was) != numel(now)):
        return None
    if was.digest == now.digest:
        return f"{{was}} reshaped from {was.shape} to {now.shape}"
    tensor = diff.current_tensor(name).detach()
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
                return f"{{was}} reversed along dimension {dim}"
    return "{has} the same values in a different order" if was.unordered_digest else None
