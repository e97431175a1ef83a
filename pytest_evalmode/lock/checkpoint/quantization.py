"""Causes that quantize weights: a quantized dtype, or values that were quantized and dequantized."""

from __future__ import annotations

import torch
from torch import Tensor

from pytest_evalmode.lock.checkpoint.renamed_tensors import PACKED_PARAMS
from pytest_evalmode.lock.checkpoint.unexplained import FLOAT_DTYPES, Cause, Unexplained
from pytest_evalmode.rules.wording import plural

_NARROW = ("int8", "int4", "int2", "uint8", "uint4", "uint2", "float8", "float4")
_MIN_LEVELS, _MAX_LEVELS = 6, 256


def find_quantized(diff: Unexplained) -> Cause | None:
    """Find weights that are stored in a quantized dtype."""
    narrow = [
        name
        for name in diff.changed
        if diff.locked[name].dtype in FLOAT_DTYPES and _is_quantized(diff.current_tensor(name))
    ]
    companions = [
        name
        for name in diff.added
        if _is_quantized(diff.current.tensors[name])
        or name.rpartition(".")[2] in ("scale", "zero_point")
        or PACKED_PARAMS in name
    ]
    packed = [name for name in companions if _is_quantized(diff.current.tensors[name])]
    if not narrow and not packed:
        return None
    owners = {
        name.partition(f".{PACKED_PARAMS}")[0] if PACKED_PARAMS in name else name.rpartition(".")[0]
        for name in companions
    }
    gone = [name for name in diff.missing if name.rpartition(".")[0] in owners]
    quantized = [*(diff.current_names[name] for name in narrow), *packed]
    dtypes = {_dtype_name(diff.current.tensors[name]) for name in quantized}
    diff.mark_explained(narrow)
    diff.missing = [name for name in diff.missing if name not in gone]
    diff.added = [name for name in diff.added if name.rpartition(".")[0] not in owners and name not in companions]
    count = len(narrow) or len(packed)
    return Cause(
        "quantised", f"quantized: {plural(count, 'weight')} in {', '.join(sorted(dtypes))}", tuple(narrow or packed)
    )


def _is_quantized(tensor: Tensor) -> bool:
    if tensor.is_quantized or type(tensor).__module__.startswith(("torchao.", "bitsandbytes.")):
        return True
    return tensor.dim() > 0 and _dtype_name(tensor).startswith(_NARROW)


def _dtype_name(tensor: Tensor) -> str:
    kind = type(tensor)
    if kind.__module__.startswith(("torchao.", "bitsandbytes.")):
        return kind.__name__
    return str(tensor.dtype).removeprefix("torch.")


def find_fake_quantized(diff: Unexplained) -> Cause | None:
    """Find floating-point weights that have few, evenly spaced values."""
    names = [
        name for name in diff.changed if len(diff.locked[name].shape) > 1 and _few_levels(diff.current_tensor(name))
    ]
    if not names:
        return None
    diff.mark_explained(names)
    verb = "has" if len(names) == 1 else "have"
    words = f"quantized and dequantized: {plural(len(names), 'weight')} {verb} few distinct values"
    return Cause("quantised", words, tuple(names))


def _few_levels(tensor: Tensor) -> bool:
    """Return whether the tensor, or each of its first rows, has at most 256 distinct, evenly spaced values."""
    if not tensor.is_floating_point():
        return False
    rows = tensor.detach().reshape(tensor.shape[0], -1).float()
    if _on_grid(rows.reshape(-1)[: 1 << 16]):
        return True
    return rows.shape[1] >= 16 and all(_on_grid(row) for row in rows[:8])


def _on_grid(values: Tensor) -> bool:
    """Return whether there are 6 to 256 distinct values, evenly spaced."""
    levels = torch.unique(values).double()
    if not _MIN_LEVELS <= len(levels) <= _MAX_LEVELS or not bool(levels.isfinite().all()):
        return False
    spread, most = float(levels[-1] - levels[0]), float(levels.abs().max())
    # In a small sample no two values may be neighbors on the grid: also try the steps of common quantization schemes.
    steps = [float(levels.diff().min()), *(spread / n for n in (255, 15)), *(most / n for n in (127, 128, 7, 8))]
    for step in steps:
        places = (levels - levels[0]) / step
        if spread / step < _MAX_LEVELS and bool(((places - places.round()).abs() < 0.02).all()):
            return True
    return False
