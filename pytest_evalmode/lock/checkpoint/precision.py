"""The same values, in another dtype or through one."""

from __future__ import annotations

import torch
from torch import Tensor

from pytest_evalmode.lock.checkpoint.unexplained import FLOAT_DTYPES, Cause, Unexplained
from pytest_evalmode.rules.wording import first_and_more, plural


def find_dtype_change(case: Unexplained) -> Cause | None:
    """Another dtype, and whether the cast explains the values."""
    cast = [
        name
        for name in case.changed
        if case.locked[name].dtype != case.current_record(name).dtype
        and case.locked[name].shape == case.current_record(name).shape
        and case.locked[name].dtype in FLOAT_DTYPES
        and case.current_record(name).dtype in FLOAT_DTYPES
    ]
    if not cast:
        return None
    dtypes = sorted({f"{case.locked[name].dtype} -> {case.current_record(name).dtype}" for name in cast})
    others = [name for name in cast if not _casts(case, name)]
    seen = [name for name in cast if case.sampled_values(name) is not None]
    case.mark_explained(cast)
    only = "only the dtype changed" if not case.changed and not case.missing and not case.added else "the dtype changed"
    if others:
        said, only = f"the values of {first_and_more(others)} are others too", "the dtype changed"
    else:
        said = "the cast explains the values" if seen else "no values were kept to compare"
    return Cause("dtype", f"{only}: {', '.join(dtypes)} in {plural(len(cast), 'tensor')}; {said}", tuple(cast))


def _casts(case: Unexplained, name: str) -> bool:
    """Whether the values that were kept, cast as the tensor was, are what they are now."""
    both = case.sampled_values(name)
    if both is None:
        return True
    kinds = [getattr(torch, dtype) for dtype in (case.locked[name].dtype, case.current_record(name).dtype)]
    old, new = (torch.from_numpy(values).to(kinds[0]).to(kinds[1]).float() for values in both)
    return torch.equal(old, new)


def find_rounding(case: Unexplained) -> Cause | None:
    """The same dtype as before, but the values have gone through a narrower one."""
    for dtype in (torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2):
        found = []
        for name in case.changed:
            both = case.sampled_values(name) if case.locked[name].dtype in ("float32", "float64") else None
            if both is None:
                continue
            old, new = map(torch.from_numpy, both)
            if torch.equal(old.to(dtype).to(old.dtype), new) and torch.equal(
                _narrowed(case.current_tensor(name), dtype), case.current_tensor(name)
            ):
                found.append(name)
        if found:
            case.mark_explained(found)
            words = f"the values of {plural(len(found), 'tensor')} went through {str(dtype).removeprefix('torch.')}"
            return Cause("rounded", words, tuple(found))
    return None


def _narrowed(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.detach().to(dtype).to(tensor.dtype)
