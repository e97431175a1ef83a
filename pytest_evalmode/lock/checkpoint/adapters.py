"""Causes that add something to weights or merge modules into them: LoRA adapters and folded batch norms."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pytest_evalmode.lock.causes.cause import Step
from pytest_evalmode.lock.checkpoint.differences import (
    RUNNING_STATISTICS,
    Cause,
    ChangedTensor,
    Differences,
    owner_of,
)
from pytest_evalmode.lock.model_entry import sample_grid, spaced
from pytest_evalmode.rules.wording import plural

if TYPE_CHECKING:
    Array = np.ndarray[Any, Any]

_EPS = (1e-5, 1e-3, 1e-6, 1e-4, 1e-12, 0.0)
_MIN_COLUMNS = 8


def factors_of_rows(was: Array, now: Array) -> Array | None:
    """Return the factor of each row, as a column; None if the rows are too few or too short to show one."""
    if was.shape[0] < 2 or was.shape[1] < _MIN_COLUMNS or not np.isfinite(now).all():
        return None
    squares = (was**2).sum(1, keepdims=True)
    if np.any(squares == 0) or not np.isfinite(squares).all():
        return None
    factors: Array = (was * now).sum(1, keepdims=True) / squares
    return factors if np.all(factors != 0) else None


def find_folded_norms(diff: Differences) -> Cause | None:
    """Find missing batch norms that were folded into the layers before them.

    Each row of such a layer is multiplied by `weight / sqrt(running_var + eps)` of the norm.
    """
    norms = [owner_of(name) for name in diff.missing if name.endswith(".running_var")]
    found: dict[str, str] = {}
    for name, tensor in diff.changed.items() if norms else ():
        factors = factors_of_rows(*tensor.values) if tensor.values is not None else None
        if factors is not None and _close(tensor.values[0] * factors, tensor.values[1], 1e-4):  # type: ignore[index]
            at = dict(zip(spaced(tensor.was.shape[0], len(factors)), factors[:, 0], strict=True))
            norm = next((norm for norm in norms if norm not in found.values() and _gives(diff, norm, at)), None)
            found |= {} if norm is None else {name: norm}
    if not found:
        return None
    layers, gone = {owner_of(name) for name in found}, set(found.values())
    biases = [name for name in (*diff.changed, *diff.added) if name.endswith("bias") and owner_of(name) in layers]
    parts = ("weight", "bias", *RUNNING_STATISTICS)
    diff.mark_explained([*found, *biases])
    diff.missing = [name for name in diff.missing if owner_of(name) not in gone or name.split(".")[-1] not in parts]
    diff.added = [name for name in diff.added if name not in biases]
    return Cause("folded", f"{plural(len(found), 'batch norm')} folded into the preceding layers", tuple(found))


def _gives(diff: Differences, norm: str, factors: dict[int, float]) -> bool:
    """Return whether a norm explains the factors of the rows that were sampled of both."""
    weight, variance = (diff.samples.get(f"{norm}.{part}") for part in ("weight", "running_var"))
    if variance is None:
        return False
    gains = np.ones_like(variance) if weight is None else weight
    channels = spaced(diff.locked[f"{norm}.running_var"].shape[0], variance.shape[1])
    known = [
        (factors[row], gain, var)
        for row, gain, var in zip(channels, gains[0], variance[0], strict=True)
        if row in factors
    ]
    found, gain, var = np.array(known, float).reshape(-1, 3).T
    return len(known) > 1 and any(
        _close(gain / (var + eps) ** 0.5, found, 1e-3) for eps in _EPS if (var + eps > 0).all()
    )


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
            if _close(was + factor * update, now, 1e-5):
                return round(factor, 4)
    return 0.0


def _sample(diff: Differences, name: str, size: tuple[int, ...]) -> Array | None:
    """Return the values of an adapter's matrix at the sampled rows or columns of its weight."""
    tensor = diff.contents.tensors.get(name)
    values = diff.samples.get(name) if tensor is None else sample_grid(tensor, *size)
    return None if values is None else values.astype(float)


def _close(expected: Array, now: Array, residual: float) -> bool:
    return bool(np.all(np.abs(expected - now) <= residual * np.abs(now).max()))
