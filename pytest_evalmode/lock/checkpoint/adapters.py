"""Causes that add something to weights or merge modules into them: LoRA adapters and folded batch norms."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from pytest_evalmode.lock.checkpoint.differences import (
    RUNNING_STATISTICS,
    Cause,
    ChangedTensor,
    Differences,
    owner_of,
)
from pytest_evalmode.lock.checkpoint.tensor_causes import factors_of_rows
from pytest_evalmode.lock.model_entry import sample_grid, spaced
from pytest_evalmode.rules.wording import first_and_more, plural

if TYPE_CHECKING:
    Array = np.ndarray[Any, Any]

_EPS = (1e-5, 1e-3, 1e-6, 1e-4, 1e-12, 0.0)


def find_folded_norms(diff: Differences) -> Cause | None:
    """Find missing batch norms that were folded into the layers before them.

    Each row of such a layer is multiplied by `weight / sqrt(running_var + eps)` of the norm.
    """
    norms = [owner_of(name) for name in diff.missing if name.endswith(".running_var")]
    found: dict[str, str] = {}
    for name, tensor in diff.changed.items():
        factors = factors_of_rows(*tensor.values) if tensor.values is not None else None
        if factors is None or not _close(tensor.values[0] * factors, tensor.values[1], 1e-4):  # type: ignore[index]
            continue
        rows = spaced(tensor.was.shape[0], len(factors))
        at = {row: float(factor) for row, factor in zip(rows, factors[:, 0], strict=True)}
        norm = next((n for n in norms if n not in found.values() and _gives(diff, n, tensor.was.shape[0], at)), None)
        if norm is not None:
            found[name] = norm
    if not found:
        return None
    layers, gone = {owner_of(name) for name in found}, set(found.values())
    biases = [name for name in (*diff.changed, *diff.added) if name.endswith("bias") and owner_of(name) in layers]
    diff.mark_explained([*found, *biases])
    parts = ("weight", "bias", *RUNNING_STATISTICS)
    diff.missing = [name for name in diff.missing if owner_of(name) not in gone or name.split(".")[-1] not in parts]
    diff.added = [name for name in diff.added if name not in biases]
    return Cause("folded", f"{plural(len(found), 'batch norm')} folded into the preceding layers", tuple(found))


def _gives(diff: Differences, norm: str, channels: int, factors: Mapping[int, float]) -> bool:
    """Return whether a norm explains the factors of the rows that were sampled of both."""
    weight, variance = (diff.samples.get(f"{norm}.{part}") for part in ("weight", "running_var"))
    if variance is None or diff.locked[f"{norm}.running_var"].shape != (channels,):
        return False
    places = {row: i for i, row in enumerate(spaced(channels, variance.shape[1]))}
    rows = [row for row in factors if row in places]
    gains = np.ones(channels) if weight is None else weight[0].astype(float)
    expected = [(gains[places[row]], float(variance[0][places[row]])) for row in rows]
    return len(rows) > 1 and any(
        _close(
            np.array([gain / (var + eps) ** 0.5 for gain, var in expected]), np.array([factors[r] for r in rows]), 1e-3
        )
        for eps in _EPS
        if all(var + eps > 0 for _, var in expected)
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


def find_merged_adapter(diff: Differences) -> Cause | None:
    """Find weights that changed by a low-rank matrix, as merging or removing an adapter changes them.

    The direction is known if the adapter's own tensors, `lora_A` and `lora_B`, are locked or in the model.
    """
    ranks = {name: rank for name, tensor in diff.changed.items() if (rank := _rank(tensor))}
    if not ranks:
        return None
    found = {_find_factor(diff, diff.changed[name]) for name in ranks}
    diff.mark_explained(ranks)
    weights = f"{plural(len(ranks), 'weight')} ({first_and_more(list(ranks))})"
    factor = found.pop() if len(found) == 1 else None
    if factor is None:
        words = f"{weights} changed by a matrix of rank {max(ranks.values())}: a LoRA adapter was merged, or taken out"
    else:
        times = "" if abs(factor) == 1 else f"{abs(factor):.4g} times "
        verb = "merged into" if factor > 0 else "taken out of"
        words = f"a LoRA adapter ({times}lora_B @ lora_A) was {verb} {weights}"
    return Cause("merged", words, tuple(ranks))


def _rank(tensor: ChangedTensor) -> int:
    """Return the rank of the change of a matrix, or 0 if the rank is not low."""
    both = tensor.values if len(tensor.was.shape) == 2 else None
    if both is None or min(both[0].shape) < 8 or tensor.now.dtype not in ("float32", "float64"):
        return 0
    was, now = both
    change = now - was
    if np.mean(change != 0) < 0.5 or not np.isfinite(change).all():  # a sparse change has a low rank too
        return 0
    # So has one by a number per row or column, such as centered weights; without these, it has a lower rank.
    centered = change - change.mean(0) - change.mean(1, keepdims=True) + change.mean()
    noise = 1e-6 * np.abs(now).max() * max(change.shape) ** 0.5
    least = max(noise, 1e-4 * float(np.linalg.norm(change, 2)))
    rank, rest = (int((np.linalg.svd(each, compute_uv=False) > least).sum()) for each in (change, centered))
    return rank if rank == rest <= 0.75 * min(change.shape) else 0


def _find_factor(diff: Differences, tensor: ChangedTensor) -> float | None:
    """Return how often `lora_B @ lora_A` of an adapter beside a weight was added to it; None if that is unknown."""
    was, now = tensor.values  # type: ignore[misc]
    for update in _updates(diff, tensor):
        size = float((update**2).sum())
        factor = float(((now - was) * update).sum() / size) if size else 0.0
        if factor and _close(was + factor * update, now, 1e-5):
            return round(factor, 4)
    return None


def _updates(diff: Differences, tensor: ChangedTensor) -> Iterator[Array]:
    """Yield `lora_B @ lora_A` of each adapter beside a weight, at its sampled positions."""
    rows, columns = tensor.values[0].shape  # type: ignore[index]
    height, width = tensor.was.shape
    owners = [owner_of(name).removesuffix(".base_layer") for name in (tensor.name, diff.current_names[tensor.name])]
    for name in {**diff.locked, **diff.contents.tensors}:
        before, found, after = name.rpartition("lora_A")
        if not found or not any(f".{before}".endswith(f".{owner}.".lstrip(".")) for owner in owners):
            continue
        a, b = (_factor_of_update(diff, each) for each in (name, f"{before}lora_B{after}"))
        if a is not None and b is not None:
            a = a[:, spaced(width, columns)] if a.shape[1] == width else a
            b = b[spaced(height, rows)] if b.shape[0] == height else b
            if (len(b), b.shape[1], a.shape[1]) == (rows, len(a), columns):
                yield b @ a


def _factor_of_update(diff: Differences, name: str) -> Array | None:
    """Return all current values of an adapter's matrix, or the sampled ones if it is missing."""
    tensor = diff.contents.tensors.get(name)
    values = diff.samples.get(name) if tensor is None else sample_grid(tensor, *tensor.shape)
    return None if values is None else values.astype(float)


def _close(expected: Array, now: Array, residual: float) -> bool:
    return bool(np.all(np.abs(expected - now) <= residual * np.abs(now).max()))
