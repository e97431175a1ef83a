"""Causes around loading: no checkpoint, only a part of one, another one, or later forwards in training mode."""

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

_MIN_VALUES = 32  # needed to decide whether two tensors are correlated


def find_updated_statistics(diff: Unexplained) -> Cause | None:
    """Find running statistics that changed, as forwards in training mode change them."""
    changed = [name for name in diff.changed if is_running_statistic(name)]
    other = [name for name in diff.changed if name not in changed]
    if (
        not changed
        or is_other_checkpoint(diff, other)
        or all(find_initialization(diff.current_tensor(name)) for name in changed)
    ):
        return None
    diff.mark_explained(changed)
    far = largest_change(diff, [name for name in changed if not name.endswith("num_batches_tracked")])
    batches = largest_change(diff, [name for name in changed if name.endswith("num_batches_tracked")])
    norms = {name.rpartition(".")[0] for name in changed}
    only = "" if diff.changed or diff.missing or diff.added else "only "
    words = f"{only}the running statistics of {plural(len(norms), 'batch norm')} changed"
    if far:
        words += f", by up to {far:.2g}"
    if batches:
        words += f": {plural(int(batches), 'forward')} in training mode since"
    return Cause("statistics", words, tuple(changed))


def find_not_loaded(diff: Unexplained) -> Cause | None:
    """Find tensors that have initial values: zeros, ones, or values drawn by a default initialization."""
    initial = {
        name: words
        for name in diff.changed
        if (words := find_initialization(diff.current_tensor(name))) and _is_new(diff, name)
    }
    if is_other_checkpoint(diff, [name for name in diff.changed if name not in initial]):
        # A zero bias is common in another checkpoint, so it does not count as not loaded.
        initial = {name: words for name, words in initial.items() if len(diff.locked[name].shape) > 1}
    # A small tensor, such as a bias, has too few values to recognize: it counts with the weight of its module.
    owners = {name.rpartition(".")[0] for name in initial}
    too_small = [
        name
        for name in diff.changed
        if name.rpartition(".")[0] in owners and name not in initial and numel(diff.locked[name]) < 512
    ]
    if not initial:
        return None
    names = [name for name in diff.changed if name in initial or name in too_small]
    whole = is_other_checkpoint(diff, names) and len(names) >= 0.9 * len(diff.changed)
    diff.mark_explained(names)
    kinds = ", ".join(dict.fromkeys(initial.values()))
    if whole:
        diff.mark_explained(list(diff.changed))
        return Cause(
            "unloaded",
            f"no checkpoint was loaded: {plural(len(names), 'tensor')} at initial values ({kinds})",
            tuple(names),
        )
    count = f"{len(names)} of {plural(len(diff.locked), 'tensor')} not loaded"
    return Cause("partial", f"{count}: {first_and_more(names)}, at initial values ({kinds})", tuple(names))


def _is_new(diff: Unexplained, name: str) -> bool:
    """Return whether a tensor has nothing in common with the locked one; trained or scaled weights still correlate."""
    both = diff.sampled_values(name)
    if both is None or both[0].size < _MIN_VALUES:
        return True
    old, new = (values.ravel().astype(float) for values in both)
    old, new = old - old.mean(), new - new.mean()
    norms = float(np.linalg.norm(old) * np.linalg.norm(new))
    return not norms or abs(float(old @ new)) / norms < 5 / old.size**0.5


def find_changed_values(diff: Unexplained) -> Cause | None:
    """Find the tensors that no other cause explains: another checkpoint, or changed values."""
    if not diff.changed:
        return None
    names = tuple(diff.changed)
    shapes = [name for name in names if diff.locked[name].shape != diff.current_record(name).shape]
    if is_other_checkpoint(diff, names):
        diff.changed = {}
        return Cause(
            "checkpoint",
            f"another checkpoint: {len(names)} of {plural(len(diff.locked), 'tensor')} differ{_nearness(diff, names)}",
            names,
        )
    diff.changed = {}
    how = ""
    if shapes:
        how = f" (shape {diff.locked[shapes[0]].shape} -> {diff.current_record(shapes[0]).shape})"
    elif far := largest_change(diff, names):
        how = f", by up to {far:.2g}"
    broken = [name for name in names if not is_finite(diff.current.tensors[diff.current_names[name]])]
    if broken:
        how += f"; {first_and_more(broken)} {'has' if len(broken) == 1 else 'have'} values that are not finite"
    return Cause(
        "values", f"{len(names)} of {plural(len(diff.locked), 'tensor')} changed: {first_and_more(names)}{how}", names
    )


def _nearness(diff: Unexplained, names: Iterable[str]) -> str:
    """Describe how much the values differ if it is little: the checkpoint may have been trained further."""
    pairs = [
        both for name in names if len(diff.locked[name].shape) > 1 and (both := diff.sampled_values(name)) is not None
    ]
    if not pairs:
        return ""
    old, new = (np.concatenate([each.ravel().astype(float) for each in side]) for side in zip(*pairs, strict=True))
    norm = float(np.linalg.norm(old))
    far = float(np.linalg.norm(new - old)) / norm if norm else float("inf")
    return f", but only by {far:.1%}: the same checkpoint, trained further?" if far < 0.5 else ""
