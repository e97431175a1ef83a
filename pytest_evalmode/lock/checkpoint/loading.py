"""Causes that concern loading: no checkpoint, a part of one, another one, or forwards in training mode since."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pytest_evalmode.lock.checkpoint import initial_values
from pytest_evalmode.lock.checkpoint.differences import (
    Cause,
    ChangedTensor,
    Differences,
    is_running_statistic,
    largest_change,
    owner_of,
)
from pytest_evalmode.lock.model_entry import sample_grid, spaced
from pytest_evalmode.rules.wording import first_and_more, plural

if TYPE_CHECKING:
    Array = np.ndarray[Any, Any]

_MIN_VALUES = 32  # needed to decide whether two tensors are correlated


def find_not_finite(diff: Differences) -> Cause | None:
    """Find tensors that have values that are not finite, and had none among the locked ones."""
    counts: dict[str, int] = {}
    for name, tensor in diff.changed.items():
        known = tensor.values is None or bool(np.isfinite(tensor.values[0]).all())
        count = int((~tensor.current.isfinite()).sum())
        # A narrower dtype overflows by itself; the cast explains that.
        if count and known and not (tensor.was.dtype != tensor.now.dtype and tensor.is_cast):
            counts[name] = count
    if not counts:
        return None
    diff.mark_explained(counts)
    has, values = "has" if len(counts) == 1 else "have", plural(sum(counts.values()), "value")
    words = f"{first_and_more(list(counts))} {has} {values} that {'is' if values[:2] == '1 ' else 'are'} not finite"
    return Cause("not finite", words, tuple(counts))


def find_not_loaded(diff: Differences) -> Cause | None:
    """Find tensors that have initial values: constants, or values drawn by a common initialization."""
    initial: dict[str, str] = {}
    distributions: dict[str, initial_values.Distribution] = {}
    candidates = {name: tensor for name, tensor in diff.changed.items() if _is_unrelated(tensor)}
    for name, tensor in diff.changed.items():
        distribution = _find_distribution(diff, tensor)
        if name in candidates and (constant := _describe_constant(tensor)):
            initial[name] = constant
        elif distribution and (name in candidates or _is_reset(distribution, tensor)):
            distributions[name] = distribution
    # A small tensor is recognized by the distribution of a larger one.
    known = {each for name, each in distributions.items() if each.is_uniform or _is_large(diff.changed[name])}
    distributions = {name: each for name, each in distributions.items() if each in known}
    for name, tensor in candidates.items() if known else ():
        if name not in initial and name not in distributions:
            found = _find_distribution(diff, tensor, known)
            distributions |= {name: found} if found is not None else {}
    initial |= {name: each.words for name, each in distributions.items()}
    if diff.covers_model([name for name in diff.changed if name not in initial]):
        # In another checkpoint, zero biases and normally distributed weights are common.
        initial = {name: words for name, words in initial.items() if name in distributions}
        initial = {name: words for name, words in initial.items() if distributions[name].is_uniform}
    names = [*initial, *_small_tensors_beside(diff, initial)]
    if not initial:
        return None
    kinds = ", ".join(dict.fromkeys(initial.values()))
    is_whole = diff.covers_model(names) and len(names) >= 0.9 * len(diff.changed)
    before = [_fits_before(each, diff.changed[name]) for name, each in distributions.items()]
    if is_whole and any(before) and False not in before:
        words = f"initial values drawn anew (another seed?): {plural(len(names), 'tensor')} ({kinds}), as they were"
    elif is_whole:
        words = f"no checkpoint was loaded: {plural(len(names), 'tensor')} at initial values ({kinds})"
    else:
        count = f"{len(names)} of {plural(len(diff.locked), 'tensor')} not loaded"
        words = f"{count}: {first_and_more(names)}, at initial values ({kinds})"
    diff.mark_explained(names)
    return Cause("unloaded" if is_whole else "partial", words, tuple(names))


def _is_large(tensor: ChangedTensor) -> bool:
    return prod(tensor.now.shape) >= initial_values.MIN_NORMAL_VALUES


def _describe_constant(tensor: ChangedTensor) -> str:
    """Return the initial value that all elements have, in words, or ""."""
    constant = initial_values.find_constant(tensor.current)
    if constant == 0.25 and tensor.name.endswith("weight") and len(tensor.now.shape) == 1:
        return "PReLU's 0.25"
    if constant is None or not (len(tensor.current) > 1 or is_running_statistic(tensor.name)):
        return ""
    return {0.0: "all zeros", 1.0: "all ones"}.get(constant, "")


def _find_distribution(
    diff: Differences, tensor: ChangedTensor, known: Collection[initial_values.Distribution] = ()
) -> initial_values.Distribution | None:
    if not tensor.tensor.is_floating_point():
        return None
    last, shape = tensor.name.rpartition(".")[2], _weight_shape(diff, tensor)
    return initial_values.find_distribution(last, tensor.now.shape, shape, tensor.current, known)


def _weight_shape(diff: Differences, tensor: ChangedTensor) -> tuple[int, ...]:
    if len(tensor.now.shape) > 1:
        return tensor.now.shape
    weight = diff.contents.records.get(f"{owner_of(diff.current_names[tensor.name])}.weight".removeprefix("."))
    return weight.shape if weight is not None else ()


def _is_unrelated(tensor: ChangedTensor) -> bool:
    """Return whether a tensor has nothing in common with the locked one; trained or scaled weights still correlate."""
    both = tensor.values
    if both is None:
        return tensor.was.dtype == tensor.now.dtype  # otherwise the cast may be the only change
    return both[0].size < _MIN_VALUES or abs(_correlation(*both)) < 5 / both[0].size ** 0.5


def _correlation(was: Array, now: Array) -> float:
    old, new = was.ravel() - was.mean(), now.ravel() - now.mean()
    norms = float(np.linalg.norm(old) * np.linalg.norm(new))
    return float(old @ new) / norms if norms else 0.0


def _fits_before(distribution: initial_values.Distribution, tensor: ChangedTensor) -> bool | None:
    """Return whether the locked values fit the distribution too; None if too few are stored."""
    both = tensor.values
    if both is None or both[0].size < initial_values.MIN_VALUES:
        return None
    return distribution.fits(torch.from_numpy(both[0].ravel()))


def _is_reset(distribution: initial_values.Distribution, tensor: ChangedTensor) -> bool:
    """Return whether only the current values are initial, those from which the locked ones may have been trained."""
    return distribution.is_uniform and _fits_before(distribution, tensor) is False


def _small_tensors_beside(diff: Differences, initial: dict[str, str]) -> list[str]:
    """Return tensors with too few values to recognize, whose module is not loaded and whose values fit that."""
    owners = {owner_of(name): name for name in initial if len(diff.locked[name].shape) > 1}
    small = []
    for name, tensor in diff.changed.items():
        weight = owners.get(owner_of(name))
        if name in initial or weight is None or prod(tensor.now.shape) >= initial_values.MIN_VALUES:
            continue
        shape = diff.changed[weight].now.shape
        bounds = [each.scale for each in initial_values.candidates(name.rpartition(".")[2], tensor.now.shape, shape)]
        if bounds and len(tensor.current) and float(tensor.current.abs().max()) <= bounds[0]:
            small.append(name)
    return small


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


def find_resized(diff: Differences) -> Cause | None:
    """Find tensors with more or fewer rows, whose other rows are the same, such as embeddings with new tokens."""
    sizes: dict[str, str] = {}
    for name, tensor in diff.changed.items():
        was, now, sample = tensor.was.shape, tensor.now.shape, tensor.sample
        if sample is None or not was or not now or was[1:] != now[1:] or was[0] == now[0] or len(was) < 2:
            continue
        common = min(was[0], now[0])
        rows = [row for row in spaced(was[0], len(sample)) if row < common]
        values = sample_grid(tensor.tensor[:common][rows], *sample.shape) if len(rows) > 1 else None
        if values is not None and np.array_equal(values, sample[: len(rows)]):
            sizes[name] = f"{was[0]} to {now[0]} rows, and the first {common} are the same"
    if not sizes:
        return None
    diff.mark_explained(sizes)
    ways = "; ".join(dict.fromkeys(sizes.values()))
    return Cause("resized", f"{first_and_more(list(sizes))} went from {ways}", tuple(sizes))


def find_changed_values(diff: Differences) -> Cause | None:
    """Describe the tensors that no other cause explains."""
    changed, diff.changed = diff.changed, {}
    if not changed:
        return None
    names, tensors = tuple(changed), list(changed.values())
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
    if was.size >= _MIN_VALUES and all(abs(_correlation(*both)) < 5 / both[0].size ** 0.5 + 0.05 for both in pairs):
        return "checkpoint", f"another checkpoint: {differ} and have nothing in common with the locked ones"
    norm = float(np.linalg.norm(was))
    far = f" by {float(np.linalg.norm(now - was)) / norm:.1%} of their size" if norm else ""
    return "values", f"{differ}{far} (correlation {_correlation(was, now):.4f}); cause not recognized"
