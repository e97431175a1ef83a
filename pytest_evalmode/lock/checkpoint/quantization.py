"""Causes that quantize weights: a quantized dtype, or values that were quantized and dequantized."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pytest_evalmode.lock.checkpoint.differences import FLOAT_DTYPES, Cause, ChangedTensor, Differences, owner_of
from pytest_evalmode.lock.checkpoint.pairing import PACKED_PARAMS
from pytest_evalmode.lock.model_entry import spaced
from pytest_evalmode.rules.wording import plural

if TYPE_CHECKING:
    Array = np.ndarray[Any, Any]

_NARROW = ("int8", "int4", "int2", "uint8", "uint4", "uint2", "float8", "float4")
_GROUPS = (256, 128, 64, 32)
_MIN_GROUP = 16  # values; with fewer, unquantized ones may lie on a grid by chance
_FIRST = 1 << 14  # values that are tried before all of a tensor are


@dataclass(frozen=True, slots=True)
class Levels:
    """The levels of a quantization, between -1 or 0 and 1, and the offset and scale at each sampled value."""

    words: str
    levels: Array
    offset: Array
    scale: Array
    now: Array
    """The sampled current values."""


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


def find_levels(tensor: ChangedTensor) -> Levels | None:
    """Find a scheme and a grouping for which all current values are levels."""
    if tensor.values is None or len(tensor.now.shape) < 2 or tensor.now.dtype not in FLOAT_DTYPES:
        return None
    values, (rows, columns) = tensor.current, tensor.values[1].shape
    if not len(values) or not bool(values.isfinite().all()):
        return None
    width = len(values) // tensor.now.shape[0]
    picked = [[row * width + column for column in spaced(width, columns)] for row in spaced(len(values) // width, rows)]
    precision = torch.finfo(getattr(torch, tensor.now.dtype)).eps
    for words, size in _groupings(len(values), width):
        groups = values.reshape(-1, size)
        for name, levels, ends in _SCHEMES:
            offset, scale = ends(groups)
            some = slice(max(1, _FIRST // size))
            for part, columns_of in ((some, slice(_FIRST)), (slice(None), slice(None))):
                if not _are_levels(groups[part, columns_of], offset[part], scale[part], levels, precision):
                    break
            else:
                group = torch.tensor(picked) // size
                start, size_of = (each[group, 0].double().numpy() for each in (offset, scale))
                return Levels(f"{name} {words}", levels.double().numpy(), start, size_of, tensor.values[1])
    return None


def quantize(was: Array, found: Levels) -> Array:
    """Return the level nearest to each locked value: the current one, if it is as near but for a rounded scale."""
    places = (was - found.offset) / np.where(found.scale == 0, 1, found.scale)
    nearest = found.offset + found.scale * found.levels[np.abs(places[..., None] - found.levels).argmin(-1)]
    as_near: Array = np.abs(was - found.now) <= 1.3 * np.abs(was - nearest) + 1e-6 * np.abs(found.scale)
    return np.where(as_near, found.now, nearest)


def _groupings(count: int, width: int) -> Iterator[tuple[str, int]]:
    """Yield how values share a scale, the largest groups first, and the number of values in a group."""
    if width * 2 <= count:
        yield "per tensor", count
    if width >= _MIN_GROUP:
        yield "per output channel", width
    yield from ((f"in groups of {size}", size) for size in _GROUPS if count % size == 0 and size not in (width, count))


def _are_levels(groups: Tensor, offset: Tensor, scale: Tensor, levels: Tensor, precision: float) -> bool:
    """Return whether all values are levels, up to the precision of their dtype."""
    places = (groups - offset) / torch.where(scale == 0, 1, scale)
    gaps = levels.diff()
    above = torch.searchsorted(levels, places.contiguous()).clamp(1, len(levels) - 1)
    low, high = levels[above - 1], levels[above]
    distance = torch.minimum((places - low).abs(), (high - places).abs())
    # Denormal levels of a float format are closer than the values can show.
    return bool((distance <= torch.clamp(0.02 * gaps[above - 1], min=2 * precision, max=0.004)).all())


def _largest(groups: Tensor) -> tuple[Tensor, Tensor]:
    scale = groups.abs().amax(1, keepdim=True)
    return torch.zeros_like(scale), scale


def _range(groups: Tensor) -> tuple[Tensor, Tensor]:
    low = groups.amin(1, keepdim=True)
    return low, groups.amax(1, keepdim=True) - low


def _signed(groups: Tensor) -> tuple[Tensor, Tensor]:
    """Return scales that put the value with the largest magnitude at level -1, as GGUF's q4_0 does."""
    scale = -groups.gather(1, groups.abs().argmax(1, keepdim=True))
    return torch.zeros_like(scale), scale


def _float_levels(dtype: torch.dtype) -> Tensor:
    levels = torch.arange(256, dtype=torch.uint8).view(dtype).float()
    levels = levels[levels.isfinite()].sort().values
    return levels.div(levels.max())


_NF4 = torch.tensor([
    -1, -0.6961928, -0.52507305, -0.39491749, -0.28444138, -0.18477343, -0.09105004, 0,
    0.0795803, 0.1609302, 0.24611229, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1,
])  # fmt: skip
_SCHEMES: tuple[tuple[str, Tensor, Callable[[Tensor], tuple[Tensor, Tensor]]], ...] = (
    *((f"int{bits}", torch.arange(-n, n + 1) / n, _largest) for bits, n in ((2, 1), (3, 3), (4, 7), (4, 8), (5, 15))),
    ("int4", torch.arange(-8, 8) / 8, _signed),
    ("nf4", _NF4, _largest),
    *((f"int{bits}", torch.arange(n + 1) / n, _range) for bits, n in ((2, 3), (3, 7), (4, 15), (5, 31))),
    ("float8_e4m3fn", _float_levels(torch.float8_e4m3fn), _largest),
    *(("int8", torch.arange(-n, n + 1) / n, _largest) for n in (127, 128)),
    ("int8", torch.arange(256) / 255, _range),
)
"""The name of each scheme, its levels, and how its offset and scale follow from the values of a group."""
