"""The same values in another order."""

from __future__ import annotations

from itertools import permutations

from pytest_evalmode.lock.checkpoint.unexplained import Case, Cause, numel
from pytest_evalmode.lock.model_entry import digest, unordered
from pytest_evalmode.rules.wording import first_and_more, plural


def exchanged(case: Case) -> Cause | None:
    """Tensors that hold, bit by bit, what another one held: layers swapped, query for key."""
    held = {(case.was[name].dtype, case.was[name].shape, case.was[name].digest): name for name in case.changed}
    found: dict[str, str] = {}
    for name in case.changed:
        line = case.line(name)
        other = held.get((line.dtype, line.shape, line.digest))
        if other is not None:
            found[name] = other
    if not found:
        return None
    case.explained(found)
    new, old = next(iter(found.items()))
    verb = "holds" if len(found) == 1 else "hold"
    words = f"{plural(len(found), 'tensor')} {verb} what another one held ({new} that of {old})"
    return Cause("exchanged", words, tuple(found))


def rearranged(case: Case) -> Cause | None:
    """The same values in another order: dimensions exchanged, one reversed, reshaped, or shuffled."""
    found = {name: how for name in case.changed if (how := _how(case, name)) is not None}
    if not found:
        return None
    case.explained(found)
    ways = list(dict.fromkeys(found.values()))
    shown = f"{first_and_more(list(found))} {'was' if len(found) == 1 else 'were'} {' or '.join(ways[:3])}"
    return Cause("permuted", shown, tuple(found))


def _how(case: Case, name: str) -> str | None:
    was, now = case.was[name], case.line(name)
    if was.dtype != now.dtype or (sorted(was.shape) != sorted(now.shape) and numel(was) != numel(now)):
        return None
    if was.digest == now.digest:
        return f"reshaped from {was.shape} to {now.shape}"
    live = case.live(name).detach()
    if was.unordered and unordered(live) != was.unordered:
        return None
    if 1 < live.dim() <= 4:
        for order in permutations(range(live.dim())):
            if tuple(live.shape[i] for i in order) == was.shape and digest(live.permute(order)) == was.digest:
                # The live tensor, permuted so, is the locked one: it was permuted the other way.
                back = tuple(order.index(i) for i in range(live.dim()))
                return "transposed" if live.dim() == 2 else f"permuted (dimensions {back})"
    if live.shape == was.shape:
        for dim in range(live.dim()):
            if digest(live.flip(dim)) == was.digest:
                return f"reversed along dimension {dim}"
    return "given other places for the same values" if was.unordered else None
