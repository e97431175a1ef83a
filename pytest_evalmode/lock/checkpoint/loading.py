"""Causes that concern loading: no checkpoint, a part of one, another one, or forwards in training mode since."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from pytest_evalmode.lock.causes.cause import Array, Step
from pytest_evalmode.lock.checkpoint.differences import (
    Cause,
    ChangedTensor,
    Differences,
    is_running_statistic,
    largest_change,
    owner_of,
)
from pytest_evalmode.lock.checkpoint.initial_values import Distribution, possible_distributions
from pytest_evalmode.rules.wording import first_and_more, plural

_MIN_CORRELATED = 32  # values needed to decide whether two tensors are correlated
_MIN_UNIFORM, _MIN_NORMAL = 64, 384  # values needed to recognize a distribution; a normal one has no bounds
_MAX_VALUES = 1 << 16


def find_not_finite(diff: Differences) -> list[Cause]:
    """Find tensors that have values that are not finite, and had none among the locked ones."""

    def explain(tensor: ChangedTensor) -> Step | None:
        count = int((~tensor.current.isfinite()).sum())
        if not count or (tensor.values is not None and not np.isfinite(tensor.values[0]).all()):
            return None
        return Step("not finite", "{names} {has} values that are not finite ({})", {"value": count})

    return diff.explain_each(explain)


def find_not_loaded(diff: Differences) -> Cause | None:
    """Find tensors that have initial values: constants, or values drawn by a common initialization."""
    unrelated = {name: tensor for name, tensor in diff.changed.items() if _is_unrelated(tensor)}
    constant = {name: words for name, tensor in unrelated.items() if (words := _describe_constant(tensor))}
    drawn = {name: each for name, tensor in diff.changed.items() if (each := _find_distribution(diff, tensor))}
    drawn = {name: each for name, each in drawn.items() if name in unrelated or _is_reset(each, diff.changed[name])}
    # A small tensor is recognized by the distribution of a larger one.
    for name, tensor in unrelated.items() if drawn else ():
        if name not in constant and name not in drawn:
            found = _find_distribution(diff, tensor, drawn)
            drawn |= {name: found} if found is not None else {}
    if diff.covers_model([name for name in diff.changed if name not in constant and name not in drawn]):
        # In another checkpoint, zero biases and normally distributed weights are common.
        constant, drawn = {}, {name: each for name, each in drawn.items() if each.is_uniform}
    names = [*constant, *drawn]
    if not names:
        return None
    kinds = ", ".join(dict.fromkeys([*constant.values(), *(each.words for each in drawn.values())]))
    is_whole = diff.covers_model(names) and len(names) >= 0.9 * len(diff.changed)
    before = [_fits_before(each, diff.changed[name]) for name, each in drawn.items()]
    if is_whole and any(before) and False not in before:
        words = f"initial values drawn anew (another seed?): {plural(len(names), 'tensor')} ({kinds}), as they were"
    elif is_whole:
        words = f"no checkpoint was loaded: {plural(len(names), 'tensor')} at initial values ({kinds})"
    else:
        count = f"{len(names)} of {plural(len(diff.locked), 'tensor')} not loaded"
        words = f"{count}: {first_and_more(names)}, at initial values ({kinds})"
    diff.mark_explained(names)
    return Cause("unloaded" if is_whole else "partial", words, tuple(names))


def _describe_constant(tensor: ChangedTensor) -> str:
    """Return the initial value that all elements have, in words, or ""."""
    constant = tensor.constant
    if constant == 0.25 and tensor.name.endswith("weight") and len(tensor.now.shape) == 1:
        return "PReLU's 0.25"
    if constant is None or not (len(tensor.current) > 1 or is_running_statistic(tensor.name)):
        return ""
    return {0.0: "all zeros", 1.0: "all ones"}.get(constant, "")


def _find_distribution(
    diff: Differences, tensor: ChangedTensor, drawn: dict[str, Distribution] | None = None
) -> Distribution | None:
    """Return the distribution of initial values that a tensor's values fit.

    With `drawn`, the distributions of larger tensors, only these are tried, but with wider limits; fewer than 64 values
    must belong to the module of one.
    """
    values, shape = tensor.current, tensor.now.shape
    if not tensor.tensor.is_floating_point() or not len(values) or not bool(values.isfinite().all()):
        return None
    owner = owner_of(tensor.name)
    if len(values) < _MIN_UNIFORM and owner not in {owner_of(name) for name in drawn or ()}:
        return None
    record = diff.contents.records.get(f"{owner_of(diff.current_names[tensor.name])}.weight".removeprefix("."))
    weight = shape if len(shape) > 1 or record is None else record.shape
    values = values[:: max(1, len(values) // _MAX_VALUES)].double()
    for each in possible_distributions(tensor.name.rpartition(".")[2], shape, weight):
        is_possible = each in drawn.values() if drawn else each.is_uniform or tensor.tensor.numel() >= _MIN_NORMAL
        if is_possible and each.fits(values, 1.5 if drawn else 1):
            return each
    return None


def _is_unrelated(tensor: ChangedTensor) -> bool:
    """Return whether a tensor has nothing in common with the locked one; trained or scaled weights still correlate."""
    both = tensor.values
    if both is None:
        return tensor.was.dtype == tensor.now.dtype  # otherwise the cast may be the only change
    return both[0].size < _MIN_CORRELATED or abs(_correlation(*both)) < 5 / both[0].size ** 0.5


def _correlation(was: Array, now: Array) -> float:
    old, new = was.ravel() - was.mean(), now.ravel() - now.mean()
    norms = float(np.linalg.norm(old) * np.linalg.norm(new))
    return float(old @ new) / norms if norms else 0.0


def _fits_before(distribution: Distribution, tensor: ChangedTensor) -> bool | None:
    """Return whether the locked values fit the distribution too; None if too few are stored."""
    both = tensor.values
    if both is None or both[0].size < _MIN_UNIFORM:
        return None
    return distribution.fits(torch.from_numpy(both[0].ravel()))


def _is_reset(distribution: Distribution, tensor: ChangedTensor) -> bool:
    """Return whether only the current values are initial: the locked ones may have been trained from them."""
    return distribution.is_uniform and _fits_before(distribution, tensor) is False


def find_updated_statistics(diff: Differences) -> Cause | None:
    """Find running statistics that changed, as forwards in training mode change them."""
    changed = {name: tensor for name, tensor in diff.changed.items() if is_running_statistic(name)}
    if not changed or diff.covers_model([name for name in diff.changed if name not in changed]):
        return None
    diff.mark_explained(changed)
    far = largest_change(tensor for name, tensor in changed.items() if not name.endswith("num_batches_tracked"))
    counters = [tensor.values for name, tensor in changed.items() if name.endswith("num_batches_tracked")]
    batches = {float((both[1] - both[0]).sum()) for both in counters if both is not None}
    norms = {owner_of(name) for name in changed}
    only = "" if diff.changed or diff.missing or diff.added else "only "
    words = f"{only}the running statistics of {plural(len(norms), 'batch norm')} changed"
    if far:
        words += f", by up to {far:.2g}"
    if len(batches) == 1 and (count := int(batches.pop())) > 0:
        words += f": {plural(count, 'forward')} in training mode since"
    return Cause("statistics", words, tuple(changed))


def find_changed_values(diff: Differences) -> Cause | None:
    """Describe the tensors that no other cause explains."""
    names, tensors = tuple(diff.changed), list(diff.changed.values())
    if not names:
        return None
    diff.mark_explained(names)
    total = plural(len(diff.locked), "tensor")
    shapes = [tensor for tensor in tensors if tensor.was.shape != tensor.now.shape]
    if diff.covers_model(names) and not shapes:
        return Cause(*_describe_many(tensors, total), names)
    if shapes:
        how = f" (shape {shapes[0].was.shape} -> {shapes[0].now.shape})"
    elif far := largest_change(tensors):
        how = f", by up to {far:.2g}"
    else:
        how = ", in values that are not stored" if any(tensor.sample is not None for tensor in tensors) else ""
    words = f"{len(names)} of {total} changed: {first_and_more(names)}{how}; cause not recognized"
    return Cause("values", words, names)


def _describe_many(tensors: Sequence[ChangedTensor], total: str) -> tuple[str, str]:
    """Return the kind and the words of a change of most weights: unrelated values are those of another checkpoint."""
    pairs = [both for tensor in tensors if len(tensor.was.shape) > 1 and (both := tensor.values) is not None]
    differ = f"{len(tensors)} of {total} differ"
    if not pairs:
        return "values", f"{differ}; there are no stored values to compare"
    was, now = (np.concatenate([side.ravel() for side in sides]) for sides in zip(*pairs, strict=True))
    if was.size >= _MIN_CORRELATED and all(abs(_correlation(*both)) < 5 / both[0].size ** 0.5 + 0.05 for both in pairs):
        return "checkpoint", f"another checkpoint: {differ} and have nothing in common with the locked ones"
    norm = float(np.linalg.norm(was))
    far = f" by {float(np.linalg.norm(now - was)) / norm:.1%} of their size" if norm else ""
    return "values", f"{differ}{far} (correlation {_correlation(was, now):.4f}); cause not recognized"
