"""Causes that quantize weights: a quantized dtype, or values that were quantized and dequantized."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from pytest_evalmode.lock.causes.cause import count_distinct
from pytest_evalmode.lock.checkpoint.differences import FLOAT_DTYPES, Cause, ChangedTensor, Differences, owner_of
from pytest_evalmode.lock.checkpoint.pairing import PACKED_PARAMS
from pytest_evalmode.lock.model_entry import spaced
from pytest_evalmode.rules.wording import plural

_NARROW = ("int8", "int4", "int2", "uint8", "uint4", "uint2", "float8", "float4")
# The bits of integers, how many steps there are from zero to the largest value, or from the lowest, and which it is.
_SCHEMES = ((4, 7, False), (4, 8, False), (4, 15, True), (8, 127, False), (8, 128, False), (8, 255, True))
_GROUPS = (256, 128, 64, 32)
_MIN_GROUP = 16  # values; with fewer, unquantized ones may lie on a grid by chance
_MIN_DISTINCT = 8  # values; zero and the ends always lie on a grid, and often simple fractions such as a half
_FIRST = 1 << 14  # values that are tried before all of a tensor are
_MAX_SLACK = 0.3  # of a step, by which the precision of a dtype may move a value


def find_quantized(diff: Differences) -> Cause | None:
    """Find weights that are stored in a quantized dtype, and the scales and zero points beside them."""
    tensors = diff.contents.tensors
    narrow = [name for name, each in diff.changed.items() if each.was.dtype in FLOAT_DTYPES and _is_narrow(each.tensor)]
    packed = [name for name in diff.added if _is_narrow(tensors[name])]
    if not narrow and not packed:
        return None
    owners = {owner_of(name).partition(f".{PACKED_PARAMS}")[0] for name in (*narrow, *packed)}
    dtypes = {_dtype_name(tensors[name]) for name in (*(diff.current_names[name] for name in narrow), *packed)}
    diff.mark_explained(narrow)
    diff.missing = [name for name in diff.missing if owner_of(name) not in owners]
    diff.added = [name for name in diff.added if owner_of(name).partition(f".{PACKED_PARAMS}")[0] not in owners]
    weights = narrow or packed
    words = f"quantized: {plural(len(weights), 'weight')} in {', '.join(sorted(dtypes))}"
    return Cause("quantised", words, tuple(weights))


def _is_narrow(tensor: Tensor) -> bool:
    return tensor.is_quantized or _is_library(tensor) or (tensor.dim() > 0 and _dtype_name(tensor).startswith(_NARROW))


def _is_library(tensor: Tensor) -> bool:
    return type(tensor).__module__.startswith(("torchao.", "bitsandbytes."))


def _dtype_name(tensor: Tensor) -> str:
    return type(tensor).__name__ if _is_library(tensor) else str(tensor.dtype).removeprefix("torch.")


def find_quantization(tensor: ChangedTensor) -> str | None:
    """Return the integers and the grouping of a grid that has all current values, each within half a step of before."""
    values, both = tensor.current, tensor.values
    if both is None or len(tensor.now.shape) < 2 or not len(values) or not bool(values.isfinite().all()):
        return None
    if count_distinct(both[1]) < _MIN_DISTINCT:
        return None
    rows, (was, now) = tensor.now.shape[0], both
    width = len(values) // rows
    at = [[row * width + column for column in spaced(width, now.shape[1])] for row in spaced(rows, now.shape[0])]
    for words, size in _groupings(len(values), width):
        groups = values.reshape(-1, size)
        low, high = groups.amin(1, keepdim=True), groups.amax(1, keepdim=True)
        for bits, count, is_shifted in _SCHEMES:
            start, step = (low, (high - low) / count) if is_shifted else (low * 0, torch.maximum(high, -low) / count)
            slack = max(0.02, 2 * count * torch.finfo(getattr(torch, tensor.now.dtype)).eps)
            some = slice(max(1, _FIRST // size))
            if (
                slack < _MAX_SLACK
                and _is_on_grid(groups[some, :_FIRST], start[some], step[some], slack)
                and _is_on_grid(groups, start, step, slack)
            ):
                half = 0.5 * step[torch.tensor(at) // size, 0].double().numpy()
                if np.all(np.abs(was - now) <= 1.05 * half):
                    return f"int{bits} {words}"
    return None


def _groupings(count: int, width: int) -> Iterator[tuple[str, int]]:
    """Yield how values share a scale, the largest groups first, and the number of values in a group."""
    if width * 2 <= count and count >= _MIN_GROUP:
        yield "per tensor", count
    if width >= _MIN_GROUP:
        yield "per output channel", width
    yield from ((f"in groups of {size}", size) for size in _GROUPS if count % size == 0 and size not in (width, count))


def _is_on_grid(groups: Tensor, start: Tensor, step: Tensor, slack: float) -> bool:
    places = (groups - start) / torch.where(step == 0, 1, step)
    return bool(((places - places.round()).abs() <= slack).all())
