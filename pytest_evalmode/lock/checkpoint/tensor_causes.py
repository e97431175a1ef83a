"""Causes that change the values of one tensor, as a table: the first one that reproduces the sampled values is named.

`recognize` estimates the parameters of a cause, and `apply` predicts the current values of the locked sample from them.
The table is sorted by the number of parameters, so that the simplest cause wins.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pytest_evalmode.lock.checkpoint import quantization
from pytest_evalmode.lock.checkpoint.differences import FLOAT_DTYPES, Cause, ChangedTensor, Differences, equal
from pytest_evalmode.lock.checkpoint.initial_values import find_constant
from pytest_evalmode.rules.wording import first_and_more, plural

if TYPE_CHECKING:
    Array = np.ndarray[Any, Any]

_MIN_VALUES = 8  # distinct values needed to distinguish a factor from chance
_NARROWER = ("float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2")


@dataclass(frozen=True, slots=True)
class TensorCause:
    """One row of the table."""

    kind: str
    recognize: Callable[[ChangedTensor], Any]
    """Return the parameters of the cause, None if it is not possible."""
    apply: Callable[[Array, Any], Array]
    words: Callable[[Sequence[str], Sequence[Any]], str]
    """Describe the cause from the names of the tensors and the parameters of each."""
    residual: float = 0.0
    """How far a value may be from the predicted one, relative to it."""


def find_causes(diff: Differences) -> list[Cause]:
    """Return the causes of the tensors that one of the table reproduces, and mark these as explained."""
    found: dict[int, dict[str, Any]] = {}
    for name, tensor in diff.changed.items():
        both = tensor.values
        if both is None or equal(*both):  # no values, or none of those that differ
            continue
        if tensor.tensor.numel() > 1 and find_constant(tensor.current) is not None:  # which proves nothing
            continue
        for i, row in enumerate(_TABLE):
            parameters = row.recognize(tensor)
            if parameters is not None and _reproduces(row, tensor, parameters):
                found.setdefault(i, {})[name] = parameters
                break
    for names in found.values():
        diff.mark_explained(names)
    rows = sorted(found.items())
    return [
        Cause(_TABLE[i].kind, _TABLE[i].words(list(names), list(names.values())), tuple(names)) for i, names in rows
    ]


def _reproduces(row: TensorCause, tensor: ChangedTensor, parameters: Any) -> bool:
    assert tensor.values is not None
    was, now = tensor.values
    predicted = row.apply(was, parameters)
    if not row.residual:
        return equal(predicted, now)
    if not np.isfinite(predicted).all() or not np.isfinite(now).all():
        return False
    residual = max(row.residual, 2 * _precision(tensor))
    # Sums such as a merge and its reverse leave errors of the size of the largest value's last bit.
    return bool(np.all(np.abs(now - predicted) <= residual * np.abs(predicted) + 2e-7 * np.abs(predicted).max()))


def _precision(tensor: ChangedTensor) -> float:
    return torch.finfo(getattr(torch, tensor.now.dtype)).eps if tensor.now.dtype in FLOAT_DTYPES else 0.0


def _find_narrower(tensor: ChangedTensor) -> str | None:
    """Return the widest dtype that all current values fit in, if a cast to it reproduces the sample."""
    if tensor.now.dtype not in FLOAT_DTYPES or tensor.values is None:
        return None
    width = tensor.tensor.element_size()
    was, now = tensor.values
    for dtype in _NARROWER:
        narrower: torch.dtype = getattr(torch, dtype)
        fits = narrower.itemsize < width or (narrower.itemsize == width and dtype == "bfloat16" != tensor.now.dtype)
        if fits and equal(_round_to(was, dtype), now):
            plain = tensor.tensor.detach()
            back = plain.to(narrower).to(plain.dtype)
            if bool(((back == plain) | plain.isnan() & back.isnan()).all()):
                return dtype
    return None


def _round_to(was: Array, dtype: str) -> Array:
    rounded: Array = torch.from_numpy(was.astype(np.float32)).to(getattr(torch, dtype)).double().numpy()
    return rounded


def _find_zeroed(tensor: ChangedTensor) -> tuple[Array, float] | None:
    """Return which sampled values are not zero, and the share of all values that are."""
    if not _is_float(tensor) or tensor.values is None or tensor.values[1].size < _MIN_VALUES:
        return None
    return tensor.values[1] != 0, float((tensor.current == 0).double().mean())


def _is_float(tensor: ChangedTensor) -> bool:
    return tensor.now.dtype in FLOAT_DTYPES and tensor.was.dtype in FLOAT_DTYPES


def _from_values(find: Callable[[Array, Array], Any]) -> Callable[[ChangedTensor], Any]:
    """Return a function that finds parameters in the sampled values of a tensor of floating-point numbers."""

    def recognize(tensor: ChangedTensor) -> Any:
        with np.errstate(all="ignore"):
            return find(*tensor.values) if tensor.values is not None and _is_float(tensor) else None

    return recognize


def _find_rounding(was: Array, now: Array) -> float:
    """Return the largest change, relative to the value or to a hundredth of the largest one."""
    return float(np.max(np.abs(now - was) / np.maximum(np.abs(was), np.abs(was).max() / 100 or 1)))


def _find_factor(was: Array, now: Array) -> float | None:
    factor = float(np.median(now[was != 0] / was[was != 0]))
    return factor if _is_evidence(was) and factor and np.isfinite(factor) else None


def _find_shift(was: Array, now: Array) -> float | None:
    shift = float(np.median(now - was))
    return shift if _is_evidence(was) and shift and np.isfinite(shift) else None


def _is_evidence(was: Array) -> bool:
    """Return whether the values suffice to estimate a number."""
    return np.unique(was).size >= _MIN_VALUES


def factors_of_rows(was: Array, now: Array) -> Array | None:
    """Return the factor of each row, as a column; None if the rows are too few or too short to show one."""
    if was.shape[0] < 2 or was.shape[1] < _MIN_VALUES or not np.isfinite(now).all():
        return None
    squares = (was**2).sum(1, keepdims=True)
    if np.any(squares == 0) or not np.isfinite(squares).all():
        return None
    factors: Array = (was * now).sum(1, keepdims=True) / squares
    return factors if np.all(factors != 0) else None


def _describe_numbers(verb: str) -> Callable[[Sequence[str], Sequence[float]], str]:
    def words(names: Sequence[str], numbers: Sequence[float]) -> str:
        distinct = list(dict.fromkeys(f"{each:.4g}" for each in numbers))
        return f"{_were(names)} {verb} by {', '.join(distinct[:3])}{', ...' if len(distinct) > 3 else ''}"

    return words


def _were(names: Sequence[str]) -> str:
    return f"{first_and_more(names)} {'was' if len(names) == 1 else 'were'}"


def _describe_narrower(names: Sequence[str], dtypes: Sequence[str]) -> str:
    return f"the values of {plural(len(names), 'tensor')} were rounded to {' or '.join(sorted(set(dtypes)))}"


def _describe_rounding(names: Sequence[str], most: Sequence[float]) -> str:
    differ = "tensor differs" if len(names) == 1 else "tensors differ"
    return f"{len(names)} {differ} by rounding, by at most {max(most):.1g} of their values"


def _describe_zeroed(names: Sequence[str], zeroed: Sequence[tuple[Array, float]]) -> str:
    shares = [share for _, share in zeroed]
    least, most = min(shares), max(shares)
    part = f"{least:.0%}" if most - least < 0.005 else f"{least:.0%} to {most:.0%}"
    return f"pruned: {part} of the values of {plural(len(names), 'tensor')} are 0"


def _describe_factors(names: Sequence[str], factors: Sequence[Array]) -> str:
    sizes = np.concatenate([np.abs(each).ravel() for each in factors])
    return f"the rows (outputs) of {_were(names)} each multiplied by a factor ({sizes.min():.3g} to {sizes.max():.3g})"


_TABLE: tuple[TensorCause, ...] = (
    TensorCause("rounded", _find_narrower, _round_to, _describe_narrower),
    TensorCause("rounding", _from_values(_find_rounding), lambda was, _: was, _describe_rounding, 1e-5),
    TensorCause("pruned", _find_zeroed, lambda was, zeroed: np.where(zeroed[0], was, 0), _describe_zeroed),
    TensorCause("scaled", _from_values(_find_factor), np.multiply, _describe_numbers("multiplied"), 1e-5),
    TensorCause("shifted", _from_values(_find_shift), np.add, _describe_numbers("shifted"), 1e-5),
    TensorCause("quantised", quantization.find_levels, quantization.quantize, quantization.describe),
    TensorCause("scaled", _from_values(factors_of_rows), np.multiply, _describe_factors, 1e-5),
)


def find_dtype_change(diff: Differences) -> Cause | None:
    """Find tensors of which only the floating-point dtype changed, and those of which the values changed too."""
    other = [name for name, each in diff.changed.items() if each.was.dtype != each.now.dtype and _is_float(each)]
    other = [name for name in other if diff.changed[name].was.shape == diff.changed[name].now.shape]
    if not other:
        return None
    explained = [name for name in other if diff.changed[name].is_cast or diff.changed[name].sample is None]
    compared = [name for name in other if diff.changed[name].sample is not None]
    dtypes = sorted({f"{diff.changed[name].was.dtype} -> {diff.changed[name].now.dtype}" for name in other})
    diff.mark_explained(explained)
    only = "only the dtype changed" if not diff.changed and not diff.missing and not diff.added else "the dtype changed"
    unexplained = [name for name in other if name not in explained]
    if unexplained:
        values = f"the values of {first_and_more(unexplained)} changed too"
    else:
        values = "the cast explains the values" if compared else "there are no stored values to compare"
    return Cause("dtype", f"{only}: {', '.join(dtypes)} in {plural(len(other), 'tensor')}; {values}", tuple(other))
