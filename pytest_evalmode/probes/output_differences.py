"""How what one run gave differs from what another gave."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pytest_evalmode.probes.probe_runs import Run


def first_difference(was: Mapping[str, Tensor], now: Mapping[str, Tensor]) -> str | None:
    """How two outputs differ, bit by bit, in words."""
    if was.keys() != now.keys():
        return "another structure"
    for path, old in was.items():
        new = now[path]
        if old.shape != new.shape or old.dtype != new.dtype:
            return f"{old.dtype} {tuple(old.shape)} -> {new.dtype} {tuple(new.shape)}"
        if not torch.equal(torch.nan_to_num(old), torch.nan_to_num(new)) or not torch.equal(old.isnan(), new.isnan()):
            far = (new.double() - old.double()).abs() if not old.is_complex() else (new - old).abs()
            sample = f", in sample {_sample(far)} first" if far.dim() > 1 and len(far) > 1 else ""
            return f"by up to {float(far.max()):.3g}{sample}"
    return None


def _sample(far: Tensor) -> int:
    return int((far.flatten(1) > 0).any(1).nonzero()[0])


def assert_same(first: Run, second: Run, when: str) -> None:
    """The output of a model, and so what its modules gave, is the same bit by bit."""
    how = first_difference(first.output, second.output)
    if how is None:
        return
    for (path, old), (_, new) in zip(first.modules, second.modules, strict=False):
        differs = first_difference(old, new)
        if differs is not None:
            raise AssertionError(
                f"the output differs {when}, {how}; {_module(path)} was the first to differ ({differs})"
            )
    raise AssertionError(f"the output differs {when}, {how}")


def _module(path: str) -> str:
    return path or "the model itself"


@dataclass(frozen=True, slots=True)
class Closeness:
    """What is the same: as close as asked for, else as the rounding of other sizes allows."""

    rtol: float | None
    atol: float | None

    def far(self, was: Tensor, now: Tensor) -> Tensor:
        """Which elements are not the same."""
        if not (was.is_floating_point() or was.is_complex()):
            return was != now
        if self.rtol is not None and self.atol is not None:
            return ~torch.isclose(now, was, rtol=self.rtol, atol=self.atol, equal_nan=True)
        loose = torch.finfo(was.dtype).eps ** 0.5
        finite = was[was.isfinite()].abs()
        scale = float(finite.max()) if finite.numel() else 0.0
        return ~torch.isclose(now, was, rtol=loose, atol=loose * scale, equal_nan=True)


def assert_rows(whole: Run, part: Run, rows: list[int], size: int, close: Closeness, when: str) -> None:
    """The rows of a batch are what they are in another batch."""
    moved = _moved(whole.output, part.output, rows, size, close)
    if moved is None:
        return
    sample, how = moved
    for (path, old), (_, new) in zip(whole.modules, part.modules, strict=False):
        inside = _moved(old, new, rows, size, close)
        if inside is not None:
            name = _module(path)
            raise AssertionError(
                f"sample {sample} gives otherwise {when}, {how}; {name} was the first to differ, in sample {inside[0]}"
            )
    raise AssertionError(f"sample {sample} gives otherwise {when}, {how}")


def _moved(
    whole: Mapping[str, Tensor], part: Mapping[str, Tensor], rows: list[int], size: int, close: Closeness
) -> tuple[int, str] | None:
    """The first sample that differs, and how far; what has no samples along its first dimension does not count."""
    for path, old in whole.items():
        new = part.get(path)
        if old.dim() == 0 or len(old) != size:
            continue
        if new is None or new.dim() != old.dim() or len(new) != len(rows):
            return rows[0], "in what it gives"
        picked = old[rows]
        if new.shape != picked.shape:
            if any(n < o for n, o in zip(new.shape, picked.shape, strict=True)):
                return rows[0], f"in shape {tuple(new.shape[1:])}, not {tuple(picked.shape[1:])}"
            new = new[tuple(slice(0, n) for n in picked.shape)]  # of more padding more comes out
        far = close.far(picked, new)
        if bool(far.any()):
            sample = int(far.reshape(len(rows), -1).any(1).nonzero()[0])
            step = (
                (new[sample].double() - picked[sample].double()).abs()
                if not new.is_complex()
                else (new - picked)[sample].abs()
            )
            return rows[sample], f"by up to {float(step.max()):.3g}"
    return None
