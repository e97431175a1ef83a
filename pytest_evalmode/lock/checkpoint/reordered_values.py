"""The same values in another order."""

from __future__ import annotations

from itertools import permutations

from pytest_evalmode.lock.checkpoint.unexplained import Cause, Unexplained, numel
from pytest_evalmode.lock.model_entry import compute_digest, compute_unordered_digest
from pytest_evalmode.rules.wording import first_and_more, plural


def find_exchanged(case: Unexplained) -> Cause | None:
    """Tensors that hold, bit by bit, what another one held: layers swapped, query for key."""
    held = {(case.locked[name].dtype, case.locked[name].shape, case.locked[name].digest): name for name in case.changed}
    found: dict[str, str] = {}
    for name in case.changed:
        line = case.current_record(name)
        other = held.get((line.dtype, line.shape, line.digest))
        if other is not None:
            found[name] = other
    if not found:
        return None
    case.mark_explained(found)
    new, old = next(iter(found.items()))
    verb = "holds" if len(found) == 1 else "hold"
    words = f"{plural(len(found), 'tensor')} {verb} what another one held ({new} that of {old})"
    return Cause("exchanged", words, tuple(found))


def find_rearranged(case: Unexplained) -> Cause | None:
    """The same values in another order: dimensions exchanged, one reversed, reshaped, or shuffled."""
    found = {name: how for name in case.changed if (how := _how(case, name)) is not None}
    if not found:
        return None
    case.mark_explained(found)
    ways = list(dict.fromkeys(found.values()))
    shown = f"{first_and_more(list(found))} {'was' if len(found) == 1 else 'were'} {' or '.join(ways[:3])}"
    return Cause("permuted", shown, tuple(found))


def _how(case: Unexplained, name: str) -> str | None:
    was, now = case.locked[name], case.current_record(name)
    if was.dtype != now.dtype or (sorted(was.shape) != sorted(now.shape) and numel(was) != numel(now)):
        return None
    if was.digest == now.digest:
        return f"reshaped from {was.shape} to {now.shape}"
    live = case.current_tensor(name).detach()
    if was.unordered_digest and compute_unordered_digest(live) != was.unordered_digest:
        return None
    if 1 < live.dim() <= 4:
        for order in permutations(range(live.dim())):
            if tuple(live.shape[i] for i in order) == was.shape and compute_digest(live.permute(order)) == was.digest:
                # The live tensor, permuted so, is the locked one: it was permuted the other way.
                back = tuple(order.index(i) for i in range(live.dim()))
                return "transposed" if live.dim() == 2 else f"permuted (dimensions {back})"
    if live.shape == was.shape:
        for dim in range(live.dim()):
            if compute_digest(live.flip(dim)) == was.digest:
                return f"reversed along dimension {dim}"
    return "given other places for the same values" if was.unordered_digest else None
