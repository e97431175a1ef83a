"""Weights in few bits, or in few levels."""

from __future__ import annotations

import torch
from torch import Tensor

from pytest_evalmode.lock.checkpoint.renamed_tensors import PACKED_PARAMS
from pytest_evalmode.lock.checkpoint.unexplained import FLOAT_DTYPES, Cause, Unexplained
from pytest_evalmode.rules.wording import plural

_NARROW = ("int8", "int4", "int2", "uint8", "uint4", "uint2", "float8", "float4")
_FEWEST_LEVELS, _MOST_LEVELS = 6, 256


def find_quantized(case: Unexplained) -> Cause | None:
    """Weights in integers or bytes, with scales beside them."""
    narrow = [
        name
        for name in case.changed
        if case.locked[name].dtype in FLOAT_DTYPES and _is_quantised(case.current_tensor(name))
    ]
    beside = [
        name
        for name in case.added
        if _is_quantised(case.current.tensors[name])
        or name.rpartition(".")[2] in ("scale", "zero_point")
        or PACKED_PARAMS in name
    ]
    packed = [name for name in beside if _is_quantised(case.current.tensors[name])]
    if not narrow and not packed:
        return None
    owners = {
        name.partition(f".{PACKED_PARAMS}")[0] if PACKED_PARAMS in name else name.rpartition(".")[0] for name in beside
    }
    gone = [name for name in case.missing if name.rpartition(".")[0] in owners]
    dtypes = {_stored(case.current.tensors[name]) for name in (*(case.current_names[name] for name in narrow), *packed)}
    case.mark_explained(narrow)
    case.missing = [name for name in case.missing if name not in gone]
    case.added = [name for name in case.added if name.rpartition(".")[0] not in owners and name not in beside]
    count = len(narrow) or len(packed)
    return Cause(
        "quantised", f"quantised: {plural(count, 'weight')} in {', '.join(sorted(dtypes))}", tuple(narrow or packed)
    )


def _is_quantised(tensor: Tensor) -> bool:
    if tensor.is_quantized or type(tensor).__module__.startswith(("torchao.", "bitsandbytes.")):
        return True
    return tensor.dim() > 0 and _stored(tensor).startswith(_NARROW)


def _stored(tensor: Tensor) -> str:
    kind = type(tensor)
    if kind.__module__.startswith(("torchao.", "bitsandbytes.")):
        return kind.__name__
    return str(tensor.dtype).removeprefix("torch.")


def find_fake_quantized(case: Unexplained) -> Cause | None:
    """Values that lie on few evenly spaced levels: quantised, and back."""
    found = [
        name for name in case.changed if len(case.locked[name].shape) > 1 and _few_levels(case.current_tensor(name))
    ]
    if not found:
        return None
    case.mark_explained(found)
    return Cause("quantised", f"quantised and back: {plural(len(found), 'weight')} hold few levels", tuple(found))


def _few_levels(tensor: Tensor) -> bool:
    """Whether the whole, or each of the first rows, has at most 256 evenly spaced levels, and many more values."""
    if not tensor.is_floating_point():
        return False
    rows = tensor.detach().reshape(tensor.shape[0], -1).float()
    if _on_grid(rows.reshape(-1)[: 1 << 16]):
        return True
    return rows.shape[1] >= 16 and all(_on_grid(row) for row in rows[:8])


def _on_grid(values: Tensor) -> bool:
    levels = torch.unique(values).double()
    if not _FEWEST_LEVELS <= len(levels) <= _MOST_LEVELS or not bool(levels.isfinite().all()):
        return False
    spread, most = float(levels[-1] - levels[0]), float(levels.abs().max())
    # Of a few values no two may be neighbours on the grid: then its step is one that the usual ways of quantising give.
    steps = [float(levels.diff().min()), *(spread / n for n in (255, 15)), *(most / n for n in (127, 128, 7, 8))]
    for step in steps:
        places = (levels - levels[0]) / step
        if spread / step < _MOST_LEVELS and bool(((places - places.round()).abs() < 0.02).all()):
            return True
    return False
