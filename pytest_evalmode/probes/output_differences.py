"""Differences between the outputs of two runs of a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pytest_evalmode.probes.probe_runs import Run


@dataclass(frozen=True, slots=True)
class Tolerance:
    """The tolerance for comparing two tensors.

    Without `rtol` and `atol` it allows the rounding errors of kernels that run with another batch size.
    """

    rtol: float | None
    atol: float | None

    def exceeded(self, before: Tensor, after: Tensor) -> Tensor:
        """Return a boolean tensor that is True for the elements that differ by more than the tolerance."""
        if not (before.is_floating_point() or before.is_complex()):
            return before != after
        if self.rtol is not None and self.atol is not None:
            return ~torch.isclose(after, before, rtol=self.rtol, atol=self.atol, equal_nan=True)
        loose = torch.finfo(before.dtype).eps ** 0.5
        finite = before[before.isfinite()].abs()
        scale = float(finite.max()) if finite.numel() else 0.0
        return ~torch.isclose(after, before, rtol=loose, atol=loose * scale, equal_nan=True)


def first_difference(
    before: Mapping[str, Tensor], after: Mapping[str, Tensor], tolerance: Tolerance | None = None
) -> str | None:
    """Describe the first difference between two outputs; None if they are the same, bit by bit or within a tolerance.

    NaN equals NaN.
    """
    if before.keys() != after.keys():
        return "different structure"
    for path, old in before.items():
        new = after[path]
        if old.shape != new.shape or old.dtype != new.dtype:
            return f"{old.dtype} {tuple(old.shape)} -> {new.dtype} {tuple(new.shape)}"
        if tolerance is not None and not bool(tolerance.exceeded(old, new).any()):
            continue
        if not torch.equal(torch.nan_to_num(old), torch.nan_to_num(new)) or not torch.equal(old.isnan(), new.isnan()):
            distance = (new.double() - old.double()).abs() if not old.is_complex() else (new - old).abs()
            has_samples = distance.dim() > 1 and len(distance) > 1
            sample = f", first in sample {_first_sample(distance)}" if has_samples else ""
            return f"by up to {float(distance.max()):.3g}{sample}"
    return None


def _first_sample(distance: Tensor) -> int:
    return int((distance.flatten(1) > 0).any(1).nonzero()[0])


def assert_same_outputs(first: Run, second: Run, when: str, tolerance: Tolerance | None = None) -> None:
    """Assert that two runs returned the same output, and name the first module that differs."""
    difference = first_difference(first.output, second.output, tolerance)
    if difference is None:
        return
    for (path, old), (_, new) in zip(first.modules, second.modules, strict=False):
        inner = first_difference(old, new, tolerance)
        if inner is not None:
            raise AssertionError(
                f"the output differs {when}: {difference}; first module that differs: {_module_name(path)} ({inner})"
            )
    raise AssertionError(f"the output differs {when}: {difference}")


def _module_name(path: str) -> str:
    return path or "the model itself"


def assert_same_samples(whole: Run, part: Run, rows: list[int], size: int, tolerance: Tolerance, when: str) -> None:
    """Assert that samples have the same output in another batch as in the whole batch.

    Args:
        whole: The run of the whole batch.
        part: The run of the other batch.
        rows: The index in the whole batch of each sample of the other batch.
        size: The number of samples of the whole batch.
        tolerance: How much the outputs may differ.
        when: How the other batch differs, for the message.
    """
    difference = _first_different_sample(whole.output, part.output, rows, size, tolerance)
    if difference is None:
        return
    sample, how = difference
    for (path, old), (_, new) in zip(whole.modules, part.modules, strict=False):
        inner = _first_different_sample(old, new, rows, size, tolerance)
        if inner is not None:
            raise AssertionError(
                f"sample {sample} gives a different output {when}: {how}; "
                f"first module that differs: {_module_name(path)}, in sample {inner[0]}"
            )
    raise AssertionError(f"sample {sample} gives a different output {when}: {how}")


def _first_different_sample(
    whole: Mapping[str, Tensor], part: Mapping[str, Tensor], rows: list[int], size: int, tolerance: Tolerance
) -> tuple[int, str] | None:
    """Return the first sample that differs, and how.  Tensors without samples along the first dimension are ignored."""
    for path, old in whole.items():
        new = part.get(path)
        if old.dim() == 0 or len(old) != size:
            continue
        if new is None or new.dim() != old.dim() or len(new) != len(rows):
            return rows[0], "different structure"
        selected = old[rows]
        if new.shape != selected.shape:
            if any(n < o for n, o in zip(new.shape, selected.shape, strict=True)):
                return rows[0], f"shape {tuple(new.shape[1:])}, not {tuple(selected.shape[1:])}"
            # More padding makes the output longer: compare the part that both have.
            new = new[tuple(slice(0, n) for n in selected.shape)]
        exceeded = tolerance.exceeded(selected, new)
        if bool(exceeded.any()):
            sample = int(exceeded.reshape(len(rows), -1).any(1).nonzero()[0])
            distance = (
                (new[sample].double() - selected[sample].double()).abs()
                if not new.is_complex()
                else (new - selected)[sample].abs()
            )
            return rows[sample], f"by up to {float(distance.max()):.3g}"
    return None
