"""Differences between the outputs of two runs of a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from pytest_evalmode.probes.probe_runs import Run

Tensors = Mapping[str, Tensor]


class Tolerance(NamedTuple):
    """The tolerance for comparing two tensors; None allows the rounding errors of kernels for another batch size."""

    rtol: float | None = 0.0
    atol: float | None = 0.0

    def exceeded(self, before: Tensor, after: Tensor) -> Tensor:
        """Return a boolean tensor that is True for the elements that differ by more.  NaN equals NaN."""
        if not (before.is_floating_point() or before.is_complex()):
            return before != after
        loose = torch.finfo(before.dtype).eps ** 0.5
        finite = before[before.isfinite()].abs()
        rtol = loose if self.rtol is None else self.rtol
        atol = loose * float(finite.max() if finite.numel() else 0.0) if self.atol is None else self.atol
        return ~torch.isclose(after, before, rtol=rtol, atol=atol, equal_nan=True)


class Difference(NamedTuple):
    """How two outputs differ, and in which sample if it is known that others do not depend on it."""

    how: str
    sample: int | None = None


def first_difference(before: Tensors, after: Tensors, tolerance: Tolerance) -> Difference | None:
    """Return the first difference between two outputs, or None."""
    if before.keys() != after.keys():
        return Difference("different structure")
    differences = (tensor_difference(old, after[path], tolerance) for path, old in before.items())
    return next((Difference(how) for how in differences if how is not None), None)


def tensor_difference(old: Tensor, new: Tensor, tolerance: Tolerance) -> str | None:
    """Describe the difference between two tensors, or return None."""
    if old.shape != new.shape or old.dtype != new.dtype:
        return f"{old.dtype} {tuple(old.shape)} -> {new.dtype} {tuple(new.shape)}"
    exceeded = tolerance.exceeded(old, new)
    if not exceeded.any():
        return None
    samples = f", first in sample {_first_row(exceeded)}" if old.dim() > 1 and len(old) > 1 else ""
    return f"by up to {_distance(old, new):.3g}{samples}"


def first_different_sample(
    whole: Tensors, part: Tensors, rows: list[int], size: int, tolerance: Tolerance
) -> Difference | None:
    """Return the first sample that has a different output in another batch than in the whole batch of `size` samples.

    `rows` are the indices in the whole batch.  Tensors that do not have one row per sample are ignored.
    """
    for path, old in whole.items():
        if old.dim() == 0 or len(old) != size:
            continue
        new, old = part.get(path), old[rows]
        if new is None or new.dim() != old.dim() or len(new) != len(rows):
            return Difference("different structure", rows[0])
        if any(n < o for n, o in zip(new.shape, old.shape, strict=True)):
            return Difference(f"shape {tuple(new.shape[1:])}, not {tuple(old.shape[1:])}", rows[0])
        # More padding makes the output longer: compare the part that both have.
        new = new[tuple(slice(0, n) for n in old.shape)]
        exceeded = tolerance.exceeded(old, new)
        if exceeded.any():
            row = _first_row(exceeded)
            return Difference(f"by up to {_distance(old[row], new[row]):.3g}", rows[row])
    return None


def _first_row(exceeded: Tensor) -> int:
    return int(exceeded.reshape(len(exceeded), -1).any(1).nonzero()[0])


def _distance(old: Tensor, new: Tensor) -> float:
    return float((new.to(torch.complex128) - old.to(torch.complex128)).abs().max())


def assert_same(
    first: Run, second: Run, when: str, difference: Callable[[Tensors, Tensors], Difference | None]
) -> None:
    """Assert that two runs returned the same output, and name the first module that differs."""
    found = difference(first.output, second.output)
    if found is None:
        return
    what = "the output differs" if found.sample is None else f"sample {found.sample} gives a different output"
    text = f"{what} {when}: {found.how}"
    for (path, old), (_, new) in zip(first.modules, second.modules, strict=False):
        inner = difference(old, new)
        if inner is not None:
            where = f" ({inner.how})" if inner.sample is None else f", in sample {inner.sample}"
            raise AssertionError(f"{text}; first module that differs: {path or 'the model itself'}{where}")
    raise AssertionError(text)
