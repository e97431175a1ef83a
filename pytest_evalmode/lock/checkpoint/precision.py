"""Causes that change the precision of values: another dtype, or rounding to one."""

from __future__ import annotations

import torch
from torch import Tensor

from pytest_evalmode.lock.checkpoint.unexplained import FLOAT_DTYPES, Cause, Unexplained
from pytest_evalmode.rules.wording import first_and_more, plural


def find_dtype_change(diff: Unexplained) -> Cause | None:
    """Find tensors that have another floating-point dtype, and say whether the cast explains their values."""
    cast = [
        name
        for name in diff.changed
        if diff.locked[name].dtype != diff.current_record(name).dtype
        and diff.locked[name].shape == diff.current_record(name).shape
        and diff.locked[name].dtype in FLOAT_DTYPES
        and diff.current_record(name).dtype in FLOAT_DTYPES
    ]
    if not cast:
        return None
    dtypes = sorted({f"{diff.locked[name].dtype} -> {diff.current_record(name).dtype}" for name in cast})
    unexplained = [name for name in cast if not _casts(diff, name)]
    compared = [name for name in cast if diff.sampled_values(name) is not None]
    diff.mark_explained(cast)
    only = "only the dtype changed" if not diff.changed and not diff.missing and not diff.added else "the dtype changed"
    if unexplained:
        values, only = f"the values of {first_and_more(unexplained)} changed too", "the dtype changed"
    else:
        values = "the cast explains the values" if compared else "there are no stored values to compare"
    return Cause("dtype", f"{only}: {', '.join(dtypes)} in {plural(len(cast), 'tensor')}; {values}", tuple(cast))


def _casts(diff: Unexplained, name: str) -> bool:
    """Return whether the sampled locked values, cast to the current dtype, equal the current ones."""
    both = diff.sampled_values(name)
    if both is None:
        return True
    dtypes = [getattr(torch, dtype) for dtype in (diff.locked[name].dtype, diff.current_record(name).dtype)]
    old, new = (torch.from_numpy(values).to(dtypes[0]).to(dtypes[1]).float() for values in both)
    return torch.equal(old, new)


def find_rounding(diff: Unexplained) -> Cause | None:
    """Find tensors of an unchanged dtype whose values were rounded to a narrower one."""
    for dtype in (torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2):
        rounded = []
        for name in diff.changed:
            both = diff.sampled_values(name) if diff.locked[name].dtype in ("float32", "float64") else None
            if both is None:
                continue
            old, new = map(torch.from_numpy, both)
            # The samples show the rounding; all current values must be representable in the dtype too.
            if torch.equal(old.to(dtype).to(old.dtype), new) and torch.equal(
                _narrowed(diff.current_tensor(name), dtype), diff.current_tensor(name)
            ):
                rounded.append(name)
        if rounded:
            diff.mark_explained(rounded)
            words = (
                f"the values of {plural(len(rounded), 'tensor')} were rounded to {str(dtype).removeprefix('torch.')}"
            )
            return Cause("rounded", words, tuple(rounded))
    return None


def _narrowed(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.detach().to(dtype).to(tensor.dtype)
