"""Causes that change the values of one tensor: the first row that reproduces the sampled values is named."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
import torch

from pytest_evalmode.lock.causes import cause, proof
from pytest_evalmode.lock.causes.cause import Array, Step, count_distinct
from pytest_evalmode.lock.checkpoint import adapters, quantization
from pytest_evalmode.lock.checkpoint.differences import FLOAT_DTYPES, Cause, ChangedTensor, Differences, equal
from pytest_evalmode.rules.wording import first_and_more, plural

_MIN_VALUES = 8  # distinct values needed to distinguish a factor from chance
_NARROWER = ("float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2")
_ROUNDING = 1e-5  # relative to a value, or to a hundredth of the largest one


def find_causes(diff: Differences) -> list[Cause]:
    """Find the causes of the tensors that the table explains."""
    return diff.explain_each(partial(_explain, diff))


def _explain(diff: Differences, tensor: ChangedTensor) -> Step | None:
    both = tensor.values
    if both is None or equal(*both):  # no values, or none of those that differ
        return None
    if tensor.tensor.numel() > 1 and tensor.constant is not None:  # which proves nothing
        return None
    if tensor.now.dtype not in FLOAT_DTYPES or tensor.was.dtype not in FLOAT_DTYPES:
        return None
    exact = next(_find_exact(tensor, *both), None)
    if exact is not None:
        return exact
    if not all(np.isfinite(each).all() for each in both):
        return None
    proofs = proof.prove(_TABLE, proof.Pair(*(each.astype(np.float32) for each in both)))
    return proofs[0].steps[0] if proofs else adapters.find_low_rank(diff, tensor, *both)


def _step(kind: str, words: str, value: object) -> Step:
    return Step(kind, f"{{names}} {words}", {"value": value})


def _find_exact(tensor: ChangedTensor, was: Array, now: Array) -> Iterator[Step]:
    """Yield causes that reproduce the sampled values bit for bit, and fit all current ones."""
    dtype = _find_narrower(tensor, was, now)
    if dtype is not None:
        yield _step("rounded", "{was} rounded to {}", dtype)
    size = float(np.max(np.abs(now - was) / np.maximum(np.abs(was), np.abs(was).max() / 100 or 1)))
    if size <= max(_ROUNDING, 2 * torch.finfo(getattr(torch, tensor.now.dtype)).eps):
        yield _step("rounding", "differ by rounding, by at most {} of their values", f"{size:.0e}")
    if now.size >= _MIN_VALUES and np.array_equal(np.where(now != 0, was, 0), now):
        share = float((tensor.current == 0).double().mean())
        yield _step("pruned", "{was} pruned: {} of the values are 0", f"{share:.0%}")
    grid = quantization.find_quantization(tensor)
    if grid is not None:
        yield _step("quantised", "{was} quantized and dequantized ({})", grid)


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


_TABLE = (
    cause.Cause(
        _factor, np.multiply, lambda a, b, p: _step("scaled", "{was} multiplied by {}", f"{p:.4g}"), residual=2e-6
    ),
    cause.Cause(_shift, np.add, lambda a, b, p: _step("shifted", "{was} shifted by {}", f"{p:.4g}"), residual=2e-6),
)


def find_dtype_change(diff: Differences) -> Cause | None:
    """Find tensors with another floating-point dtype; the cast explains those whose values are the same."""
    other = {
        name: each.values
        for name, each in diff.changed.items()
        if each.was.dtype != each.now.dtype
        and each.was.shape == each.now.shape
        and {each.was.dtype, each.now.dtype} <= {*FLOAT_DTYPES}
    }
    if not other:
        return None
    dtypes = sorted({f"{diff.changed[name].was.dtype} -> {diff.changed[name].now.dtype}" for name in other})
    unexplained = [name for name, both in other.items() if both is not None and not equal(*both)]
    diff.mark_explained([name for name in other if name not in unexplained])
    only = "only the dtype changed" if not diff.changed and not diff.missing and not diff.added else "the dtype changed"
    if unexplained:
        values = f"the values of {first_and_more(unexplained)} changed too"
    else:
        values = "the cast explains the values" if any(other.values()) else "there are no stored values to compare"
    return Cause("dtype", f"{only}: {', '.join(dtypes)} in {plural(len(other), 'tensor')}; {values}", tuple(other))
