"""Adapters that were added, merged into weights or taken out of them."""

from __future__ import annotations

import numpy as np

from pytest_evalmode.lock.causes.cause import Array, Step
from pytest_evalmode.lock.checkpoint.differences import Cause, ChangedTensor, Differences, owner_of
from pytest_evalmode.lock.model_entry import sample_grid
from pytest_evalmode.rules.wording import plural


def find_adapter(diff: Differences) -> Cause | None:
    """Find the tensors of an adapter that was added to the model, or is missing."""
    both = [(names, [n for n in names if "lora_" in n or "adapter" in n]) for names in (diff.added, diff.missing)]
    words = []
    for (_, adapters), what in zip(both, ("was added, not merged", "is missing"), strict=True):
        if adapters:
            kind = "a LoRA adapter" if any("lora_" in name for name in adapters) else "an adapter"
            words.append(f"{kind} {what}: {plural(len(adapters), 'tensor')}")
    if not words:
        return None
    diff.added, diff.missing = ([n for n in names if n not in adapters] for names, adapters in both)
    return Cause("adapter", " and ".join(words), tuple(name for _, adapters in both for name in adapters))


def find_low_rank(diff: Differences, tensor: ChangedTensor, was: Array, now: Array) -> Step | None:
    """Recognize a weight that changed by a low-rank matrix, as merging or removing an adapter changes it.

    The direction is known if the adapter's own tensors, `lora_A` and `lora_B`, are locked or in the model.
    """
    change = now - was
    # A sparse change has a low rank too.
    if len(tensor.was.shape) != 2 or min(was.shape) < 8 or np.mean(change != 0) < 0.5:
        return None
    if tensor.now.dtype not in ("float32", "float64"):
        return None
    # So has one by a number per row or column, such as centered weights; without these, it has a lower rank.
    centered = change - change.mean(0) - change.mean(1, keepdims=True) + change.mean()
    noise = 1e-6 * np.abs(now).max() * max(change.shape) ** 0.5
    least = max(noise, 1e-4 * float(np.linalg.norm(change, 2)))
    rank, rest = (int((np.linalg.svd(each, compute_uv=False) > least).sum()) for each in (change, centered))
    if not 0 < rank == rest <= 0.75 * min(change.shape):
        return None
    factor = _find_factor(diff, tensor, was, now)
    if not factor:
        words = "{names} changed by a matrix of rank {}: a LoRA adapter was merged, or taken out"
        return Step("merged", words, {"value": rank})
    times = "" if abs(factor) == 1 else f"{abs(factor):.4g} times "
    verb = "merged into" if factor > 0 else "taken out of"
    return Step("merged", f"a LoRA adapter ({times}lora_B @ lora_A) was {verb} {{names}}")


def _find_factor(diff: Differences, tensor: ChangedTensor, was: Array, now: Array) -> float:
    """Return how often `lora_B @ lora_A` of an adapter beside a weight was added to it; 0 if that is unknown."""
    owners = [owner_of(name).removesuffix(".base_layer") for name in (tensor.name, diff.current_names[tensor.name])]
    for name in {**diff.locked, **diff.contents.tensors}:
        before, found, after = name.rpartition("lora_A")
        if not found or not any(f".{before}".endswith(f".{owner}.".lstrip(".")) for owner in owners):
            continue
        a, b = (_sample(diff, each, was.shape) for each in (name, f"{before}lora_B{after}"))
        if a is not None and b is not None and (len(b), b.shape[1], a.shape[1]) == (len(was), len(a), was.shape[1]):
            update = b @ a
            factor = float(((now - was) * update).sum() / max(float((update**2).sum()), 1e-30))
            if np.all(np.abs(was + factor * update - now) <= 1e-5 * np.abs(now).max()):
                return round(factor, 4)
    return 0.0


def _sample(diff: Differences, name: str, size: tuple[int, ...]) -> Array | None:
    """Return the values of an adapter's matrix at the sampled rows or columns of its weight."""
    tensor = diff.contents.tensors.get(name)
    values = diff.samples.get(name) if tensor is None else sample_grid(tensor, *size)
    return None if values is None else values.astype(float)
