"""Whether it was loaded at all, in part, from another checkpoint, and run in training mode since."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from pytest_evalmode.lock.checkpoint.initialization import find_initialization
from pytest_evalmode.lock.checkpoint.unexplained import (
    Cause,
    Unexplained,
    is_finite,
    is_other_checkpoint,
    is_running_statistic,
    largest_change,
    numel,
)
from pytest_evalmode.rules.wording import first_and_more, plural

_FEWEST = 32  # values that tell whether two tensors have anything in common


def find_updated_statistics(case: Unexplained) -> Cause | None:
    """Running statistics that moved, as a forward in training mode moves them, while nothing else did."""
    moved = [name for name in case.changed if is_running_statistic(name)]
    others = [name for name in case.changed if name not in moved]
    if (
        not moved
        or is_other_checkpoint(case, others)
        or all(find_initialization(case.current_tensor(name)) for name in moved)
    ):
        return None
    case.mark_explained(moved)
    far = largest_change(case, [name for name in moved if not name.endswith("num_batches_tracked")])
    batches = largest_change(case, [name for name in moved if name.endswith("num_batches_tracked")])
    norms = {name.rpartition(".")[0] for name in moved}
    only = "" if case.changed or case.missing or case.added else "only "
    words = f"{only}running statistics changed, of {plural(len(norms), 'batch norm')}"
    if batches:
        words += f": {plural(int(batches), 'forward')} in training mode since"
    if far:
        words += f", {'' if batches else 'moved '}by up to {far:.2g}"
    return Cause("statistics", words, tuple(moved))


def find_not_loaded(case: Unexplained) -> Cause | None:
    """What holds what it was born with: zeros, ones, or a default's draw."""
    fresh = {
        name: words
        for name in case.changed
        if (words := find_initialization(case.current_tensor(name))) and _is_new(case, name)
    }
    if is_other_checkpoint(case, [name for name in case.changed if name not in fresh]):
        # In another checkpoint a bias may well be zero.
        fresh = {name: words for name, words in fresh.items() if len(case.locked[name].shape) > 1}
    # Of a small tensor beside such a one, its bias say, the distribution cannot be told.
    owners = {name.rpartition(".")[0] for name in fresh}
    small = [
        name
        for name in case.changed
        if name.rpartition(".")[0] in owners and name not in fresh and numel(case.locked[name]) < 512
    ]
    if not fresh:
        return None
    names = [name for name in case.changed if name in fresh or name in small]
    whole = is_other_checkpoint(case, names) and len(names) >= 0.9 * len(case.changed)
    case.mark_explained(names)
    ways = ", ".join(dict.fromkeys(fresh.values()))
    if whole:
        case.mark_explained(list(case.changed))
        return Cause(
            "unloaded",
            f"no checkpoint was loaded: {plural(len(names), 'tensor')} at initial values ({ways})",
            tuple(names),
        )
    count = f"{len(names)} of {plural(len(case.locked), 'tensor')} not loaded"
    return Cause("partial", f"{count}: {first_and_more(names)}, at initial values ({ways})", tuple(names))


def _is_new(case: Unexplained, name: str) -> bool:
    """Whether a tensor has nothing of what was locked: weights that moved a little, or were scaled, still have."""
    both = case.sampled_values(name)
    if both is None or both[0].size < _FEWEST:
        return True
    old, new = (values.ravel().astype(float) for values in both)
    old, new = old - old.mean(), new - new.mean()
    norms = float(np.linalg.norm(old) * np.linalg.norm(new))
    return not norms or abs(float(old @ new)) / norms < 5 / old.size**0.5


def find_changed_values(case: Unexplained) -> Cause | None:
    """What nothing above explains: all, or some."""
    if not case.changed:
        return None
    names = tuple(case.changed)
    shapes = [name for name in names if case.locked[name].shape != case.current_record(name).shape]
    if is_other_checkpoint(case, names):
        case.changed = {}
        return Cause(
            "checkpoint",
            f"another checkpoint: {len(names)} of {plural(len(case.locked), 'tensor')} differ{_nearness(case, names)}",
            names,
        )
    case.changed = {}
    how = ""
    if shapes:
        how = f" (shape {case.locked[shapes[0]].shape} -> {case.current_record(shapes[0]).shape})"
    elif far := largest_change(case, names):
        how = f", by up to {far:.2g}"
    broken = [name for name in names if not is_finite(case.current.tensors[case.current_names[name]])]
    if broken:
        how += f"; {first_and_more(broken)} {'has' if len(broken) == 1 else 'have'} values that are not finite"
    return Cause(
        "values", f"{len(names)} of {plural(len(case.locked), 'tensor')} changed: {first_and_more(names)}{how}", names
    )


def _nearness(case: Unexplained, names: Iterable[str]) -> str:
    """How far another checkpoint lies, where it is near: the same one trained on, say."""
    pairs = [
        both for name in names if len(case.locked[name].shape) > 1 and (both := case.sampled_values(name)) is not None
    ]
    if not pairs:
        return ""
    old, new = (np.concatenate([each.ravel().astype(float) for each in side]) for side in zip(*pairs, strict=True))
    norm = float(np.linalg.norm(old))
    far = float(np.linalg.norm(new - old)) / norm if norm else float("inf")
    return f", but by {far:.1%} only: the same one, trained further?" if far < 0.5 else ""
