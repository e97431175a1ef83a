"""Causes that change the values of one tensor: the first row that reproduces the sampled values is named."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pytest_evalmode.lock.causes import cause, proof
from pytest_evalmode.lock.causes.cause import Step, count_distinct
from pytest_evalmode.lock.checkpoint import quantization
from pytest_evalmode.lock.checkpoint.differences import FLOAT_DTYPES, Cause, ChangedTensor, Differences, equal
from pytest_evalmode.lock.checkpoint.initial_values import find_constant
from pytest_evalmode.rules.wording import first_and_more, plural

if TYPE_CHECKING:
    Array = np.ndarray[Any, Any]

_MIN_VALUES = 8  # distinct values needed to distinguish a factor from chance
_NARROWER = ("float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2")
_ROUNDING = 1e-5  # relative to a value, or to a hundredth of the largest one


def find_causes(diff: Differences) -> list[Cause]:
    """Return the causes of the tensors that the table explains, and mark these as explained."""
    found: dict[tuple[str, str], dict[str, object]] = {}
    for name, tensor in diff.changed.items():
        step = _explain(tensor)
        if step is not None:
            found.setdefault((step.kind, step.words), {})[name] = step.details["value"]
    for names in found.values():
        diff.mark_explained(names)
    causes = []
    for (kind, words), values in found.items():
        distinct = list(dict.fromkeys(map(str, values.values())))
        shown = ", ".join(distinct[:3]) + (", ..." if len(distinct) > 3 else "")
        were = "" if words.startswith("differ") else "was " if len(values) == 1 else "were "
        causes.append(Cause(kind, f"{first_and_more(list(values))} {were}{words.format(shown)}", tuple(values)))
    return causes


def _explain(tensor: ChangedTensor) -> Step | None:
    both = tensor.values
    if both is None or equal(*both):  # no values, or none of those that differ
        return None
    if tensor.tensor.numel() > 1 and find_constant(tensor.current) is not None:  # which proves nothing
        return None
    if tensor.now.dtype not in FLOAT_DTYPES or tensor.was.dtype not in FLOAT_DTYPES:
        return None
    for step in _find_exact(tensor, *both):
        return step
    if not all(np.isfinite(each).all() for each in both):
        return None
    pair = proof.Pair(*(each.astype(np.float32) for each in both))
    proofs = (proof.prove((row,), pair) for row in _TABLE)
    return next((found[0].steps[0] for found in proofs if found), None)


def _step(kind: str, words: str, value: object) -> Step:
    """Return a step whose words have `{}` in place of the value, which differs from tensor to tensor."""
    return Step(kind, words, {"value": value})


def _find_exact(tensor: ChangedTensor, was: Array, now: Array) -> Iterator[Step]:
    """Yield causes that reproduce the sampled values bit for bit, and fit all current ones."""
    dtype = _find_narrower(tensor, was, now)
    if dtype is not None:
        yield _step("rounded", "rounded to {}", dtype)
    size = float(np.max(np.abs(now - was) / np.maximum(np.abs(was), np.abs(was).max() / 100 or 1)))
    if size <= max(_ROUNDING, 2 * torch.finfo(getattr(torch, tensor.now.dtype)).eps):
        yield _step("rounding", "differ by rounding, by at most {} of their values", f"{size:.0e}")
    if now.size >= _MIN_VALUES and np.array_equal(np.where(now != 0, was, 0), now):
        yield _step("pruned", "pruned: {} of the values are 0", f"{float((tensor.current == 0).double().mean()):.0%}")
    levels = quantization.find_levels(tensor)
    if levels is not None and equal(quantization.quantize(was, levels), now):
        yield _step("quantised", "quantized and dequantized ({})", levels.words)


def _find_narrower(tensor: ChangedTensor, was: Array, now: Array) -> str | None:
    """Return the widest narrower dtype, a cast to which gives the sampled values, and all current ones fit in."""
    width, plain = tensor.tensor.element_size(), tensor.tensor.detach()
    for dtype in _NARROWER:
        narrower: torch.dtype = getattr(torch, dtype)
        fits = narrower.itemsize < width or (narrower.itemsize == width and dtype == "bfloat16" != tensor.now.dtype)
        if fits and equal(torch.from_numpy(was.astype(np.float32)).to(narrower).double().numpy(), now):
            back = plain.to(narrower).to(plain.dtype)
            if bool(((back == plain) | plain.isnan() & back.isnan()).all()):
                return dtype
    return None


def _factor(was: Array, now: Array) -> Iterator[float]:
    used = was != 0
    if count_distinct(was) >= _MIN_VALUES and (factor := float(np.median(now[used] / was[used]))):
        yield factor


def _shift(was: Array, now: Array) -> Iterator[float]:
    if count_distinct(was) >= _MIN_VALUES:
        yield float(np.median(now - was))


def factors_of_rows(was: Array, now: Array) -> Array | None:
    """Return the factor of each row, as a column; None if the rows are too few or too short to show one."""
    if was.shape[0] < 2 or was.shape[1] < _MIN_VALUES or not np.isfinite(now).all():
        return None
    squares = (was**2).sum(1, keepdims=True)
    if np.any(squares == 0) or not np.isfinite(squares).all():
        return None
    factors: Array = (was * now).sum(1, keepdims=True) / squares
    return factors if np.all(factors != 0) else None


def _rows(was: Array, now: Array) -> Iterator[Array]:
    factors = factors_of_rows(was, now)
    if factors is not None:
        yield factors


_TABLE = (
    cause.Cause(_factor, np.multiply, lambda a, b, p: _step("scaled", "multiplied by {}", f"{p:.4g}"), residual=2e-6),
    cause.Cause(_shift, np.add, lambda a, b, p: _step("shifted", "shifted by {}", f"{p:.4g}"), residual=2e-6),
    cause.Cause(
        _rows,
        np.multiply,
        lambda a, b, p: _step(
            "scaled", "multiplied by a factor per row (output), {}", f"{p.min():.3g} to {p.max():.3g}"
        ),
        len,
        is_confirmed=True,
        residual=2e-6,
    ),
)


def find_dtype_change(diff: Differences) -> Cause | None:
    """Find tensors of which only the floating-point dtype changed, and those of which the values changed too."""
    other = [
        name
        for name, each in diff.changed.items()
        if each.was.dtype != each.now.dtype
        and each.was.shape == each.now.shape
        and {each.was.dtype, each.now.dtype} <= {*FLOAT_DTYPES}
    ]
    if not other:
        return None
    unexplained = [n for n in other if not diff.changed[n].is_cast and diff.changed[n].sample is not None]
    compared = [name for name in other if diff.changed[name].sample is not None]
    dtypes = sorted({f"{diff.changed[name].was.dtype} -> {diff.changed[name].now.dtype}" for name in other})
    diff.mark_explained([name for name in other if name not in unexplained])
    only = "only the dtype changed" if not diff.changed and not diff.missing and not diff.added else "the dtype changed"
    if unexplained:
        values = f"the values of {first_and_more(unexplained)} changed too"
    else:
        values = "the cast explains the values" if compared else "there are no stored values to compare"
    return Cause("dtype", f"{only}: {', '.join(dtypes)} in {plural(len(other), 'tensor')}; {values}", tuple(other))
